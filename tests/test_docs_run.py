"""Every command and Python block of README and docs is run, in its smoke form, page by page, in an empty folder.

The smoke form of a command is the command itself with a small run: `:smoke` for its config, few images and probes.
What cannot run here is listed with its reason.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxkd import config as configs
from jaxkd import main, models
from jaxkd.weights import styles, to_torch
from jaxkd.weights.cli import main as convert
from jaxkd.weights.safetensors_file import write_safetensors

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(bash|python)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:python -m jaxkd\.main|jaxkd) +")
CONVERT = re.compile(r"(?:python -m convert|jaxkd-convert) +")
NOT_RUN = {  # beginning of a line: why it is not run here
  "make ": "installs, or runs this very suite",
  ".ci/run": "runs this very suite",
  "pip install": "installs",
  "export ": "sets what tests/conftest.py sets",
  "launch/": "starts processes; tests/launch runs it",
  "sbatch ": "needs SLURM; tests/launch runs the script with stubs",
  "kubectl ": "needs Kubernetes; tests/launch checks the manifest against JobSet's schema",
}
NOT_RUN_WORDS = {  # somewhere in a line: why it is not run here
  "--coordinator": "one of several processes; tests/distributed runs them",
  "convert verify": "needs torch; tests/weights and tests/parity compare",
  "--style onnx": "needs jax2onnx; tests/weights exports where it is installed",
}
NOT_RUN_PYTHON = {
  "import torch": "trains a ResNet-18 in torch"
}  # somewhere in a block: why it is not run here
OWN = re.compile(r"# (\w+\.py)\n")  # the first line of a block that is a file
SMOKE = {  # options of commands that work with checkpoints
  "forensics": ("--metrics=attention,cka", "--images=16", "--hessian-images=10", "--probes=2"),
  "analyze": ("--metrics=attention", "--images=16", "--hessian-images=10", "--probes=2"),
  "plan": ("--no-compile",),
  "bank": ("--config.teachers.dino.bank=runs/banks/dino", "--config.data.augment.geometries=2"),
  "study": (
    "--piece=students/none_seed0",
    "--config.model.depth=1",  # that arm has no terms on blocks
    "--config.study.probes=2",
    "--config.study.hessian_images=10",
    "--config.study.images=16",
  ),
}
SMALL = {"resnet18_cifar": {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}}  # of foreign weights; else:
NARROW = {"width": 32, "depth": 2, "heads": 4}


def blocks(page: Path) -> list[tuple[str, str]]:
  """(language, text) of the page's bash and python blocks, in order."""
  return [(lang, text) for _, lang, text in BLOCK.findall(page.read_text())]


def lines(text: str) -> list[str]:
  joined = text.replace("\\\n", " ").splitlines()
  return [line.strip() for line in joined if line.strip() and not line.strip().startswith("#")]


def why_not(line: str) -> str:
  """The reason not to run `line`, or nothing."""
  starts = (r for s, r in NOT_RUN.items() if line.startswith(s))
  return next(starts, "") or next((r for w, r in NOT_RUN_WORDS.items() if w in line), "")


def smoke(words: list[str]) -> list[str]:
  """The words of a jaxkd command in its smoke form."""
  words = [smoke_config(w) if w.startswith("--config=") else w for w in words]
  # A setting for the whole run does not fit three steps of it.
  words = [w for w in words if not re.match(r"--config\.train\.(epochs|steps|batch_size)=", w)]
  name = words[0] if not words[0].startswith("-") else "train"
  given = {w.partition("=")[0] for w in words}
  more = [
    o for o in SMOKE.get(name, ()) if o.partition("=")[0] not in given and words[:2] != ["bank", "list"]
  ]
  if name == "study" and given & {"--pieces", "--piece"}:
    more = [o for o in more if not o.startswith("--piece=")]
  if any("--config.data.name=folder" in w or w.startswith("--config=mine.py") for w in words):
    more += ["--config.train.steps=2", "--config.train.batch_size=8", "--config.data.workers=0"]
  return [*words, *more]


def smoke_config(word: str) -> str:
  path, _, arg = word.removeprefix("--config=").partition(":")
  own = Path(path).is_file() and not path.startswith("configs/")  # a page's own file has no smoke form
  if own or path.endswith(("from_file.py", ".json", ".yaml", ".yml")) or "smoke" in arg.split(","):
    return word
  arg = ",".join(a for a in arg.split(",") if a and not a.startswith("epochs="))
  return f"--config={path}:{arg},smoke" if arg else f"--config={path}:smoke"


def run_line(line: str) -> None:
  """Runs one line of a bash block.

  Raises:
    AssertionError: it ends with another exit code than 0, or nothing here knows how to run it.
  """
  if COMMAND.match(line):
    words = smoke(shlex.split(COMMAND.sub("", line, count=1), comments=True))
    code = call(main.main, words)
  elif CONVERT.match(line):
    words = [
      w.replace(".pth", ".safetensors") for w in shlex.split(CONVERT.sub("", line, count=1), comments=True)
    ]
    code = call(convert, [*words, *foreign_weights(words)] if words[0] == "import" else words)
  elif line.startswith("python "):
    exec(compile(Path(line.split()[1]).read_text(), line, "exec"), {"__name__": "__main__"})
    return
  else:
    raise AssertionError(f"nobody knows how to run: {line}")
  assert code == 0, line


