"""A run's own config again, or any config that was saved as JSON or YAML.

python -m jaxkd.main --config=configs/from_file.py:runs/quickstart/config.json --workdir=runs/again
python -m jaxkd.main --config=runs/quickstart/config.json --config.seed=1 --workdir=runs/again     (the same, directly)
"""

from pathlib import Path

from jaxkd.config import read_values
from jaxkd.errors import UserError


def get_config(arg=None):
  if not arg:
    raise UserError(
      "configs/from_file.py names no file", "e.g. --config=configs/from_file.py:runs/quickstart/config.json"
    )
  return read_values(Path(arg))
