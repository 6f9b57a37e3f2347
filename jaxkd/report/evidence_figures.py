"""Figures of further evidence in a forensics result: receptive fields, spectra, robustness, probes, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd.report import charts, curvature_figures, plots
from jaxkd.report.figures import Marks, Panel, mean, ranking, widest_gap
from jaxkd.report.plots import Guide, Row, Series
from jaxkd.report.text import finite, listing, number, plural, slugs

METHODS = {
  "grad_cam": "Grad-CAM",
  "rollout": "attention rollout",
  "gradient_attention": "gradient-weighted attention",
}
DEPTH = "relative depth (0 = input, 1 = last layer)"


def _having(result: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
  return [m for m in result["models"] if m.get(key)]


def _depths(count: int) -> list[float]:
  return [(k + 1) / count for k in range(count)]


def _band(label: str, mark: Any, x: Sequence[float], e: Mapping[str, Any], scale: float = 1.0) -> Series:
  y, low, high = ([v * scale if finite(v) else None for v in e[k]] for k in ("value", "low", "high"))
  return Series(label, mark, x, y, low, high)


def receptive_field(result: Mapping[str, Any], marks: Marks) -> Panel | None:
  """Mean distance of the input gradient's energy from the centre, over depth."""
  models = _having(result, "receptive_field")
  if not models:
    return None
  items, uniform = [], []
  for m in models:
    field = m["receptive_field"]
    items.append(_band(m["name"], marks[m["name"]], _depths(len(field["layers"])), field["mean_distance"]))
    uniform.append(mean(field["uniform_distance"]))
  guides = (
    [Guide(uniform[0], "whole image alike")]
    if uniform[0] and len({round(u or 0, 1) for u in uniform}) == 1
    else []
  )
  last = {s.label: s.y[-1] for s in items}
  read = (
    "Effective receptive field: how far from a layer's centre token the pixels lie to which it reacts (mean distance "
    "of the squared input gradient), with bootstrap 95 % bands over images. Higher is more global."
  )
  shows = f"At the last layer: {ranking(last, 1, ' px')}."
  figure = plots.lines(items, xlabel=DEPTH, ylabel="mean distance (pixels)", floor=0.0, guides=guides)
  return Panel("receptive_field", "Effective receptive field over depth", read, shows, figure)


def receptive_maps(result: Mapping[str, Any]) -> Panel | None:
  """The last layer's receptive field of every model as a picture."""
  models = _having(result, "receptive_field")
  if not models:
    return None
  pictures, notes, radius = [], [], {}
  for m in models:
    field = m["receptive_field"]
    pictures.append(np.sqrt(np.array(field["energy"], float)))
    radius[m["name"]] = field["radius"]["0.5"][-1]
    notes.append(m["name"])
  read = (
    "Where the centre token of the last layer looks: energy of the input gradient, mean over images (square root; each "
    "scaled to its own largest value)."
  )
  shows = f"Radius that holds half of the energy: {ranking(radius, 1, ' px')}."
  figure = charts.picture_grid(pictures, notes, columns=min(4, max(2, len(pictures))), cmap="viridis")
  return Panel("receptive_maps", "Receptive field of the last layer", read, shows, figure)


def spectrum(result: Mapping[str, Any], marks: Marks) -> list[Panel]:
  """Log amplitude against frequency at the last layer, and of the highest frequency over depth."""
  models = [m for m in _having(result, "spectrum") if m["spectrum"]["layers"]]
  if not models:
    return []
  last, over_depth = [], []
  for m in models:
    layers = list(m["spectrum"]["layers"].values())
    last.append(_band(m["name"], marks[m["name"]], layers[-1]["frequencies"], layers[-1]))
    ends = {k: [layer[k][-1] for layer in layers] for k in ("value", "low", "high")}
    over_depth.append(_band(m["name"], marks[m["name"]], _depths(len(layers)), ends))
  read = (
    "Amplitude of spatial frequencies in the last layer's features, relative to their mean (natural logarithm; bands: "
    "bootstrap 95 % over images). Falling to the right means smooth maps; 1 is the finest pattern the map can hold."
  )
  shows = f"At the highest frequency: {ranking({s.label: s.y[-1] for s in last}, 2)}."
  figure = plots.lines(last, xlabel="spatial frequency (1 = one cell to the next)", ylabel="log amplitude")
  panels = [Panel("spectrum", "Fourier spectrum of the last layer", read, shows, figure)]
  read = (
    "Log amplitude of the highest spatial frequency in every layer: falling curves smooth their features (low-pass), "
    "rising ones sharpen them. Layers whose map has fewer than 2 × 2 cells have none. Maps of other sizes have other "
    "highest frequencies, so compare the shapes."
  )
  shows = f"Averaged over layers: {ranking({s.label: mean(s.y) for s in over_depth}, 2)}."
  figure = plots.lines(over_depth, xlabel=DEPTH, ylabel="log amplitude of the highest frequency")
  return [*panels, Panel("spectrum_depth", "Smoothing over depth", read, shows, figure)]


