"""Checks of what the report is handed: the right schema version, every key that gets drawn, matching
lengths."""

from collections.abc import Callable, Mapping
from typing import Any

FORENSICS, STUDY, TRAINING = "jaxkd.forensics/2", "jaxkd.study/1", "jaxkd.training/1"
EVALUATION = "jaxkd.evaluation/2"
VERDICTS = ("supported", "contradicted", "undecided")

Check = Callable[[Any, str], None]


def _fail(where: str, value: Any, wanted: str) -> None:
  shown = repr(value)
  raise ValueError(f"{where} is {shown[:77] + '...' if len(shown) > 80 else shown}, expected {wanted}")


def _text(value: Any, where: str) -> None:
  if not isinstance(value, str):
    _fail(where, value, "a string")


def _number(value: Any, where: str) -> None:
  """A number, or null where a statistic does not exist (an interval of one seed)."""
  if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
    _fail(where, value, "a number or null")


def _mapping(value: Any, where: str) -> None:
  if not isinstance(value, Mapping):
    _fail(where, value, "an object")


def _optional(check: Check) -> Check:
  """null is allowed, and so is a missing key."""

  def optional(value: Any, where: str) -> None:
    if value is not None:
      check(value, where)

  optional.missing_ok = True  # type: ignore[attr-defined]
  return optional


def _list(check: Check, *, least: int = 0) -> Check:
  def each(value: Any, where: str) -> None:
    if not isinstance(value, (list, tuple)) or len(value) < least:
      _fail(where, value, f"a list with at least {least} entries" if least else "a list")
    for k, item in enumerate(value):
      check(item, f"{where}[{k}]")

  return each


def _values(check: Check) -> Check:
  """An object whose keys are free and whose values all pass the check."""

  def each(value: Any, where: str) -> None:
    _mapping(value, where)
    for key, item in value.items():
      check(item, f"{where}.{key}")

  return each


def _object(**checks: Check) -> Check:
  """An object with these keys; others are ignored, so that a writer may say more than the page shows."""

  def each(value: Any, where: str) -> None:
    _mapping(value, where)
    for key, check in checks.items():
      if key in value:
        check(value[key], f"{where}.{key}")
      elif not hasattr(check, "missing_ok"):
        raise ValueError(
          f"{where}.{key} is missing; {where} has {', '.join(sorted(map(str, value))) or 'no keys'}"
        )

  return each


def _pair(value: Any, where: str) -> None:
  if not isinstance(value, (list, tuple)) or len(value) != 2:
    _fail(where, value, "a pair")


