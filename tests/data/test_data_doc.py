"""docs/data.md: its tables are the schema's, and it names every source."""

from docs import data_reference
from jaxkd.data.sources import SOURCES


def test_the_tables_are_those_of_the_schema():
  text = data_reference.FILE.read_text()
  assert data_reference.current(text) == text, "run python -m docs.data_reference"
  assert len(data_reference.PLACE.findall(text)) == 2
  assert "| `data.augment.repeats` | whole number | `1` |" in text
  stale = text.replace("`data.augment.repeats`", "`data.augment.copies`")
  assert data_reference.current(stale) == text


def test_every_source_is_named():
  text = data_reference.FILE.read_text()
  assert not [name for name in SOURCES if f"`{name}`" not in text]
