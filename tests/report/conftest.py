"""Made-up inputs of realistic shape for the report: the numbers are test data and mean nothing."""

import math

import numpy as np
import pytest

THREE = ("Baseline", "CNN-Distilled", "DINO-Distilled")
LONG = "student-with-a-name-of-exactly-eighty-characters_without_any_spaces_in_it_at_all"
SPACED = "A student whose long name is made of words with spaces, eighty characters of it."
NASTY = "<script>alert('x')</script>\u202e\x07 $x$ & co"
EIGHT = (*THREE, LONG, SPACED, NASTY, "Teacher", "W" * 80)


def _matrix(rng, rows, columns, low, high):
  return rng.uniform(low, high, (rows, columns)).round(4).tolist()


def _attention(rng, shift, layers, heads):
  distance = np.clip(
    rng.normal(2.6 + shift, 0.8, (layers, heads)) + np.linspace(-0.6, 0.7, layers)[:, None], 0.4, 4.4
  )
  return dict(
    images=360,
    uniform_distance=4.1365,
    mean_distance=distance.tolist(),
    distance_to_uniform=(distance / 4.1365).tolist(),
    entropy=_matrix(rng, layers, heads, 2.0, 4.0),
    cls_dispersion=_matrix(rng, layers, heads, 6, 10.5),
    cls_self_attention=_matrix(rng, layers, heads, 0.05, 0.3),
    collapsed=(distance < 1.5).tolist(),
    layer_distance=dict(mean=distance.mean(1).tolist(), stderr=rng.uniform(0.01, 0.08, layers).tolist()),
  )


def forensics(names=THREE, *, layers=4, heads=3, cnn=()):
  """A forensics result; models named in `cnn` have no attention."""
  rng = np.random.default_rng(len(names))
  models = []
  for k, name in enumerate(names):
    value = 0.90 + 0.01 * (k % 6)
    blocks = ["patch", *(f"block{i:02d}" for i in range(layers)), "norm", "head"]
    models.append(
      dict(
        name=name,
        checkpoint=f"runs/digits/arm{k}/seed0",
        model="deit",
        parameters=5_365_076 + k,
        digest=f"{k:064x}",
        grid=[8, 8],
        special_tokens=2,
        step=1500,
        differs={} if k == 0 else {"terms.kd.weight": 0.5, "terms.kd.kind": "soft_kd"},
        accuracy={
          h: dict(value=value + d, low=value + d - 0.03, high=value + d + 0.02)
          for h, d in (("cls", 0), ("dist", -0.013), ("mean", 0.006))
        },
        hessian=dict(
          trace=120.0 - 17 * k,
          stderr=4.5 + k,
          probes=30,
          images=100,
          loss=0.2,
          per_block={b: [30.0 / (i + 1) - 0.4 * (b == "norm"), 1.0] for i, b in enumerate(blocks)},
        ),
        attention=None if name in cnn else _attention(rng, 0.3 * (k % 4) - 0.4, layers, heads),
      )
    )
  cka = []
  for i, a in enumerate(names):
    for b in names[i:]:
      base = np.abs(np.subtract.outer(np.arange(layers), np.arange(layers)))
      matrix = np.exp(-0.35 * base) - (0 if a == b else rng.uniform(0.05, 0.5, base.shape))
      labels = [f"block{x:02d}/tokens" for x in range(layers)]
      cka.append(
        dict(
          a=a,
          b=b,
          layers_a=labels,
          layers_b=labels,
          matrix=matrix.tolist(),
          images=360,
          estimator="debiased linear",
          kernel="linear",
          stderr=np.full_like(matrix, 0.01).tolist(),
        )
      )
  return dict(
    schema="jaxkd.forensics/2",
    date="2026-11-22",
    command="python -m jaxkd.main forensics A B C",
    hardware="CPU, 2 cores",
    versions={"jaxkd": "0.1.0", "jax": "0.10.2"},
    data=dict(name="digits", split="test", images=360, classes=10),
    models=models,
    cka=cka,
  )


def _band(rng, centre, spread, shape):
  value = rng.normal(centre, spread, shape)
  return dict(value=value.tolist(), low=(value - spread).tolist(), high=(value + spread).tolist())


