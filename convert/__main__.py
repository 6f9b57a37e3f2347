"""`python -m convert import|export|verify|list`, the same as `jaxkd-convert`."""

from jaxkd.weights.cli import entry

entry()
