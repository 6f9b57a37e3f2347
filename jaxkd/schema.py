"""What a config may contain: every key with its type, default, range and meaning. No jax here."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Field:
  """One key: its type is that of `default` (for `None` defaults, `kind` says it)."""

  default: Any
  help: str
  low: float | None = None
  high: float | None = None
  choices: tuple | None = None
  kind: type | None = None
  above: float | None = None  # an exclusive lower limit
  items: type | None = None  # of a list that is empty by default; limits and choices are those of its items

  @property
  def item_type(self) -> type:
    """Of a list: the type of what is in it; text where the default does not say."""
    return self.items or (type(self.default[0]) if self.default else str)

  @property
  def type(self) -> type:
    return self.kind or type(self.default)


@dataclasses.dataclass(frozen=True)
class Each:
  """A section whose keys are the user's own names (teachers, terms, arms), each with the same schema."""

  schema: dict


@dataclasses.dataclass(frozen=True)
class Free:
  """A section with one known key and otherwise the options of what that key names (checked where it is built)."""

  fields: dict


# Keeps counts of steps within an int32.
MOST_EPOCHS = 1e5
HEADS = ("logits/cls", "logits/dist", "logits")
VIEWS = ("aligned", "clean", "same")
# "_color" has the photometric operations only; the others rotate, shear and shift as well (jaxkd.data.policies).
POLICIES = ("autoaugment", "autoaugment_svhn", "autoaugment_imagenet", "randaugment", "trivialaugment")
COLOR_POLICIES = tuple(f"{name}_color" for name in POLICIES)
GREY_SETS = ("digits", "mnist", "mnist_json", "fashion_mnist", "kmnist", "idx")
# Digits and letters; and shapes whose mirrored texture is another class's.
NOT_MIRRORED = ("digits", "mnist", "mnist_json", "kmnist", "svhn", "idx", "synthetic_shapes")