def robustness(result: Mapping[str, Any], marks: Marks) -> list[Panel]:
  """Accuracy against the share of patches shuffled, and hidden, at the largest patch size all models share."""
  models = _having(result, "robustness")
  panels = []
  words = {
    "shuffle": ("Shuffled patches", "trade places", "A model that lives on local texture hardly minds."),
    "occlude": ("Hidden patches", "are grey", "A model that uses the whole image loses little at first."),
  }
  for key, (title, what, meaning) in words.items() if models else ():
    common = set.intersection(*({r["patch"] for r in m["robustness"][key]} for m in models))
    if not common:
      continue
    patch, items = max(common), []
    for m in models:
      rows = [r for r in m["robustness"][key] if r["patch"] == patch]
      e = {k: [r[k] for r in rows] for k in ("value", "low", "high")}
      items.append(_band(m["name"], marks[m["name"]], [100 * r["share"] for r in rows], e, 100))
    read = (
      f"Accuracy of the cls head when a share of the {patch} × {patch} pixel patches {what}, with Wilson 95 % bands "
      f"over images. {meaning}"
    )
    lost = {s.label: s.y[0] - s.y[-1] for s in items if finite(s.y[0]) and finite(s.y[-1])}  # type: ignore[operator]
    shows = f"Points lost with all patches: {ranking(lost, 1)}."
    figure = plots.lines(items, xlabel="patches disturbed (%)", ylabel="accuracy (%)", floor=0.0)
    panels.append(Panel(f"robustness_{key}", title, read, shows, figure))
  return panels


def cue_conflict(result: Mapping[str, Any], marks: Marks) -> Panel | None:
  """Share of decisions that follow the global cue."""
  found = {m["name"]: c for m in _having(result, "robustness") if (c := m["robustness"].get("cue_conflict"))}
  if not found:
    return None
  items = []
  for name, c in found.items():
    value, low, high = (
      100 * v if finite(v) else None for v in (c["global_share"][k] for k in ("value", "low", "high"))
    )
    items.append(
      Row(name, marks[name], value, low, high, f"{number(value, 1)} %, neither: {number(c['neither'])}")
    )
  read = (
    "On images whose arrangement and texture say two different classes: share of the decisions for either that follow "
    "the arrangement (the global cue), with Wilson 95 % intervals."
  )
  shows = f"Global share: {ranking({r.label: r.value for r in items}, 1, ' %')}."
  figure = plots.rows(items, xlabel="decisions that follow the global cue (%)", guides=[Guide(50, "either")])
  return Panel("cue_conflict", "Which cue decides?", read, shows, figure)


def probes(result: Mapping[str, Any], marks: Marks) -> list[Panel]:
  """Accuracy of k-NN and of a linear probe on every layer's frozen features."""
  models, panels = _having(result, "probes"), []
  for key, name in (("knn", "k-NN (k = 20)"), ("linear", "linear probe")) if models else ():
    items = []
    for m in models:
      e = {k: [layer[k] for layer in m["probes"][key]] for k in ("value", "low", "high")}
      items.append(_band(m["name"], marks[m["name"]], _depths(len(m["probes"]["layers"])), e, 100))
    counts = listing(sorted({number(m["probes"]["train_images"]) for m in models}))
    read = (
      f"Test accuracy of a {name} on the frozen, position-averaged features of every layer, fitted on {counts} "
      "training images; bands are Wilson 95 % intervals over test images."
    )
    shows = f"At the last layer: {ranking({s.label: s.y[-1] for s in items}, 1, ' %')}.{widest_gap(items, 1, 'layer')}"
    figure = plots.lines(items, xlabel=DEPTH, ylabel="accuracy (%)")
    panels.append(Panel(f"probes_{key}", f"What layers know: {name}", read, shows, figure))
  return panels


def by_class(result: Mapping[str, Any], marks: Marks) -> Panel | None:
  """Mean attention distance by class."""
  models = [m for m in _having(result, "attention") if m["attention"].get("by_class")]
  if not models:
    return None
  count = min(len(m["attention"]["by_class"]["mean_distance"]["value"]) for m in models)
  shown = min(count, 20)
  items = []
  for m in models:
    e = m["attention"]["by_class"]["mean_distance"]
    half = [
      (h - low) / 2 if finite(h) and finite(low) else None for h, low in zip(e["high"], e["low"], strict=True)
    ]
    items.append((m["name"], marks[m["name"]], list(zip(e["value"], half, strict=True))[:shown]))
  spread = {
    name: max(v for v, _ in cells if finite(v)) - min(v for v, _ in cells if finite(v))
    for name, _, cells in items
  }
  read = (
    f"Mean attention distance over the images of each class{' (the first 20)' if shown < count else ''}, with "
    "bootstrap 95 % intervals over images."
  )
  shows = f"Largest minus smallest class: {ranking(spread, 2, ' patches')}."
  figure = plots.parts(
    [str(k) for k in range(shown)], items, xlabel="attention distance (patches)", zero=False
  )
  return Panel("attention_classes", "Attention distance by class", read, shows, figure)


