"""SLURM, ssh and Open MPI with stubs of srun, scontrol, ssh and mpirun in PATH."""

import os
import re
import signal

import pytest

from tests.launch.stubs import ROOT, end, gone, needs_bash

pytestmark = needs_bash

# Two tasks, as srun would start them; its exit code is the largest.
SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$JAXKD_STUB/srun"
options=()
while [[ $1 == --* ]]; do options+=("$1"); shift; done
for i in 0 1; do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=2 SLURM_STEP_NODELIST=node[1-2] "$@" &
  pids[i]=$!
done
worst=0
for pid in "${pids[@]}"; do
  code=0; wait "$pid" || code=$?
  if ((code > worst)); then worst=$code; fi
done
exit "$worst"
"""
SCONTROL = '#!/bin/sh\necho "$*" >>"$JAXKD_STUB/scontrol"\nexit "${SCONTROL_CODE:-0}"\n'


@pytest.fixture
def slurm(stage):
  stage.program("srun", SRUN)
  stage.program("scontrol", SCONTROL)
  script = stage.folder / "slurm_script"  # SLURM runs a copy from its spool folder
  script.write_text((ROOT / "launch" / "slurm.sbatch").read_text())

  def sbatch(*plans, arguments=("train", "--workdir=a b"), **changes):
    stage.plan(*plans)
    job = {"SLURM_JOB_ID": "71", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_CPUS_PER_TASK": "12", **changes}
    return stage.run(script, *arguments, **job)

  return sbatch


def lines(stage, name):
  path = stage.folder / name
  return path.read_text().splitlines() if path.exists() else []


def test_slurm_tasks_find_their_place_themselves(stage, slurm):
  code, err = slurm("0", "0")
  assert code == 0, err
  assert lines(stage, "scontrol") == []
  assert [stage.got(i)["JAXKD_DISTRIBUTED"] for i in range(2)] == ["auto", "auto"]
  assert [stage.got(i)["SLURM_PROCID"] for i in range(2)] == ["0", "1"]
  assert stage.starts(0) == stage.starts(1) == ["-u -m jaxkd.main train --workdir=a b"]
  (call,) = lines(stage, "srun")
  assert "--kill-on-bad-exit=0" in call  # the first task that has saved must not end those that still write
  assert "--cpus-per-task=12" in call


def test_slurm_requeues_what_was_preempted_and_does_not_run_it_again_here(stage, slurm):
  code, err = slurm("75,0", "75,0")
  assert (code, lines(stage, "scontrol")) == (75, ["requeue 71"])
  assert len(stage.starts(0)) == 1
  assert "goes back into the queue" in err


def test_slurm_requeues_are_limited_and_may_be_refused(stage, slurm):
  code, err = slurm("75", "75", SLURM_RESTART_COUNT="3", JAXKD_REQUEUES="3")
  assert (code, lines(stage, "scontrol")) == (75, [])
  assert "already requeued 3 times" in err
  code, err = slurm("75,75", "75,75", SCONTROL_CODE="1")
  assert code == 75
  assert "SLURM refuses" in err


def test_slurm_runs_again_after_a_lost_process(stage, slurm):
  code, err = slurm("134,0", "kill,0")
  assert code == 0, err
  assert (len(stage.starts(0)), len(stage.starts(1)), lines(stage, "scontrol")) == (2, 2, [])
  assert "process 1 of 2 on " in err
  assert "ended with exit code 137 (killed" in err


@pytest.mark.parametrize("code", [2, 3, 130])
def test_slurm_ends_with_the_deciding_code_although_srun_names_the_largest(stage, slurm, code):
  found, _ = slurm(str(code), "134")
  assert (found, len(stage.starts(0)), lines(stage, "scontrol")) == (code, 1, [])


def test_slurm_limit_of_restarts(stage, slurm):
  found, _ = slurm("134,134,134", "134,134,134", JAXKD_RESTARTS="1")
  assert (found, len(stage.starts(0))) == (134, 2)


def test_slurm_outside_a_checkout_or_without_a_command(stage, slurm):
  code, err = slurm(SLURM_SUBMIT_DIR=str(stage.folder))
  assert code == 2
  assert "is no jaxkd checkout" in err
  code, err = slurm(arguments=())
  assert code == 2
  assert "error: no command given" in err


def test_slurm_header_signals_every_process_before_the_limit_and_may_be_requeued():
  header = re.findall(r"^#SBATCH (.*)$", (ROOT / "launch" / "slurm.sbatch").read_text(), re.MULTILINE)
  assert "--signal=TERM@300" in header  # without B:, which would signal this script alone
  assert {"--requeue", "--open-mode=append"} <= set(header)
  assert all(h.startswith("--") for h in header)


# --- ssh ---

# What sshd does: the line goes to a shell, in the home folder, without the caller's variables.
SSH = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do if [[ $1 == -o ]]; then shift; fi; shift; done
echo "$1" >>"$JAXKD_STUB/hosts"
shift
cd / && exec env -i PATH="$PATH" HOME="$HOME" JAXKD_STUB="$JAXKD_STUB" TMPDIR="$TMPDIR" bash -c "$*"
"""


