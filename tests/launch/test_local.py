"""Several processes on this machine: what each is told, and that all end, restart and stop together."""

import os
import signal
import time

import pytest

from tests.launch.stubs import end, gone, is_alive, needs_bash

pytestmark = needs_bash
LOCAL = ("launch/local.sh", "2", "--", "train")


def test_each_process_is_told_its_place(stage):
  stage.plan("0", "0")
  code, err = stage.run(*LOCAL, "--config=configs/x.py:a,b", "a b'c")
  assert code == 0, err
  places = [stage.got(i) for i in range(2)]
  assert [(p["JAXKD_PROCESSES"], p["JAXKD_PROCESS"]) for p in places] == [("2", "0"), ("2", "1")]
  assert places[0]["JAXKD_COORDINATOR"] == places[1]["JAXKD_COORDINATOR"]
  assert places[0]["JAXKD_COORDINATOR"].startswith("127.0.0.1:")
  assert stage.starts(0) == stage.starts(1) == ["-u -m jaxkd.main train --config=configs/x.py:a,b a b'c"]
  assert not any(
    "XLA_FLAGS" in p or "JAX_LOCAL_DEVICE_IDS" in p for p in places
  )  # a CPU gets no GPU settings


def test_one_process_coordinates_with_nobody(stage):
  stage.plan("0")
  assert stage.run("launch/local.sh", "1", "train")[0] == 0
  assert not [k for k in stage.got() if k in ("JAXKD_COORDINATOR", "JAXKD_PROCESSES", "JAXKD_PROCESS")]


@pytest.mark.parametrize(
  ("gpus", "count", "devices"),
  [(4, 4, ["0", "1", "2", "3"]), (4, 2, ["0,1", "2,3"]), (2, 1, [None])],
)
def test_gpus_are_shared_evenly_with_the_flags_for_them(stage, gpus, count, devices):
  stage.program("nvidia-smi", f'#!/bin/sh\nfor i in $(seq {gpus}); do echo "GPU $i: H100"; done\n')
  stage.plan(*["0"] * count)
  code, err = stage.run("launch/local.sh", str(count), "train", JAX_PLATFORMS="", XLA_FLAGS="--xla_mine=1")
  assert code == 0, err
  assert [stage.got(i).get("JAX_LOCAL_DEVICE_IDS") for i in range(count)] == devices
  flags = stage.got()["XLA_FLAGS"].split()
  assert "--xla_gpu_enable_latency_hiding_scheduler=true" in flags
  assert flags[-1] == "--xla_mine=1"  # the last mention of a flag counts: the user's


def test_gpus_that_cannot_be_shared_evenly(stage):
  code, err = stage.run("launch/local.sh", "3", "train", JAX_PLATFORMS="", CUDA_VISIBLE_DEVICES="0,1")
  assert code == 2
  assert "error: 3 processes cannot share 2 GPUs evenly" in err


@pytest.mark.parametrize("arguments", [(), ("2",), ("2", "--"), ("x", "train"), ("0", "train")])
def test_wrong_arguments(stage, arguments):
  code, err = stage.run("launch/local.sh", *arguments)
  assert code == 2
  assert err.startswith("error: ")
  assert "\nhint: " in err


def test_a_killed_process_ends_the_others_and_all_start_again(stage):
  """The survivor hangs, as in a collective: it is asked to end after the grace, then both start again."""
  stage.plan("serve,0", "serve,0")
  launcher = stage.start(*LOCAL, JAXKD_GRACE="1")
  victim, survivor = stage.pid(1), stage.pid(0)
  os.kill(victim, signal.SIGKILL)
  _, err = launcher.communicate(timeout=30)
  assert launcher.returncode == 0
  assert (len(stage.starts(0)), len(stage.starts(1))) == (2, 2)
  assert stage.signals(0) == ["TERM"]
  assert "process 1 of 2 was lost (killed" in err
  assert gone(victim, survivor)
  ports = [stage.got(0, n)["JAXKD_COORDINATOR"] for n in (1, 2)]
  assert ports[0] != ports[1]


def test_a_process_that_does_not_listen_is_killed(stage):
  stage.plan("deaf,0", "serve,0")
  launcher = stage.start(*LOCAL, JAXKD_GRACE="0")
  deaf, victim = stage.pid(0), stage.pid(1)
  os.kill(victim, signal.SIGKILL)
  started = time.monotonic()
  _, err = launcher.communicate(timeout=40)
  assert launcher.returncode == 0, err
  assert time.monotonic() - started < 20
  assert "SIGKILL" in err
  assert gone(deaf)


def test_what_fails_for_good_wins_over_what_it_caused(stage):
  stage.plan("134", "2")
  code, _ = stage.run(*LOCAL)
  assert (code, len(stage.starts(0)), len(stage.starts(1))) == (2, 1, 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_launcher_asked_to_stop_asks_each_process_once_and_restarts_none(stage, number, code):
  stage.plan("serve,0", "serve,0")
  launcher = stage.start(*LOCAL)
  stage.wait_for("ready0", "ready1")
  found, err = end(launcher, number)
  assert found == code, err
  assert [stage.signals(i) for i in range(2)] == [[number.name[3:]]] * 2
  assert len(stage.starts(0)) == 1


def test_a_killed_launcher_leaves_no_process_behind(stage):
  stage.plan("serve", "serve")
  launcher = stage.start(*LOCAL)
  pids = [stage.pid(i) for i in range(2)]
  assert all(map(is_alive, pids))
  launcher.kill()
  launcher.communicate(timeout=30)
  assert gone(*pids)
  assert [stage.signals(i) for i in range(2)] == [["TERM"], ["TERM"]]  # so that they save


def test_a_process_does_not_outlive_its_killed_guard(stage):
  stage.plan("deaf")
  guard = stage.start("launch/process.sh", "train")
  pid = stage.pid(0)
  guard.kill()
  assert gone(pid)
  guard.communicate(timeout=30)
