"""How a process learns that it is one of several: flags, environment, SLURM, Open MPI, Kubernetes."""

import pytest

from jaxkd import cluster
from jaxkd.cluster import Start, split_flags, wanted
from jaxkd.errors import UserError
from jaxkd.main import usage

SLURM = {
  "SLURM_JOB_ID": "70000",
  "SLURM_STEP_NODELIST": "gpu[007-008,12],login1",
  "SLURM_STEP_NUM_TASKS": "12",
  "SLURM_NTASKS": "12",
  "SLURM_PROCID": "9",
  "SLURM_LOCALID": "1",
  "SLURM_NODEID": "1",
  "SLURM_STEP_TASKS_PER_NODE": "8,2(x2)",
}
OPEN_MPI = {
  "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
  "OMPI_COMM_WORLD_SIZE": "4",
  "OMPI_COMM_WORLD_RANK": "3",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
ASKED = {"coordinator": "node1:29500", "processes": "4", "process": "2"}


def test_nothing_asked_and_nothing_found_is_one_process():
  assert wanted({}, {}) is None
  assert wanted({}, {"JAXKD_PROCESSES": "1"}) is None


def test_flags_are_taken_out_wherever_they_stand():
  argv = [
    "train",
    "--processes=2",
    "--config=a.py",
    "--process",
    "1",
    "--coordinator",
    "h:1",
    "--config.seed=3",
  ]
  rest, flags = split_flags([*argv, "--start-timeout=5"])
  assert rest == ["train", "--config=a.py", "--config.seed=3"]
  assert flags == {"processes": "2", "process": "1", "coordinator": "h:1", "start-timeout": "5"}
  with pytest.raises(UserError, match="--process has no value"):
    split_flags(["train", "--process"])


def test_flags_win_over_the_environment():
  environ = {"JAXKD_COORDINATOR": "other:1", "JAXKD_PROCESSES": "8", "JAXKD_PROCESS": "7"}
  assert wanted({}, environ) == Start("other:1", 8, 7)
  assert wanted(ASKED, environ) == Start("node1:29500", 4, 2)
  assert wanted({"process": "0"}, environ) == Start("other:1", 8, 0)


def test_timeouts():
  assert wanted({**ASKED, "start-timeout": "15"}, {"JAXKD_HEARTBEAT_TIMEOUT": "10"}) == Start(
    "node1:29500", 4, 2, start_timeout=15.0, heartbeat_timeout=10
  )
  with pytest.raises(UserError, match="JAXKD_HEARTBEAT_TIMEOUT=soon"):
    wanted(ASKED, {"JAXKD_HEARTBEAT_TIMEOUT": "soon"})


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ({"processes": "2"}, "--coordinator, --process is not given"),
    ({**ASKED, "process": "4"}, "--process=4 of --processes=4"),
    ({**ASKED, "process": "two"}, "--process=two is not a whole number"),
    ({**ASKED, "processes": "0"}, "--processes=0"),
    ({**ASKED, "coordinator": "node1"}, "'node1' is not HOST:PORT"),
    ({"distributed": "yes"}, "--distributed=yes is not known"),
    ({"distributed": "auto"}, "no task of srun, mpirun"),
  ],
)
def test_mistakes_are_named(flags, message):
  with pytest.raises(UserError, match=message):
    wanted(flags, {})


def test_a_task_of_srun_is_detected_without_being_asked():
  # jax's own choice of the port: 61440 + job modulo 4096. The second node has two tasks, so one accelerator for each.
  assert wanted({}, SLURM) == Start("gpu007:61808", 12, 9, (1,), "SLURM")
  assert 61440 + 70000 % 4096 == 61808
  alone = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x12)", "SLURM_LOCALID": "0"}
  assert wanted({}, alone).local_devices is None, "the only task of a node has all its accelerators"
  assert wanted({}, {**SLURM, "CUDA_VISIBLE_DEVICES": "3"}).local_devices is None, "the scheduler shows one"


def test_what_is_not_several_tasks_stays_alone():
  batch_script = {k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}
  assert wanted({}, batch_script) is None
  assert wanted({}, {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
  assert wanted({"distributed": "off"}, SLURM) is None


def test_a_list_of_nodes():
  lists = {"n1": "n1", "n1,n2": "n1", "n[001-15],x": "n001", "n[3,5]-ib": "n3-ib", "a-b,c[1-2]": "a-b"}
  assert {k: cluster.first_host(k) for k in lists} == lists


def test_a_rank_of_mpirun_is_detected():
  port = 61440 + 1531576320 // 4096 % 4096
  assert wanted({}, OPEN_MPI) == Start(f"10.96.0.1:{port}", 4, 3, (1,), "Open MPI")
  six = {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "4096.0;tcp6://[fe80::1,fe80::2]:43370"}
  assert wanted({}, six).coordinator == "[fe80::1]:61441"
  five = {k: v for k, v in OPEN_MPI.items() if "orte" not in k}
  with pytest.raises(UserError, match="--coordinator is not given"):
    wanted({}, five)
  assert wanted({"coordinator": "n:1"}, five) == Start("n:1", 4, 3, (1,), "Open MPI")
  here = wanted({}, {**five, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "prterun-a-1@1"})
  assert here.coordinator.startswith("127.0.0.1:6")


def test_jax_finds_the_same_in_those_variables(monkeypatch):
  """jax's detection is the reference for address, count and number."""
  from jax._src.clusters import ompi_cluster, slurm_cluster

  for environ, theirs in ((SLURM, slurm_cluster.SlurmCluster), (OPEN_MPI, ompi_cluster.OmpiCluster)):
    for name, value in environ.items():
      monkeypatch.setenv(name, value)
    assert theirs.is_env_present()
    ours = cluster.detect(environ)
    assert ours.coordinator == theirs.get_coordinator_address(timeout_secs=1, override_coordinator_port=None)
    assert (ours.processes, ours.process) == (theirs.get_process_count(), theirs.get_process_id())
    assert ours.local_devices == (theirs.get_local_process_id(),)


def test_a_pod_knows_its_number_and_is_told_the_rest():
  pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"}
  assert wanted({}, pod) is None
  told = {**pod, "JAXKD_COORDINATOR": "run-0.run:29500", "JAXKD_PROCESSES": "4", "JAXKD_DISTRIBUTED": "auto"}
  assert wanted({}, told) == Start("run-0.run:29500", 4, 3, source="Kubernetes")
  with pytest.raises(UserError, match="--coordinator, --processes is not given"):
    wanted({"distributed": "auto"}, pod)


def test_the_usage_lists_flags_and_variables():
  text = usage()
  for flag, variable in cluster.FLAGS.items():
    assert f"--{flag}" in text
    assert variable in text
