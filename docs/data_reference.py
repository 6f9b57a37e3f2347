"""Writes the tables of options in docs/data.md, from the schema.

python -m docs.data_reference
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docs.tables import section_table
from jaxkd import schema

FILE = Path(__file__).parent / "data.md"
# Each table stands between two comments that name its section.
PLACE = re.compile(r"(<!-- (data\.\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def current(text: str) -> str:
  """`text` with its tables as the schema has them."""
  sections: dict[str, Any] = schema.DATA
  return PLACE.sub(
    lambda m: m[1] + section_table(sections[m[2].removeprefix("data.")], f"{m[2]}.") + m[3], text
  )


if __name__ == "__main__":
  FILE.write_text(current(FILE.read_text()))