def call(command, words: list[str]) -> int:
  """`command(words)`, silent unless it fails."""
  said = io.StringIO()
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    code = command(words)
  if code:
    print(said.getvalue())
  return code


@pytest.fixture(scope="module")
def given(tmp_path_factory, optax_promotion):
  """What pages take for granted: two small runs, a folder of images."""
  root = tmp_path_factory.mktemp("given")
  with chdir(root):
    (root / "configs").symlink_to(ROOT / "configs")
    run_line("jaxkd --config=configs/quickstart.py --workdir=runs/quickstart")
    shutil.copytree("runs/quickstart", "runs/mine")
    image_folder(root / "mydata")
  return root


def foreign_weights(words: list[str]) -> list[str]:
  """Writes the file that `convert import` is to read, random weights of a small model; returns its `--option`s."""
  name, file = (words[words.index(option) + 1] for option in ("--model", "--weights"))
  options = SMALL.get(name, NARROW)
  model = models.create(name, **options)
  size, channels = model.image_size[0], model.in_channels
  variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, size, size, channels), np.float32))
  write_safetensors(Path(file), to_torch(name, variables, style=styles(name)[0]), {})
  shown = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in options.items()}
  return [f"--option={k}={v}" for k, v in shown.items() if f"{k}={v}" not in words]


def image_folder(root: Path) -> None:
  from PIL import Image

  rng = np.random.default_rng(0)
  for split, count in (("train", 12), ("test", 6)):
    for name in ("cats", "dogs"):
      (root / split / name).mkdir(parents=True)
      for i in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)).save(root / split / name / f"{i}.png")


@contextlib.contextmanager
def chdir(path: Path):
  before = Path.cwd()
  os.chdir(path)
  try:
    yield
  finally:
    os.chdir(before)


@pytest.fixture
def folder(given, tmp_path):
  """A page's own folder, with links to what is given, so that a page may make `runs/...` of its own."""
  for path in given.iterdir():
    if path.name != "runs":
      (tmp_path / path.name).symlink_to(path)
  (tmp_path / "runs").mkdir()
  for run in ("quickstart", "mine"):
    shutil.copytree(given / "runs" / run, tmp_path / "runs" / run)
  return tmp_path


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_everything_a_page_shows_runs(page, folder):
  made = {
    line.partition("--workdir=")[2].split()[0]
    for _, text in blocks(page)
    for line in lines(text)
    if "--workdir=" in line
  }
  for run in made & {"runs/quickstart", "runs/mine"}:
    shutil.rmtree(folder / run)  # the page makes it itself
  if any(lang == "python" and "mydata" in text for lang, text in blocks(page)):
    (folder / "mydata").unlink()
  namespace = names()
  with chdir(folder):
    for language, text in blocks(page):
      if language == "python":
        run_python(text, namespace)
        continue
      for line in lines(text):
        if not why_not(line):
          run_line(line)


def names() -> dict[str, object]:
  """What Python blocks may use without importing it."""
  model = models.create(
    "vit", width=16, depth=2, heads=2, image_size=16, patch_size=4, num_classes=4, in_channels=1
  )
  images = np.zeros((4, 16, 16, 1), np.float32)
  return {"jax": jax, "model": model, "images": images, "variables": model.init(jax.random.key(0), images)}


def run_python(text: str, namespace: dict) -> None:
  """Runs a block, or writes it where its first line names a file; a `get_config` in it must give a valid config."""
  if any(word in text for word in NOT_RUN_PYTHON):
    return
  if own := OWN.match(text):
    Path(own[1]).write_text(text)
  exec(compile(text, "block", "exec"), namespace)
  if "def get_config" in text:
    configs.validate(configs.complete(namespace["get_config"](None if own else "smoke")))


def test_every_reason_not_to_run_is_needed():
  shown = [line for page in PAGES for lang, text in blocks(page) if lang == "bash" for line in lines(text)]
  idle = [s for s in NOT_RUN if not any(line.startswith(s) for line in shown)]
  idle += [w for w in NOT_RUN_WORDS if not any(w in line for line in shown)]
  pythons = [text for page in PAGES for lang, text in blocks(page) if lang == "python"]
  idle += [w for w in NOT_RUN_PYTHON if not any(w in text for text in pythons)]
  assert not idle


@pytest.mark.usefixtures("optax_promotion")
def test_what_is_wrong_does_not_pass(folder):
  with chdir(folder):
    for line in ("jaxkd evaluate runs/nothing", "jaxkd-convert list --model nothing", "rm -r runs"):
      with pytest.raises(AssertionError):
        run_line(line)
