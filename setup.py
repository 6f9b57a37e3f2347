"""Puts the presets of `configs/` into the package as `jaxkd/configs`; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["jaxkd*"]), "jaxkd.configs"],
  package_dir={"jaxkd.configs": "configs"},
)
