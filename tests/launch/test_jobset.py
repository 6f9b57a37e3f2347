"""The Kubernetes JobSet: its fields, what has to agree in it, and its exit codes beside the other launchers'."""

import copy
import json

import pytest
import yaml

from jaxkd import config as configs
from tests.launch.stubs import ROOT
from tests.launch.test_restart import AGAIN

jsonschema = pytest.importorskip("jsonschema")
SCHEMA = json.loads((ROOT / "tests/launch/jobset.schema.json").read_text())
JOBSET = yaml.safe_load((ROOT / "launch/k8s/jobset.yaml").read_text())


def problems(jobset):
  return [e.message for e in jsonschema.Draft202012Validator(SCHEMA).iter_errors(jobset)]


def parts(jobset):
  workers = jobset["spec"]["replicatedJobs"][0]
  job = workers["template"]["spec"]
  pod = job["template"]["spec"]
  return workers, job, pod, pod["containers"][0]


def disagreements(jobset):
  """What the API server or a run would trip over, and no schema can say."""
  workers, job, pod, container = parts(jobset)
  env = {e["name"]: e for e in container["env"]}
  network = jobset["spec"]["network"]
  host = f"{jobset['metadata']['name']}-{workers['name']}-0-0.{network['subdomain']}"
  port = container["ports"][0]["containerPort"]
  rule = job["podFailurePolicy"]["rules"][0]
  index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  facts = {
    "an index is the process": env["JAXKD_PROCESS"]["valueFrom"]["fieldRef"]["fieldPath"] == index,
    "pods are numbered": job["completionMode"] == "Indexed",
    "all run at once": job["parallelism"] == job["completions"],
    "as many as the processes": env["JAXKD_PROCESSES"]["value"]
    == str(job["completions"] * workers["replicas"]),
    "the coordinator is pod 0": env["JAXKD_COORDINATOR"]["value"] == f"{host}:{port}",
    "pods have names": network["enableDNSHostnames"] and network["publishNotReadyAddresses"],
    "no pod is replaced alone": job["backoffLimit"] == 0,
    "podFailurePolicy needs Never": pod["restartPolicy"] == "Never",
    "the rule is about our container": rule["onExitCodes"]["containerName"] == container["name"],
    "codes in ascending order": rule["onExitCodes"]["values"] == sorted(rule["onExitCodes"]["values"]),
    "mounts are volumes": {m["name"] for m in container["volumeMounts"]}
    == {v["name"] for v in pod["volumes"]},
    "the run folder is on the volume": any(
      a.startswith(f"--workdir={m['mountPath']}/")
      for a in container["args"]
      for m in container["volumeMounts"]
      if m["name"] == "runs"
    ),
  }
  return [what for what, holds in facts.items() if not holds]


def test_the_fields_are_jobset_s():
  assert problems(JOBSET) == []


def test_its_parts_agree():
  assert disagreements(JOBSET) == []


@pytest.mark.parametrize(
  "spoil",
  [
    lambda j: j["spec"].update(replicatedJob=[]),
    lambda j: j["spec"]["failurePolicy"]["rules"][0].update(action="Restart"),
    lambda j: parts(j)[1].update(completionMode="indexed"),
    lambda j: parts(j)[1].update(parallelism="2"),
    lambda j: parts(j)[1]["podFailurePolicy"]["rules"][0]["onExitCodes"].update(values=[75, 300]),
    lambda j: parts(j)[2].update(restartPolicy="Always"),
    lambda j: parts(j)[3]["env"][1].update(value=2),  # a number where Kubernetes wants a string
    lambda j: parts(j)[3].pop("image"),
    lambda j: parts(j)[2]["volumes"][0].update(emptyDir={}),
  ],
)
def test_the_schema_finds_mistakes(spoil):
  jobset = copy.deepcopy(JOBSET)
  spoil(jobset)
  assert problems(jobset)


@pytest.mark.parametrize(
  "spoil",
  [
    lambda j: parts(j)[1].update(completions=4),
    lambda j: j["metadata"].update(name="other"),
    lambda j: j["spec"]["network"].update(subdomain="other"),
    lambda j: parts(j)[2]["volumes"].pop(),
    lambda j: parts(j)[3].update(args=["train", "--workdir=runs"]),
  ],
)
def test_disagreements_are_found(spoil):
  jobset = copy.deepcopy(JOBSET)
  spoil(jobset)
  assert problems(jobset) == []
  assert disagreements(jobset)


def test_exit_codes_are_those_that_the_other_launchers_run_again():
  _, job, _, _ = parts(JOBSET)
  (rule,) = job["podFailurePolicy"]["rules"]
  assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
  assert set(rule["onExitCodes"]["values"]) == set(AGAIN) - {255}  # ssh's own
  (final,) = JOBSET["spec"]["failurePolicy"]["rules"]
  assert (final["action"], final["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
  assert JOBSET["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_what_the_container_runs_is_a_preset_of_this_checkout():
  _, _, _, container = parts(JOBSET)
  assert container["command"] == ["bash", "launch/process.sh"]
  assert container["args"][0] == "train"
  config = next(a.removeprefix("--config=") for a in container["args"] if a.startswith("--config="))
  assert configs.load(config, {}).model.name
