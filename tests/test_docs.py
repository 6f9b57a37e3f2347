"""README and docs: generated pages are fresh, links lead somewhere, every command line shown is accepted."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from docs import cli_reference, result_tables
from jaxkd import commands, distributed, main
from jaxkd import config as configs
from jaxkd.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
START = re.compile(r"(?:python -m jaxkd\.main|jaxkd) +")


def shown(page: Path) -> list[str]:
  """The lines of the page's bash blocks that call jaxkd, continued lines joined, comments cut."""
  blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)
  lines = "".join(blocks).replace("\\\n", " ").splitlines()
  return [line for line in lines if START.match(line)]


COMMANDS = [pytest.param(line, id=f"{page.name}: {line[:60]}") for page in PAGES for line in shown(page)]


def test_the_command_reference_is_that_of_the_code():
  assert cli_reference.FILE.read_text() == cli_reference.text(), "run python -m docs.cli_reference"


@pytest.mark.parametrize("page", result_tables.PAGES, ids=lambda p: p.name)
def test_numbers_are_those_of_the_results(page):
  assert page.read_text() == result_tables.text(page), "run python -m docs.result_tables"
  assert result_tables.PART.search(page.read_text())


def test_another_number_in_a_table_is_noticed(tmp_path):
  page = tmp_path / "README.md"
  known = (ROOT / "README.md").read_text()
  page.write_text(known.replace("| Baseline | 9", "| Baseline | 8", 1))
  assert page.read_text() != known
  assert result_tables.text(page) == known


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
  targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
  absent = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
  assert not absent


def accept(line: str) -> None:
  """Parses `line` as jaxkd would, and validates the config it names where that needs nothing from a run."""
  words, _ = distributed.split_flags(shlex.split(START.sub("", line, count=1), comments=True))
  name = words[0] if not words[0].startswith("-") else "train"
  module = importlib.import_module(f"jaxkd.commands.{name}")
  parser = main.Parser(prog=f"jaxkd {name}")
  module.add_arguments(parser)
  args, overrides = commands.parse(parser, words[1:] if name == words[0] else words)
  spec = getattr(args, "config", "")
  own = (
    spec.partition(":")[0].endswith(".py") and "/" not in spec.partition(":")[0]
  )  # a file of the page's own
  if spec and not own and "runs/" not in spec and not spec.endswith((".json", ".yaml", ".yml")):
    try:
      configs.load(spec, overrides)
    except UserError as e:
      if "is no teacher of the study and does not exist" not in e.message:  # the line before trains it
        raise


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_shown_is_accepted(line, monkeypatch):
  monkeypatch.chdir(ROOT)
  accept(line)


def test_a_wrong_command_is_not_accepted(monkeypatch):
  monkeypatch.chdir(ROOT)
  for line in (
    "jaxkd --config=configs/quickstart.py --config.optim.rl=1",
    "jaxkd --config=configs/quickstrt.py",
    "jaxkd forensics runs/a --probe-count=3",
  ):
    with pytest.raises(UserError):
      accept(line)