DATA = {
  "name": Field("digits", "data set: a name of jaxkd.data.sources.SOURCES, or `tfds:NAME`"),
  "root": Field("", "folder or file that holds it (`digits` and the synthetic sets need none)"),
  "download": Field(False, "fetch published files that `root` lacks"),
  "sha256": Field((), "digests that files of `root` must have: 'NAME=HEX', ..."),
  "image_size": Field(0, "side of the (square) image in pixels; 0 is the source's own", low=0, high=1024),
  "channels": Field(0, "1 (grey) or 3 (RGB); 0 is the source's own", choices=(0, 1, 3)),
  "order_seed": Field(-1, "seed of the data order; -1 is the run's own `seed`", low=-1),
  "split_seed": Field(0, "seed of the stratified train/validation/test split", low=0),
  "validation": Field(0.1, "share of the images held out for validation", above=0.0, high=0.5),
  "test": Field(0.2, "share sealed for testing where the source has no test split", above=0.0, high=0.5),
  "subset": Field(1.0, "share of each class's training images that is used", above=0.0, high=1.0),
  "per_class": Field(0, "training images used of each class; 0 is all", low=0),
  "placement": Field(
    "auto",
    "training images: all on each device / streamed by batch; `auto` goes by their size (docs/data.md)",
    choices=("auto", "device", "streamed"),
  ),
  "device_gib": Field(4.0, "`auto` keeps training images up to this size on each device", low=0.0),
  "workers": Field(0, "processes that decode streamed image files; 0 is threads of this one", low=0),
  "statistics": Field("train", "normalise by: the training images / published", choices=("train", "known")),
  "on_error": Field("stop", "an undecodable image file; skipping stops above 1 %", choices=("stop", "skip")),
  "examples": Field(640, "number of images of the synthetic data sets", low=40),
  "classes": Field(10, "number of classes of the synthetic data sets", low=2),
  "local_strength": Field(1.0, "`synthetic_shapes`: how often the texture says the class", low=0.0, high=1.0),
  "global_strength": Field(
    1.0, "`synthetic_shapes`: how often the arrangement says the class", low=0.0, high=1.0
  ),
  "global_shift": Field(
    0.5, "`synthetic_shapes`: how often the arrangement is displaced as a whole", low=0.0, high=1.0
  ),
  "augment": {
    "geometries": Field(
      0, "fixed geometries per training image, as a feature bank needs; 0 is fresh ones", low=0
    ),
    "crop": Field(0, "geometry: pad by so many pixels, then crop at random", low=0),
    "flip": Field(False, "geometry: mirror left-right with probability 1/2 (not for digits)"),
    "rotation": Field(0.0, "geometry: degrees drawn from [-x, x]", low=0.0, high=180.0),
    "translate": Field(0.0, "geometry: shift of up to x of the side, in whole pixels", low=0.0, high=1.0),
    "scale": Field((1.0, 1.0), "geometry: range of magnifications about the centre; (1, 1) is none"),
    "shear": Field(0.0, "geometry: horizontal, degrees drawn from [-x, x]", low=0.0, high=80.0),
    "policy": Field(
      "none",
      "operations drawn for each image, see jaxkd.data.policies",
      choices=("none", *POLICIES, *COLOR_POLICIES),
    ),
    "policy_count": Field(2, "`randaugment`: operations per image", low=1, high=8),
    "policy_magnitude": Field(9, "`randaugment`: strength, 0 to 30", low=0, high=30),
    "repeats": Field(
      1, "how often an image is in its batch, augmented differently each time", low=1, high=16
    ),
    "brightness": Field(0.0, "photometry: factor drawn from [1-x, 1+x]", low=0.0, high=1.0),
    "contrast": Field(0.0, "photometry: factor drawn from [1-x, 1+x]", low=0.0, high=1.0),
    "saturation": Field(
      0.0, "photometry: factor drawn from [1-x, 1+x]; grey images have none", low=0.0, high=1.0
    ),
    "hue": Field(0.0, "photometry: turn drawn from [-x, x]; grey images have none", low=0.0, high=0.5),
    "jitter": Field(
      1.0, "photometry: probability of brightness, contrast, saturation and hue, together", low=0.0, high=1.0
    ),
    "grayscale": Field(0.0, "photometry: probability of losing colour", low=0.0, high=1.0),
    "blur": Field(
      0.0, "photometry: probability of a Gaussian blur, sigma 0.1 to 2 pixels", low=0.0, high=1.0
    ),
    "solarize": Field(0.0, "photometry: probability of inverting the brighter half", low=0.0, high=1.0),
    "erase": Field(
      0.0,
      "photometry: probability of one rectangle (2 to 33 % of the area) set to the mean",
      low=0.0,
      high=1.0,
    ),
    "cutout": Field(0, "photometry: side in pixels of one square set to the mean", low=0),
    "mixup": Field(0.0, "MixUp with shares from Beta(x, x); 0 is none", low=0.0, high=100.0),
    "cutmix": Field(0.0, "CutMix with areas from Beta(x, x); 0 is none", low=0.0, high=100.0),
    "mix_per_sample": Field(False, "one share for each image instead of one for the batch"),
  },
  "views": {
    "global_count": Field(1, "views per image of the full size", low=1, high=4),
    "global_scale": Field((1.0, 1.0), "area range of a random resized crop; (1, 1) is none"),
    "local_count": Field(0, "further small crops per image (multi-crop)", low=0, high=16),
    "local_size": Field(8, "side of a small crop in pixels: a multiple of the patch", low=2),
    "local_scale": Field((0.2, 0.5), "area range of a small crop"),
    "recipe": Field(
      "none",
      "blur and solarize by view instead of by `augment`: `dino` is DINO's (docs/data.md)",
      choices=("none", "dino"),
    ),
  },
}

TEACHER = {
  "weights": Field(
    "",
    "a jaxkd run or checkpoint, a .safetensors or .pth file, `hub:NAME`, or `ema`: the student's own average",
  ),
  "model": Free({"name": Field("", "name and options of the model of a weights file")}),
  "sha256": Field("", "refuse other weights (8 or more digits)"),
  "bank": Field("", "folder of its feature bank, built on first use; empty is a live teacher"),
  "size": Field(0, "side in pixels to which its images are resized; 0 is its own rule", low=0, high=4096),
  "view": Field(
    "aligned", "what it sees: same geometry / un-augmented / exactly the student's image", choices=VIEWS
  ),
}

TERM = {
  "kind": Field("cross_entropy", "the loss (see the table of kinds)"),
  "weight": Field(1.0, "weight in the total loss", low=0.0),
  "initial_weight": Field(0.0, "weight before `start_epoch`", low=0.0),
  "start_epoch": Field(0.0, "epochs before the term starts", low=0.0, high=MOST_EPOCHS),
  "warmup_epochs": Field(0.0, "epochs of a linear rise to `weight` after that", low=0.0, high=MOST_EPOCHS),
  "schedule": Field(
    "constant",
    "from `weight` to `end_weight` over the rest of the run",
    choices=("constant", "linear", "cosine"),
  ),
  "end_weight": Field(0.0, "weight at the last step (`schedule` linear or cosine)", low=0.0),
  "teacher": Field("", "name of the teacher whose taps are the target"),
  "ensemble": Field((), "further teachers, averaged with it in probability space (terms on logits)"),
  "student_taps": Field((), "the student's tap names"),
  "teacher_taps": Field(
    (), "the teacher's, one for each of the student's; empty pairs layers by relative depth"
  ),
  "layer_weights": Field(
    (), "weight of each pair of taps; empty means equal weights with sum 1", low=0.0, items=float
  ),
  "head": Field("none", "student-side projection", choices=("none", "linear", "mlp")),
}