def rollout(result: Mapping[str, Any], marks: Marks) -> Panel | None:
  """Distance of the attention rollout, relative to uniform attention, over depth."""
  items = []
  for m in _having(result, "attention"):
    e = (m["attention"].get("layers") or {}).get("rollout_distance_to_uniform")
    if e:
      items.append(_band(m["name"], marks[m["name"]], list(range(len(e["value"]))), e))
  if not items:
    return None
  read = (
    "How far information has come by each block: mean distance of the attention rollout (attention and residual "
    "connections multiplied through the blocks) over that of uniform attention, bootstrap 95 % bands over images. A "
    "stack of local blocks still becomes global; with uniform attention it would be 1 − 2⁻ˡ after l blocks."
  )
  shows = f"After the last block: {ranking({s.label: s.y[-1] for s in items}, 2)}."
  figure = plots.lines(
    items, xlabel="block (0 = first)", ylabel="rollout distance / uniform", floor=0.0, index=True
  )
  return Panel("rollout", "How far information has come", read, shows, figure)


def alignment(result: Mapping[str, Any]) -> list[Panel]:
  """Heatmaps of mutual nearest neighbours of every pair."""
  names = [m["name"] for m in result["models"]]
  files = dict(zip(names, slugs(names), strict=True))
  panels = []
  for e in result.get("alignment") or ():
    a, b, chance = e["a"], e["b"], e["k"] / max(e["images"] - 1, 1)
    figure = plots.heatmap(
      e["mutual_knn"],
      rows_name=a,
      columns_name=b,
      row_labels=e["layers_a"],
      column_labels=e["layers_b"],
      value_name="shared",
    )
    read = (
      f"Share of the {e['k']} nearest neighbours of an image that the layers of {a} (rows) and {b} (columns) have in "
      f"common, over {plural(e['images'], 'image')}; unrelated features share {number(chance, 3)}."
    )
    last, turned = e["mutual_knn"][-1][-1], e["procrustes"][-1][-1]
    shows = f"The last layers share {number(last, 2)}; their Procrustes similarity is {number(turned, 2)}."
    panels.append(
      Panel(f"neighbours_{files[a]}__{files[b]}", f"Neighbours of {a} and {b}", read, shows, figure)
    )
  return panels


def saliency(pictures: Mapping[str, Any]) -> list[Panel]:
  """One figure for each model: images, and the heat maps of every method over them."""
  found = {name: maps for name, maps in (pictures.get("saliency") or {}).items() if maps}
  panels = []
  for (name, maps), file in zip(found.items(), slugs(list(found)), strict=True):
    rows = [("image", pictures["images"], None)]
    rows += [(METHODS[key], pictures["images"], heat) for key, heat in maps.items()]
    figure = charts.picture_rows(rows)
    read = (
      f"What the decisions of {name} rest on: {listing(METHODS[k] for k in maps)} for the class it names. Yellow is "
      "much, dark is little; each map is scaled to its own range."
    )
    shows = f"{plural(len(pictures['images']), 'image')}, of as many classes."
    panels.append(Panel(f"saliency_{file}", f"Saliency: {name}", read, shows, figure))
  return panels


def features(pictures: Mapping[str, Any]) -> list[Panel]:
  """One figure for each model: the most varied channels of some layers for one image."""
  found = pictures.get("features") or {}
  panels = []
  for (name, layers), file in zip(found.items(), slugs(list(found)), strict=True):
    rows = [(layer, [channel[..., None] for channel in maps[0]], None) for layer, maps in layers.items()]
    figure = charts.picture_rows(rows, cmap="viridis")
    read = (
      f"Feature maps of {name} for one image: the channels that vary most over positions and images, of a first, a "
      "middle and the last layer, each scaled to its own range."
    )
    shows = f"Layers {listing(layers)}."
    panels.append(Panel(f"features_{file}", f"Feature maps: {name}", read, shows, figure))
  return panels


def evidence_panels(
  result: Mapping[str, Any], marks: Marks, pictures: Mapping[str, Any]
) -> dict[str, list[Panel]]:
  """Further figures by the section they belong to."""
  local = [receptive_field(result, marks), receptive_maps(result), *spectrum(result, marks)]
  return {
    "attention": [p for p in (rollout(result, marks), by_class(result, marks)) if p],
    "curvature": curvature_figures.curvature_panels(result, marks),
    "locality": [p for p in local if p],
    "robustness": [*robustness(result, marks), *([c] if (c := cue_conflict(result, marks)) else [])],
    "knowledge": probes(result, marks),
    "alignment": alignment(result),
    "saliency": saliency(pictures),
    "features": features(pictures),
  }