def evidence(result, *, classes=10):
  """The result with every further kind of evidence, and pictures for it."""
  rng = np.random.default_rng(3)
  for m in result["models"]:
    attention = m["attention"]
    layers = len(attention["mean_distance"]) if attention else 3
    names = [f"block{i:02d}" if attention else f"stage{i}" for i in range(layers)]
    if attention:
      statistics = ("mean_distance", "rollout_distance_to_uniform")
      attention["layers"] = {n: _band(rng, 2.0, 0.1, layers) for n in statistics}
      attention["model"] = {n: _band(rng, 2.0, 0.1, ()) for n in ("mean_distance", "collapsed_heads")}
      attention["by_class"] = {"mean_distance": _band(rng, 2.0, 0.1, classes)}
    m["hessian"]["per_type"] = {t: [9.0, 1.0] for t in ("attention projection", "mlp", "squeeze excite")}
    m["hessian"]["per_head"] = {f"{n}/head{h}": [float(h), 1.0] for n in names for h in range(3)}
    points = np.linspace(-5, 30, 50)
    density = dict(points=points.tolist(), value=np.exp(-(points**2)).tolist(), stderr=[0.0] * 50)
    m["eigenvalues"] = dict(
      values=[30.0, 20.0, 10.0, 5.0, 4.0], errors=[0.1] * 5, negative_share=[0.1, 0.01], density=density
    )
    steps = np.linspace(-1, 1, 5)
    balls = dict(
      plain=dict(rho=0.05, value=0.5, one_step=0.5), adaptive=dict(rho=0.5, value=0.6, one_step=0.6)
    )
    plane = (0.1 + np.add.outer(steps**2, steps**2)).tolist()
    ggn = dict(trace=40.0, stderr=2.0, probes=10)
    m["landscape"] = dict(steps=steps.tolist(), plane=plane, sharpness=balls, ggn=ggn)
    m["receptive_field"] = dict(
      images=32,
      layers=names,
      mean_distance=_band(rng, 5.0, 0.5, layers),
      uniform_distance=[8.2] * layers,
      radius={"0.5": [3.0] * layers, "0.9": [6.0] * layers},
      energy=rng.uniform(0, 1, (8, 8)).tolist(),
    )
    frequencies = [0.0, 0.5, 1.0]
    m["spectrum"] = dict(
      images=64, layers={n: dict(frequencies=frequencies, **_band(rng, -2.0, 0.1, 3)) for n in names}
    )
    shares = (0.0, 0.5, 1.0)
    m["robustness"] = {
      kind: [
        dict(patch=4, share=s, moved=1, value=0.9 - s / 2, low=0.85 - s / 2, high=0.95 - s / 2)
        for s in shares
      ]
      for kind in ("shuffle", "occlude")
    }
    conflict = dict(value=0.7, low=0.6, high=0.8)
    m["robustness"]["cue_conflict"] = dict(
      global_share=conflict, follow_global=70, follow_local=30, neither=9
    )
    probe = [dict(value=0.8, low=0.75, high=0.85) for _ in names]
    m["probes"] = dict(train_images=1000, images=360, layers=names, knn=probe, linear=probe)
  first, *others = (m["name"] for m in result["models"])
  result["alignment"] = [
    dict(
      a=first,
      b=b,
      layers_a=["block00", "block01"],
      layers_b=["block00"],
      procrustes=[[0.4], [0.5]],
      mutual_knn=[[0.2], [0.3]],
      k=10,
      images=360,
    )
    for b in others[:2]
  ]
  metrics = ("accuracy_cls", "mean_distance", "hessian_trace")
  result["comparisons"] = [
    dict(metric=k, a=first, b=b, difference=0.2, low=low, high=0.5, level=0.99, p=0.01, p_holm=0.03, n=360)
    for b in others
    for k, low in zip(metrics, (0.1, -0.1, 0.05), strict=True)
  ]
  result["settings"] = dict(metrics=["hessian", "cka"], images=360, hessian_images=64, probes=10)
  images = rng.uniform(0, 1, (4, 8, 8, 3))
  heat = {k: rng.uniform(0, 1, (4, 8, 8)) for k in ("grad_cam", "rollout", "gradient_attention")}
  pictures = dict(
    images=images,
    saliency={m["name"]: heat for m in result["models"]},
    features={m["name"]: {"block00": rng.uniform(0, 1, (4, 8, 4, 4))} for m in result["models"]},
  )
  return result, pictures