# What each kind of term needs besides the common fields: its own options, and what its taps must be.
KINDS = {
  "cross_entropy": {"smoothing": Field(0.0, "label smoothing", low=0.0, high=0.999)},
  "soft_kd": {"temperature": Field(4.0, "softmax temperature", above=0.0)},
  "hard_kd": {},
  "dkd": {
    "alpha": Field(1.0, "weight of the target class's part", low=0.0),
    "beta": Field(8.0, "weight of the other classes' part", low=0.0),
    "temperature": Field(4.0, "softmax temperature", above=0.0),
  },
  "dist": {
    "beta": Field(1.0, "weight of the correlation over classes", low=0.0),
    "gamma": Field(1.0, "weight of the correlation over samples", low=0.0),
    "temperature": Field(1.0, "softmax temperature", above=0.0),
  },
  "ofa": {
    "epsilon": Field(1.0, "exponent that enhances the target class", above=0.0),
    "temperature": Field(1.0, "softmax temperature", above=0.0),
  },
  "token_cosine": {
    "metric": Field("cosine", "distance of two tokens", choices=("cosine", "mse")),
    "whiten": Field(False, "whiten the teacher's space, fitted once on training images"),
  },
  "correlation": {
    "temperature": Field(0.1, "softmax temperature of a row of similarities", above=0.0),
    "direction": Field("student||teacher", "KL", choices=("student||teacher", "teacher||student")),
    "over": Field("tokens", "similarities between", choices=("tokens", "samples")),
    "metric": Field("kl", "distance of two matrices", choices=("kl", "frobenius")),
    "keep_diagonal": Field(False, "leave the self-similarity in the softmax"),
  },
  "cka": {
    "kernel": Field("linear", "Gram matrix", choices=("linear", "rbf")),
    "debiased": Field(True, "the U-centred estimator (biased is the published one)"),
    "over": Field("tokens", "rows of the Gram matrix", choices=("tokens", "samples")),
  },
  "gram": {"published": Field(False, "scale by n^2 as published, which makes the term inert")},
  "rkd": {
    "distance_weight": Field(25.0, "weight of the distances between samples", low=0.0),
    "angle_weight": Field(50.0, "weight of the angles between samples", low=0.0),
  },
  "attention_transfer": {},
  "similarity_preserving": {},
  "locality": {
    "targets": Field(
      (), "attention distance wanted of each of `student_taps` (blockNN/attn)", low=0.0, items=float
    ),
    "relative": Field(True, "targets are shares of uniform attention's distance; else patches"),
  },
  "dino": {
    "prototypes": Field(256, "output size of the prototype head", low=2),
    "hidden": Field(256, "width of the head's hidden layers", low=1),
    "bottleneck": Field(64, "width of the normalised bottleneck", low=1),
    "student_temperature": Field(0.1, "softmax temperature of the student", above=0.0),
    "teacher_temperature": Field(0.07, "softmax temperature of the teacher after warm-up", above=0.0),
    "teacher_temperature_start": Field(0.04, "softmax temperature of the teacher at step 0", above=0.0),
    "temperature_warmup_epochs": Field(
      10.0, "epochs of linear warm-up of the teacher's", low=0.0, high=MOST_EPOCHS
    ),
    "center_momentum": Field(0.9, "momentum of the running centre", low=0.0, high=1.0),
  },
}
LABEL_KINDS = ("cross_entropy", "locality")  # these need no teacher
# What these relate across the samples of a batch; `correlation` and `cka` do so with over=samples.
COUPLED_KINDS = {
  "rkd": "distances and angles between samples",
  "similarity_preserving": "similarities of samples",
  "dist": "correlation over samples",
  "dino": "the centre of the teacher's outputs",
}
LOGIT_KINDS = ("soft_kd", "hard_kd", "dkd", "dist", "ofa")
TOKEN_KINDS = (
  "token_cosine",
  "correlation",
  "cka",
  "gram",
  "rkd",
  "attention_transfer",
  "similarity_preserving",
)

