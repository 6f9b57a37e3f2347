"""Which ends are run again and how often, and what is said about a lost peer."""

import subprocess

import pytest

from tests.launch.stubs import BASH, ROOT, needs_bash

pytestmark = needs_bash
AGAIN = (75, 134, 137, 143, 255)


def sourced(script, *args):
  text = f"set -euo pipefail; . launch/restart.sh; {script}"
  done = subprocess.run(
    [BASH, "-c", text, "bash", *args], cwd=ROOT, capture_output=True, text=True, timeout=20
  )
  return done.returncode, done.stdout.strip(), done.stderr


def test_which_exit_codes_are_run_again():
  _, out, _ = sourced("for c in {0..255}; do if run_again $c; then echo $c; fi; done")
  assert tuple(map(int, out.split())) == AGAIN


@pytest.mark.parametrize(
  ("codes", "cause"),
  [
    ("0 0", 0),
    ("0 75", 75),
    ("134 137", 137),  # who was killed, not who noticed
    ("134 2", 2),
    ("134 1", 1),
    ("1 3", 3),
    ("134 139", 139),  # a crash would come back
    ("2 130", 130),
    ("75 143 75", 75),
    ("255 134 134", 255),
  ],
)
def test_the_cause_is_what_names_a_reason(codes, cause):
  assert sourced(f"cause {codes}")[1] == str(cause)


@pytest.mark.parametrize(
  ("plan", "code", "starts"),
  [
    ("0", 0, 1),
    ("75,0", 0, 2),
    ("134,0", 0, 2),
    ("kill,0", 0, 2),
    ("143,0", 0, 2),
    ("134,134,134,134,0", 134, 4),  # the first and three restarts
    ("75,75,75,75,0", 75, 4),
    ("130,0", 130, 1),
    ("75,130,0", 130, 2),
    *[(f"{code},0", code, 1) for code in (1, 2, 3, 4, 5, 74, 139)],
  ],
)
def test_runs_are_counted(stage, plan, code, starts):
  stage.plan(plan)
  found, err = stage.run("launch/local.sh", "1", "--", "train", "--workdir=a b", JAXKD_RESTARTS="3")
  assert (found, len(stage.starts())) == (code, starts)
  assert set(stage.starts()) == {"-u -m jaxkd.main train --workdir=a b"}
  assert err.count("; restart ") == starts - 1


def test_a_long_run_sets_the_count_back(stage):
  stage.plan("134,134,134,0")
  code, _ = stage.run("launch/local.sh", "1", "train", JAXKD_RESTARTS="1", JAXKD_RESTART_RESET="0")
  assert (code, len(stage.starts())) == (0, 4)


@pytest.mark.parametrize("value", ["-1", "x", "", "1 + 1", "08"])
def test_settings_are_checked(stage, value):
  stage.plan("0")
  if not value:
    assert stage.run("launch/local.sh", "1", "train", JAXKD_RESTARTS=value)[0] == 0  # empty is unset
    return
  code, err = stage.run("launch/local.sh", "1", "train", JAXKD_RESTARTS=value)
  assert (code, stage.starts()) == (2, [])
  assert f"error: JAXKD_RESTARTS is '{value}'" in err


HEARTBEAT = "UNAVAILABLE: Task 3 heartbeat timeout. This indicates that the remote task has failed"
GLOO = "ValueError: UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer [10.0.0.2]:30103"
REGISTER = "absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded  RPC: /xla.coordination.CoordinationService/RegisterTask"


@pytest.mark.parametrize(
  ("plan", "process", "code", "sentence"),
  [
    (f"log134 {HEARTBEAT}", 0, 134, "process 3 of 4 was lost: it stopped answering"),
    (f"log134 {REGISTER}", 0, 134, "not all of the 4 processes arrived in time"),
    (f"log134 {REGISTER}", 1, 134, "the coordinator node1:29400 did not answer in time"),
    (f"log134 {GLOO}", 2, 134, "a peer was lost: Gloo AllGather failed"),
    (
      f"log1 {GLOO}",
      2,
      134,
      "a peer was lost: Gloo AllGather failed",
    ),  # jax's exception counts as a lost peer
    ("log134 something else", 2, 134, "it aborted; what it wrote above says more"),
    ("log1 ValueError: a bug", 2, 1, "exit code 1 (a bug"),  # negative control: no other exception does
    (f"log3 {GLOO}", 2, 3, "exit code 3 (numeric failure)"),
  ],
)
def test_exit_134_becomes_a_sentence(stage, plan, process, code, sentence):
  stage.plan(*[""] * process, plan)
  found, err = stage.run(
    "launch/process.sh",
    "train",
    JAXKD_COORDINATOR="node1:29400",
    JAXKD_PROCESSES="4",
    JAXKD_PROCESS=str(process),
  )
  assert found == code
  assert sentence in err
  assert f"process {process} of 4 on " in err


def test_jax_lists_several_peers_on_a_line_of_their_own(stage):
  text = "The following tasks are unhealthy (stopped sending heartbeats):\n1, 3\nThe tasks have crashed."
  stage.program("jaxkd-two", f"#!/bin/sh\necho '{text}' >&2\nexit 134\n")
  code, err = stage.run(
    "launch/process.sh", "train", JAXKD_PROCESSES="4", JAXKD_PYTHON=str(stage.folder / "bin" / "jaxkd-two")
  )
  assert code == 134
  assert "launch: process 0: process 1, 3 of 4 was lost" in err


def test_one_process_that_aborts_has_lost_no_peer(stage):
  stage.plan("log134 Check failure")
  code, err = stage.run("launch/process.sh", "train")
  assert code == 134
  assert "was lost:" not in err