METRICS = [
  dict(key="accuracy_cls", label="Accuracy (cls head)", unit="%", scale=100, digits=1, higher_is="better"),
  dict(
    key="mean_distance",
    label="Mean attention distance",
    unit="patches",
    scale=1,
    digits=2,
    higher_is="more global",
  ),
  dict(
    key="cls_dispersion", label="CLS dispersion", unit="patches²", scale=1, digits=2, higher_is="more global"
  ),
  dict(key="collapsed_heads", label="Collapsed heads", unit="", scale=1, digits=1, higher_is=None),
  dict(key="hessian_trace", label="Hessian trace", unit="", scale=1, digits=1, higher_is="sharper"),
]
ARMS = {
  "none": ("Baseline", "no teacher", {}),
  "cnn_kd": ("CNN, logits", "soft KD from the CNN", {"kd": {"kind": "soft_kd", "weight": 0.5}}),
  "cnn_tokens": (
    "CNN, tokens + CKA",
    "last-stage grid of the CNN",
    {"tokens": {"kind": "token_cosine", "weight": 0.5}, "cka": {"kind": "cka", "weight": 0.5}},
  ),
  "ssl_tokens": (
    "SSL ViT, tokens + CKA",
    "frozen self-supervised teacher",
    {"tokens": {"kind": "token_cosine", "weight": 0.5}, "cka": {"kind": "cka", "weight": 0.5}},
  ),
}
CENTRES = {
  "accuracy_cls": 0.93,
  "mean_distance": 3.1,
  "cls_dispersion": 8.8,
  "collapsed_heads": 2,
  "hessian_trace": 118.0,
}
SPREADS = {
  "accuracy_cls": 0.008,
  "mean_distance": 0.12,
  "cls_dispersion": 0.4,
  "collapsed_heads": 1.2,
  "hessian_trace": 11.0,
}


def _summary(values):
  n, mean = len(values), float(np.mean(values))
  sd = float(np.std(values, ddof=1)) if n > 1 else None
  half = 4.303 * sd / math.sqrt(n) if sd is not None else None
  return dict(
    mean=mean,
    low=None if half is None else mean - half,
    high=None if half is None else mean + half,
    sd=sd,
    n=n,
    bootstrap_low=None if half is None else min(values),
    bootstrap_high=None if half is None else max(values),
  )


def _curves(rng, terms):
  step = list(range(0, 1500, 50))
  loss = 2.3 * np.exp(-np.array(step) / 400) + 0.2
  accuracy = 0.94 - 0.8 * np.exp(-np.array(step) / 250)
  band = lambda v, s: dict(mean=v.tolist(), low=(v - s).tolist(), high=(v + s).tolist())  # noqa: E731
  names = ["ce", *terms]
  return dict(
    step=step,
    train_loss=band(loss + 0.1 * len(terms), 0.05),
    validation_accuracy=band(accuracy, 0.01),
    terms={t: (loss * (k + 1)).tolist() for k, t in enumerate(names)},
    gradient_share={t: [rng.uniform(0.2, 0.4) if s % 100 == 0 else None for s in step] for t in names},
  )