OPTIM = {
  "name": Field("adamw", "optimiser", choices=("adamw", "adam", "sgd", "rmsprop", "lion", "muon")),
  "lr": Field(1e-3, "peak learning rate", above=0.0, high=100.0),
  "lr_scaling": Field(
    "none", "`lr` times images per update / `lr_base_batch`, or its root", choices=("none", "linear", "sqrt")
  ),
  "lr_base_batch": Field(256, "images per update for which `lr` is given", low=1),
  "schedule": Field(
    "cosine",
    "after the warm-up (docs/schedules.md)",
    choices=("cosine", "constant", "linear", "step", "exponential", "one_cycle", "cyclic", "plateau"),
  ),
  "warmup_epochs": Field(1.0, "epochs of linear warm-up", low=0.0, high=MOST_EPOCHS),
  "final_lr": Field(
    0.0,
    "cosine, linear, one_cycle: the last, plateau: the lowest learning rate as a share of `lr`",
    low=0.0,
    high=1.0,
  ),
  "initial_lr": Field(
    0.04, "one_cycle: the first, cyclic: the lowest learning rate as a share of `lr`", low=0.0, high=1.0
  ),
  "milestones": Field(
    (),
    "step: epochs since the start of training at which the learning rate drops",
    above=0.0,
    high=MOST_EPOCHS,
    items=float,
  ),
  "milestone_gamma": Field(0.1, "step: factor at each milestone", above=0.0, high=1.0),
  "epoch_gamma": Field(0.95, "exponential: factor per epoch", above=0.0, high=1.0),
  "rise": Field(0.3, "one_cycle: share of the updates in which it rises", above=0.0, high=0.99),
  "cycle_epochs": Field(10.0, "cyclic: epochs of one triangle, up and down", above=0.0, high=MOST_EPOCHS),
  "plateau_factor": Field(0.1, "plateau: factor at each cut", above=0.0, high=0.999),
  "plateau_patience": Field(10, "plateau: validations without improvement before a cut", low=0),
  "plateau_threshold": Field(1e-4, "plateau: relative rise of `eval.metric` that counts", low=0.0, high=1.0),
  "plateau_cooldown": Field(0, "plateau: validations after a cut that do not count", low=0),
  "weight_decay": Field(
    0.05,
    "decoupled (adamw, lion, muon) or added to the gradient (adam, sgd, rmsprop), as torch",
    low=0.0,
    high=1.0,
  ),
  "decay_all": Field(False, "also decay biases, norms, tokens and positions"),
  "layer_decay": Field(1.0, "factor of the learning rate per block below the head", above=0.0, high=1.0),
  "freeze": Field((), "regular expressions: model parameters whose whole path matches stay as they are"),
  "accumulate": Field(1, "steps (each of train.batch_size images) whose mean gradient is one update", low=1),
  "momentum": Field(0.9, "sgd", low=0.0, high=0.9999),
  "nesterov": Field(True, "sgd: Nesterov's momentum instead of the plain one"),
  "beta1": Field(0.9, "adam, adamw, lion, muon's AdamW", low=0.0, high=0.9999),
  "beta2": Field(0.999, "adam, adamw, muon's AdamW", low=0.0, high=0.99999),
  "eps": Field(1e-8, "adam, adamw, rmsprop, muon's AdamW: added to the root, not under it", above=0.0),
  "rmsprop_decay": Field(0.99, "decay of the mean square of the gradient", low=0.0, high=0.99999),
  "rmsprop_momentum": Field(0.0, "momentum of the scaled gradient", low=0.0, high=0.9999),
  "lion_beta2": Field(0.99, "decay of the momentum", low=0.0, high=0.99999),
  "muon_momentum": Field(
    0.95, "Nesterov momentum of the kernels that are orthogonalised", low=0.0, high=0.9999
  ),
  "clip": Field(1.0, "limit of the global norm of the trained parameters' gradient; 0 is none", low=0.0),
  "sam_rho": Field(
    0.0, "radius of sharpness-aware minimisation, two gradients per step; 0 is none", low=0.0, high=10.0
  ),
}