_INTERVAL = _object(value=_number, low=_number, high=_number)
_MATRIX = _list(_list(_number, least=1), least=1)
_BOOTSTRAP: dict[str, Check] = dict(bootstrap_low=_optional(_number), bootstrap_high=_optional(_number))
_SUMMARY = _object(mean=_number, low=_number, high=_number, sd=_optional(_number), **_BOOTSTRAP)
_SERIES = _object(
  mean=_list(_number),
  low=_optional(_list(_number)),
  high=_optional(_list(_number)),
  step=_optional(_list(_number)),
)
_FRAME: dict[str, Check] = dict(date=_text, command=_text, hardware=_text, versions=_mapping)
_ATTENTION = _object(
  images=_number,
  uniform_distance=_number,
  mean_distance=_MATRIX,
  entropy=_optional(_MATRIX),
  cls_dispersion=_optional(_MATRIX),
  collapsed=_list(_list(lambda value, where: None)),
  layer_distance=_object(mean=_list(_number, least=1), stderr=_list(_number, least=1)),
)
_HESSIAN = _object(
  trace=_number,
  stderr=_number,
  probes=_number,
  images=_number,
  loss=_optional(_number),
  per_block=_optional(_values(_pair)),
  per_type=_optional(_values(_pair)),
  per_head=_optional(_values(_pair)),
)
_EIGENVALUES = _object(
  values=_list(_number, least=1),
  errors=_list(_number, least=1),
  negative_share=_pair,
  density=_object(points=_list(_number), value=_list(_number)),
)
_BALL = _object(rho=_number, value=_number)
_LANDSCAPE = _object(
  steps=_list(_number, least=3),
  plane=_MATRIX,
  sharpness=_object(plain=_BALL, adaptive=_BALL),
  ggn=_object(trace=_number, stderr=_number),
)
_BAND = _object(value=_list(_number), low=_list(_number), high=_list(_number))
_DISTURBED = _list(_object(patch=_number, share=_number, value=_number, low=_number, high=_number), least=1)
_FIELD = _object(
  layers=_list(_text, least=1),
  mean_distance=_BAND,
  uniform_distance=_list(_number),
  radius=_values(_list(_number)),
  energy=_MATRIX,
)
_SPECTRUM = _object(
  layers=_values(
    _object(frequencies=_list(_number), value=_list(_number), low=_list(_number), high=_list(_number))
  )
)
_PROBES = _object(
  layers=_list(_text, least=1),
  knn=_list(_INTERVAL, least=1),
  linear=_list(_INTERVAL, least=1),
  train_images=_number,
)
_MODEL = _object(
  name=_text,
  checkpoint=_text,
  model=_text,
  parameters=_number,
  differs=_mapping,
  accuracy=_values(_INTERVAL),
  hessian=_optional(_HESSIAN),
  attention=_optional(_ATTENTION),
  digest=_optional(_text),
  step=_optional(_number),
  eigenvalues=_optional(_EIGENVALUES),
  landscape=_optional(_LANDSCAPE),
  receptive_field=_optional(_FIELD),
  spectrum=_optional(_SPECTRUM),
  robustness=_optional(_object(shuffle=_DISTURBED, occlude=_DISTURBED)),
  probes=_optional(_PROBES),
)
_CKA = _object(
  a=_text,
  b=_text,
  layers_a=_list(_text),
  layers_b=_list(_text),
  matrix=_MATRIX,
  images=_number,
  estimator=_text,
  kernel=_text,
)
_ALIGNMENT = _object(
  a=_text,
  b=_text,
  layers_a=_list(_text),
  layers_b=_list(_text),
  procrustes=_MATRIX,
  mutual_knn=_MATRIX,
  k=_number,
  images=_number,
)
_DIFFERENCE = _object(
  metric=_text, a=_text, b=_text, difference=_number, low=_number, high=_number, p_holm=_number, n=_number
)
_FORENSICS = _object(
  **_FRAME,
  data=_object(name=_text, split=_text, images=_number, classes=_number),
  models=_list(_MODEL, least=1),
  cka=_list(_CKA),
  alignment=_optional(_list(_ALIGNMENT)),
  comparisons=_optional(_list(_DIFFERENCE)),
  settings=_optional(_mapping),
)
_METRIC = _object(
  key=_text, label=_text, unit=_text, scale=_number, digits=_number, higher_is=_optional(_text)
)
_ARM = _object(
  label=_text,
  description=_text,
  runs=_list(_object(seed=_number), least=1),
  summary=_values(_SUMMARY),
  distance_per_layer=_optional(_list(_list(_number))),
  terms=_optional(_values(_mapping)),
)
_COMPARISON = _object(
  metric=_text,
  a=_text,
  b=_text,
  mean=_number,
  low=_number,
  high=_number,
  p_holm=_number,
  n=_number,
  level=_number,
  **_BOOTSTRAP,
  **dict.fromkeys(("g", "g_low", "g_high"), _optional(_number)),
  power=_optional(
    _object(power=_number, detectable=_number, seeds_for_observed=_number, seeds_for_smallest=_number)
  ),
)
_VERDICT = _object(
  claim=_text, metric=_text, verdict=_text, reason=_text, order=_list(_text), power=_optional(_text)
)
_CURVE = _object(
  step=_list(_number),
  train_loss=_optional(_SERIES),
  validation_accuracy=_optional(_SERIES),
  terms=_optional(_values(_list(_number))),
  gradient_share=_optional(_values(_list(_number))),
)
_STUDY = _object(
  **_FRAME,
  name=_text,
  question=_text,
  partial=_optional(_text),
  seeds=_list(_number, least=1),
  conditions=_list(_text),
  warnings=_list(_text),
  data=_object(name=_text),
  student=_object(model=_text, parameters=_number),
  metrics=_list(_METRIC, least=1),
  arms=_values(_ARM),
  baseline=_text,
  teachers=_list(_object(label=_text, rows=_list(_pair))),
  comparisons=_list(_COMPARISON),
  verdicts=_list(_VERDICT),
  curves=_optional(_values(_CURVE)),
)
_TRAINING = _object(
  name=_text,
  rows=_list(_object(step=_number), least=1),
  config=_optional(_mapping),
  **{key: _optional(check) for key, check in _FRAME.items()},
)