def test_ssh_starts_one_process_on_each_host_and_hands_over_settings(stage):
  stage.program("ssh", SSH)
  stage.plan("75,0", "75,0")
  code, err = stage.run(
    "launch/ssh.sh", "me@node1,node2", "--", "train", "--workdir=a b'c", NCCL_IB_HCA="mlx5_0", OTHER="1"
  )
  assert code == 0, err
  assert sorted(lines(stage, "hosts")) == ["me@node1"] * 2 + ["node2"] * 2
  got = [stage.got(i) for i in range(2)]
  assert [(g["JAXKD_PROCESSES"], g["JAXKD_PROCESS"]) for g in got] == [("2", "0"), ("2", "1")]
  assert got[0]["JAXKD_COORDINATOR"] == got[1]["JAXKD_COORDINATOR"]
  assert got[0]["JAXKD_COORDINATOR"].startswith("node1:")
  assert got[1]["NCCL_IB_HCA"] == "mlx5_0"
  assert "OTHER" not in got[0]
  assert got[0]["PWD"] == str(ROOT)
  assert "JAX_LOCAL_DEVICE_IDS" not in got[0]
  assert stage.starts(1)[0] == "-u -m jaxkd.main train --workdir=a b'c"


def test_a_host_named_twice_gets_one_device_for_each_process(stage):
  stage.program("ssh", SSH)
  stage.plan("0", "0", "0")
  assert stage.run("launch/ssh.sh", "n1,n1,n2", "train")[0] == 0
  assert [stage.got(i).get("JAX_LOCAL_DEVICE_IDS") for i in range(3)] == ["0", "1", None]


def test_signals_cross_ssh_and_so_does_the_end_of_the_launcher(stage):
  stage.program("ssh", SSH)
  stage.plan("serve,serve", "serve,serve")
  launcher = stage.start("launch/ssh.sh", "n1,n2", "train")
  stage.wait_for("ready0", "ready1")
  assert end(launcher, signal.SIGTERM)[0] == 75
  assert [stage.signals(i) for i in range(2)] == [["TERM"], ["TERM"]]
  for i in range(2):
    (stage.folder / f"ready{i}").unlink()
  launcher = stage.start("launch/ssh.sh", "n1,n2", "train")
  pids = [stage.pid(i) for i in range(2)]
  launcher.kill()
  launcher.communicate(timeout=30)
  assert gone(*pids)


def test_a_lost_connection_is_a_lost_peer(stage):
  stage.program("ssh", SSH.replace("cd /", "[ $(wc -l <$JAXKD_STUB/hosts) -gt 1 ] || exit 255; cd /"))
  stage.plan("0")
  code, err = stage.run("launch/ssh.sh", "n1", "train")
  assert (code, len(lines(stage, "hosts"))) == (0, 2)
  assert "the connection to its host was lost" in err


def test_no_host_name_becomes_an_option_or_a_command(stage):
  for host in ("-oProxyCommand=x", "a;b", "$(x)", "n1,,n2", "n1,-x"):
    code, err = stage.run("launch/ssh.sh", host, "train")
    assert code == 2
    assert "is no host name" in err


# --- Open MPI ---

MPIRUN = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$JAXKD_STUB/mpirun"
while [[ $1 != bash && $1 != sh ]]; do if [[ $1 == -x ]]; then shift; fi; shift; done
for i in 0 1; do
  OMPI_COMM_WORLD_RANK=$i OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=$i OMPI_COMM_WORLD_LOCAL_SIZE=2 "$@" &
  pids[i]=$!
done
trap 'kill -TERM "${pids[@]}"' TERM
worst=0
for pid in "${pids[@]}"; do
  code=0; wait "$pid" || code=$?
  while kill -0 "$pid" 2>/dev/null; do code=0; wait "$pid" || code=$?; done
  if ((code > worst)); then worst=$code; fi
done
exit "$worst"
"""


def test_open_mpi_ranks_learn_their_place(stage):
  stage.program("mpirun", MPIRUN)
  stage.program("hostname", "#!/bin/sh\necho node7\n")
  stage.plan("75,0", "75,0")
  code, err = stage.run("launch/openmpi.sh", "-n", "2", "--hostfile", "h", "--", "train", NCCL_DEBUG="INFO")
  assert code == 0, err
  first, second = (stage.got(i) for i in range(2))
  assert (first["JAXKD_PROCESS"], second["JAXKD_PROCESS"], second["JAXKD_PROCESSES"]) == ("0", "1", "2")
  assert first["JAXKD_COORDINATOR"] == second["JAXKD_COORDINATOR"]
  assert re.fullmatch(r"node7:\d+", first["JAXKD_COORDINATOR"])
  assert second["JAX_LOCAL_DEVICE_IDS"] == "1"
  probe, *runs = lines(stage, "mpirun")
  assert probe.startswith("-n 2 --hostfile h sh -c")
  assert len(runs) == 2
  assert "-x NCCL_DEBUG" in runs[0]


def test_open_mpi_ends_with_the_deciding_code(stage):
  stage.program("mpirun", MPIRUN)
  stage.plan("2", "134")
  code, _ = stage.run("launch/openmpi.sh", "-n", "2", "--", "train")
  assert (code, len(stage.starts(0))) == (2, 1)


def test_open_mpi_launcher_asked_to_stop(stage):
  stage.program("mpirun", MPIRUN)
  stage.plan("serve,0", "serve,0")
  launcher = stage.start("launch/openmpi.sh", "-n", "2", "--", "train")
  pids = [stage.pid(i) for i in range(2)]
  code, err = end(launcher)
  assert code == 75, err
  assert gone(*pids)
  assert len(stage.starts(0)) == 1


def test_open_mpi_is_missing_or_has_no_command(stage):
  only = stage.folder / "few"
  only.mkdir()
  for name in ("bash", "dirname", "env"):
    os.symlink(f"/usr/bin/{name}", only / name)
  code, err = stage.run("launch/openmpi.sh", "-n", "2", "--", "train", PATH=str(only))
  assert code == 2
  assert "error: mpirun is not in PATH" in err
  assert stage.run("launch/openmpi.sh", "-n", "2")[0] == 2