TRAIN = {
  "epochs": Field(30.0, "passes over the training images", above=0.0, high=MOST_EPOCHS),
  "steps": Field(0, "number of steps; 0 means: from `epochs`", low=0),
  "batch_size": Field(128, "images per step, over all devices", low=1),
  "ema": Field(0.0, "decay of the moving average of the parameters; 0 is none", low=0.0, high=1.0),
  "ema_end": Field(0.0, "decay reached on a cosine at the last step; 0 means constant", low=0.0, high=1.0),
  "swa_start_epoch": Field(
    0.0, "epoch from which parameters are averaged (SWA) for inference; 0 is never", low=0.0, high=MOST_EPOCHS
  ),
  "swa_every_epochs": Field(
    1.0, "epochs between two parameters of that average", above=0.0, high=MOST_EPOCHS
  ),
  "patience": Field(
    0, "validations without a better `eval.metric` after which the run stops; 0 is never", low=0
  ),
  "steps_per_call": Field(1, "steps in one dispatch; fewer where a log, validation or save is due", low=1),
  "replicas": Field(
    (),
    "seeds of students trained in one program, in one data order; empty is one student",
    low=0,
    items=int,
  ),
  "remat": Field(
    "none",
    "recompute the student's blocks in the backward pass: less memory, a third more work",
    choices=("none", "blocks"),
  ),
  "max_skips": Field(0, "non-finite steps that are skipped before the run stops", low=0),
}

RUN = {
  "seed": Field(0, "seed of initial weights, data order and augmentation", low=0),
  "data": DATA,
  "model": Free({"name": Field("deit_tiny", "a name of jaxkd.models")}),
  "init": {
    "weights": Field("", "start from these model weights: as `teachers.*.weights`; empty is a fresh start"),
    "sha256": Field("", "refuse other weights (8 or more digits)"),
    "allow": Field((), "regular expressions: whole paths (`head/.*`) that may differ and then start fresh"),
  },
  "teachers": Each(TEACHER),
  "terms": Each(TERM),
  "optim": OPTIM,
  "train": TRAIN,
  "precision": {
    "compute": Field("float32", "dtype of the forward and backward pass", choices=("float32", "bfloat16")),
    "matmul": Field(
      "default",
      "of float32 products in a training step: on NVIDIA GPUs `default` is TF32 (10 bits), `high` three of them, "
      "`highest` true float32; CPUs always compute float32",
      choices=("default", "high", "highest"),
    ),
  },
  "bank": {
    "dtype": Field("bfloat16", "of stored features", choices=("bfloat16", "float32")),
    "place": Field("auto", "device memory, or mapped from disk", choices=("auto", "device", "disk")),
    "device_gib": Field(16.0, "`auto` keeps banks up to this size on each device", low=0.0),
    "batch_size": Field(64, "images per teacher call while building", low=1),
  },
  "sharding": {
    "fsdp": Field(1, "devices over which parameters are split", low=1),
  },
  "eval": {
    "every_epochs": Field(5.0, "epochs between validations", above=0.0, high=MOST_EPOCHS),
    "batch_size": Field(256, "images per evaluation call", low=1),
    "metric": Field(
      "accuracy_cls",
      "selects the best checkpoint on validation; `none` takes the last",
      choices=("accuracy_cls", "accuracy", "none"),
    ),
  },
  "log": {
    "every_steps": Field(0, "steps between rows of metrics.jsonl; 0 means: once an epoch", low=0),
    "wandb": Field("", "project of Weights & Biases (extra `wandb`) to which rows go too; empty is none"),
    "shares_every": Field(5, "log rows between two measurements of the gradient shares; 0 is never", low=0),
  },
  "checkpoint": {
    "every_epochs": Field(5.0, "epochs between checkpoints", above=0.0, high=MOST_EPOCHS),
    "keep": Field(2, "newest checkpoints kept (the best one is kept besides)", low=1),
  },
}

ARM = {
  "label": Field("", "name in tables and figures"),
  "description": Field("", "one line: what this student learns from"),
  "teachers": Each(TEACHER),
  "terms": Each(TERM),
}

# Of `jaxkd.analysis.forensics.METRICS`, those that give numbers.
METRICS = (
  "hessian",
  "heads",
  "eigenvalues",
  "landscape",
  "attention",
  "classes",
  "cka",
  "rbf",
  "alignment",
  "probes",
  "locality",
  "robustness",
)

STUDY = {
  **RUN,
  "study": {
    "name": Field("study", "title of the report"),
    "seeds": Field((0, 1, 2), "one matched set of students for each", low=0),
    "replicas": Field(False, "train the seeds of an arm in one program (docs/training.md)"),
    "baseline": Field("none", "the arm the others are compared with"),
    "teachers": Each({"label": Field("", "name in tables and figures"), "run": RUN}),
    "arms": Each(ARM),
    "claims": Field((), "orderings to test: 'metric: armA < armB < armC'"),
    "hessian_images": Field(100, "images of the fixed class-balanced sample", low=10),
    "probes": Field(30, "Hutchinson probes per model", low=2),
    "images": Field(256, "test images for attention and CKA", low=16),
    "metrics": Field(
      ("hessian", "attention", "cka"),
      "analyses of the report's forensics; docs/forensics.md",
      choices=METRICS,
    ),
  },
}