_CALIBRATION = _object(
  ece=_number,
  ece_adaptive=_number,
  mean_confidence=_number,
  ece_if_calibrated=_object(mean=_number, high=_number),
  bins=_list(_object(low=_number, count=_number, confidence=_number, accuracy=_number), least=1),
)
_CLASS = _object(
  precision=_INTERVAL,
  recall=_optional(_INTERVAL),
  f1=_number,
  auc=_number,
  examples=_number,
  predicted=_number,
)
_HEAD = _object(
  examples=_number,
  accuracy=_INTERVAL,
  top_k=_values(_INTERVAL),
  loss=_INTERVAL,
  brier=_INTERVAL,
  macro=_object(precision=_INTERVAL, recall=_INTERVAL, f1=_INTERVAL, auc=_INTERVAL),
  per_class=_values(_CLASS),
  confusion=_MATRIX,
  roc=_values(_object(auc=_number, fpr=_list(_number), tpr=_list(_number))),
  calibration=_CALIBRATION,
)
_HEADS = _values(_HEAD)
_EVALUATION = _object(
  **_FRAME,
  name=_text,
  checkpoint=_text,
  model=_text,
  digest=_text,
  step=_number,
  data=_text,
  split=_text,
  heads=_HEADS,
  mistakes=_list(_object(index=_number, true=_number, predicted=_number, confidence=_number)),
  tta=_optional(_object(views=_number, heads=_HEADS)),
)


def _open(value: Any, schema: str, check: Check, root: str) -> None:
  if not isinstance(value, Mapping):
    raise ValueError(f"{root} is a {type(value).__name__}, expected an object with schema {schema!r}")
  if value.get("schema") != schema:
    raise ValueError(
      f"{root}.schema is {value.get('schema')!r}; this version reads {schema!r}: write the file again with "
      "this version"
    )
  check(value, root)


def check_forensics(result: Any) -> None:
  """Raises ValueError naming the first entry of a forensics result that cannot be drawn."""
  _open(result, FORENSICS, _FORENSICS, "forensics")
  names = [m["name"] for m in result["models"]]
  if len(set(names)) != len(names):
    _fail("forensics.models", names, "different names")
  for k, model in enumerate(result["models"]):
    if (attention := model.get("attention")) is not None:
      _check_attention(attention, f"forensics.models[{k}].attention")
  for k, pair in enumerate(result["cka"]):
    where = f"forensics.cka[{k}]"
    for side in ("a", "b"):
      if pair[side] not in names:
        _fail(f"{where}.{side}", pair[side], f"one of {', '.join(names)}")
    shape = (len(pair["layers_a"]), len(pair["layers_b"]))
    if len(pair["matrix"]) != shape[0] or any(len(row) != shape[1] for row in pair["matrix"]):
      raise ValueError(f"{where}.matrix is not {shape[0]} x {shape[1]}, the numbers of layers_a and layers_b")


def _check_attention(attention: Mapping[str, Any], where: str) -> None:
  layers = len(attention["mean_distance"])
  for side in ("mean", "stderr"):
    if len(attention["layer_distance"][side]) != layers:
      raise ValueError(
        f"{where}.layer_distance.{side} has {len(attention['layer_distance'][side])} layers, mean_distance "
        f"{layers}"
      )


def check_study(study: Any) -> None:
  """Raises ValueError naming the first entry of a study that cannot be drawn."""
  _open(study, STUDY, _STUDY, "study")
  arms = ", ".join(study["arms"])
  if study["baseline"] not in study["arms"]:
    _fail("study.baseline", study["baseline"], f"one of the arms {arms}")
  labels = [arm["label"] for arm in study["arms"].values()]
  if len(set(labels)) != len(labels):
    _fail("study.arms", labels, "different labels")
  metrics = [m["key"] for m in study["metrics"]]
  for k, row in enumerate(study["comparisons"]):
    for side in ("a", "b"):
      if row[side] not in study["arms"]:
        _fail(f"study.comparisons[{k}].{side}", row[side], f"one of the arms {arms}")
    if row["metric"] not in metrics:
      _fail(f"study.comparisons[{k}].metric", row["metric"], f"one of {', '.join(metrics)}")
  for k, row in enumerate(study["verdicts"]):
    if row["verdict"] not in VERDICTS:
      _fail(f"study.verdicts[{k}].verdict", row["verdict"], f"one of {', '.join(VERDICTS)}")
  for arm in study.get("curves") or {}:
    if arm not in study["arms"]:
      _fail("study.curves", arm, f"one of the arms {arms}")


def check_training(run: Any) -> None:
  """Raises ValueError naming the first entry of a training run that cannot be drawn."""
  _open(run, TRAINING, _TRAINING, "run")


def check_evaluation(result: Any) -> None:
  """Raises ValueError naming the first entry of an evaluation that cannot be drawn."""
  _open(result, EVALUATION, _EVALUATION, "evaluation")
  for where in [result, *([result["tta"]] if result.get("tta") else [])]:
    if "cls" not in where["heads"]:
      _fail("evaluation.heads", list(where["heads"]), "a cls head")
    for name, head in where["heads"].items():
      if len(head["confusion"]) != len(head["per_class"]):
        _fail(f"evaluation.heads.{name}.confusion", head["confusion"], f"{len(head['per_class'])} rows")