def study(arms=None, *, seeds=(0, 1, 2)):
  """A study with the given arms (key: label, description, terms); all comparisons against the first."""
  arms = arms or ARMS
  rng = np.random.default_rng(7)
  made = {}
  for k, (key, (label, description, terms)) in enumerate(arms.items()):
    runs = [
      dict(seed=s, **{m: CENTRES[m] + SPREADS[m] * (k - 1 + rng.normal() / 2) for m in CENTRES})
      for s in seeds
    ]
    depth = [(np.linspace(2.0, 3.7, 4) + 0.2 * k + rng.normal(0, 0.1, 4)).tolist() for _ in seeds]
    summary = {m: _summary([r[m] for r in runs]) for m in CENTRES}
    made[key] = dict(
      label=label, description=description, runs=runs, summary=summary, distance_per_layer=depth, terms=terms
    )
  base, *others = arms
  comparisons = []
  for m in CENTRES:
    for other in others:
      differences = [b[m] - a[m] for a, b in zip(made[base]["runs"], made[other]["runs"], strict=True)]
      s = _summary(differences)
      comparisons.append(
        dict(
          metric=m,
          a=base,
          b=other,
          mean=s["mean"],
          low=s["low"],
          high=s["high"],
          p=0.03,
          p_holm=0.09,
          n=s["n"],
          level=0.95,
          bootstrap_low=min(differences),
          bootstrap_high=max(differences),
          g=1.5,
          g_low=-0.2,
          g_high=4.0,
          power=None
          if len(seeds) == 1
          else dict(
            power=0.8, detectable=2 * s["sd"], seeds_for_observed=12, smallest=0.01, seeds_for_smallest=None
          ),
        )
      )
  verdicts = [
    dict(
      claim="Attention distance: CNN-distilled < baseline",
      metric="mean_distance",
      order=[others[0] if others else base, base],
      verdict="contradicted",
      reason="+0.21 [0.05, 0.37] patches: the interval lies on the other side.",
    ),
    dict(
      claim="Accuracy: CNN-distilled < baseline",
      metric="accuracy_cls",
      order=[base],
      verdict="undecided",
      reason="−0.2 [−1.1, 0.7] points: 0 is inside.",
      power="With the spread between these 3 seeds, about 210 seeds would find it with 80 % probability.",
    ),
    dict(
      claim="Hessian trace: DINO-distilled < baseline",
      metric="hessian_trace",
      order=[base],
      verdict="supported",
      reason="−22.1 [−30.0, −14.2]: on the claimed side.",
    ),
  ]
  return dict(
    schema="jaxkd.study/1",
    name="digits",
    question="Does a CNN teacher make a Vision Transformer local, and does it cost accuracy?",
    date="2026-11-22",
    command="python -m jaxkd.main study --config=configs/quickstart.py --workdir=runs/demo",
    hardware="CPU, 2 cores",
    versions={"jaxkd": "0.1.0", "jax": "0.10.2"},
    seeds=list(seeds),
    conditions=[
      "All seeds share one CNN teacher and one self-supervised teacher: every statement is conditional on "
      "these teachers."
    ],
    warnings=["Three seeds detect only large differences."],
    data=dict(name="digits", train=1077, validation=360, test=360, classes=10, image_size=16),
    student=dict(model="deit", parameters=812_340, steps=1500, batch_size=128, optimizer="adamw", lr=1e-3),
    metrics=METRICS,
    arms=made,
    baseline=base,
    teachers=[
      dict(
        key="cnn",
        label="CNN teacher",
        model="adaptive_cnn",
        parameters=709_000,
        trained_on="digits, labels",
        rows=[["test accuracy", 0.983]],
      ),
      dict(
        key="ssl",
        label="SSL teacher",
        model="vit",
        parameters=650_000,
        trained_on="digits, no labels",
        rows=[
          ["k-NN (k=20), frozen CLS", 0.91],
          ["k-NN, raw pixels", 0.97],
          ["k-NN, random initialisation", 0.8],
          ["linear probe, frozen CLS", 0.95],
        ],
      ),
    ],
    comparisons=comparisons,
    verdicts=verdicts,
    curves={k: _curves(rng, a[2]) for k, a in arms.items()},
  )


def training(rows=900):
  """Rows of a metrics.jsonl; validation accuracy is in every tenth row, gradient norms in every fifth."""
  made = []
  for k in range(rows):
    decay = math.exp(-k / 200)
    row = {"step": 10 * k, "loss": 2.5 * decay + 0.1, "lr": 1e-3 * decay, "time/images_per_s": 900.0}
    row |= {"loss/ce": 2.0 * decay + 0.05, "loss/kd": 40.0 * decay + 0.001, "weight/kd": 0.5}
    row |= {"gradient/ce": 3.0, "gradient/kd": 1.0} if k % 5 == 0 else {}
    made.append(row | ({"validation/accuracy_cls": 0.95 - 0.8 * decay} if k % 10 == 0 else {}))
  return dict(
    schema="jaxkd.training/1",
    name="cnn-kd",
    date="2026-11-22",
    command="python -m jaxkd.main train",
    rows=made,
    config={"optim": {"lr": 1e-3}, "seed": 0},
  )


@pytest.fixture(scope="session")
def fake():
  """The builders of made-up inputs, as attributes."""
  import types

  return types.SimpleNamespace(
    forensics=forensics,
    evidence=evidence,
    study=study,
    training=training,
    THREE=THREE,
    EIGHT=EIGHT,
    ARMS=ARMS,
    LONG=LONG,
    NASTY=NASTY,
    SPACED=SPACED,
  )
