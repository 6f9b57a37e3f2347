"""The zero-loss tests of spec 5 at the level of images, mixing, given boxes, and what the config refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import config as configs
from jaxkd import schema
from jaxkd.data import operations, policies
from jaxkd.data.augment import describe, draw_boxes, draw_views, make_views, photometry, sample_boxes
from jaxkd.data.boxes import affine_matrices
from jaxkd.errors import UserError
from tests import tiny

SIZE, B = 12, 64
MEAN = (0.5, 0.4, 0.3)
VIEWS = {
  "global_count": 1,
  "global_scale": (1.0, 1.0),
  "local_count": 0,
  "local_size": 4,
  "local_scale": (0.2, 0.5),
}
GEOMETRY = {"crop": 2, "flip": True, "rotation": 20.0, "translate": 0.2, "scale": (0.8, 1.3), "shear": 10.0}
COLORS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2, "grayscale": 0.3, "blur": 0.5}
COLORS |= {"solarize": 0.3, "erase": 0.5, "cutout": 3}
IMAGES = np.random.default_rng(0).integers(0, 256, (B, SIZE, SIZE, 3), dtype=np.uint8)


@functools.lru_cache
def compiled(augment, views):
  options = {"augment": dict(augment), "views": VIEWS | dict(views), "mean": MEAN}
  return jax.jit(functools.partial(make_views, **options))


@functools.lru_cache
def drawing(augment, views, shape):
  options = {"augment": dict(augment), "views": VIEWS | dict(views)}
  return jax.jit(lambda key, **given: draw_views(key, shape, **options, **given))


def draws(augment, seed=0, shape=IMAGES.shape, views=(), **given):
  f = drawing(tuple(augment.items()), tuple(dict(views).items()), shape)
  return jax.tree.map(np.asarray, f(jax.random.key(seed), **given))


def views(augment=None, shape=None, images=IMAGES, seed=0, **given):
  f = compiled(tuple((augment or {}).items()), tuple((shape or {}).items()))
  out = f(jnp.asarray(images), jax.random.key(seed), **given)
  return jax.tree.map(np.asarray, out)


GEOMETRIES = [{k: v} for k, v in GEOMETRY.items()] + [GEOMETRY]


@functools.lru_cache
def all_geometries():
  """Every geometric operation alone, then all together, in one program."""
  several = [functools.partial(make_views, mean=MEAN, augment=a, views=VIEWS) for a in GEOMETRIES]
  return jax.jit(lambda x, key: [f(x, key) for f in several])(jnp.asarray(IMAGES), jax.random.key(0))


@pytest.mark.parametrize("which", range(len(GEOMETRIES)), ids=["+".join(a) for a in GEOMETRIES])
def test_without_photometry_the_student_sees_the_aligned_view(which):
  out = {k: np.asarray(v) for k, v in all_geometries()[which].items()}
  np.testing.assert_array_equal(out["student"], out["aligned"])
  np.testing.assert_allclose(out["clean"], IMAGES.astype(np.float32) / 255, rtol=1.2e-7)
  assert (out["clean"] != out["aligned"]).any(axis=(1, 2, 3)).mean() > 0.4


def test_geometry_inside_a_policy_reaches_every_branch(monkeypatch):
  monkeypatch.setattr(policies, "apply_photometry", lambda x, plan: x)

  def one(augment, x, key):
    drawn, _ = draw_views(key, x.shape, augment=augment, views=VIEWS)
    cropped = sample_boxes(x.astype(jnp.float32), drawn.boxes, SIZE)
    return make_views(x, key, mean=MEAN, augment=augment, views=VIEWS), drawn.plan.ops, cropped

  options = [{"policy": policy, "crop": 2} for policy in schema.POLICIES]
  results = jax.jit(lambda x, key: [one(o, x, key) for o in options])(jnp.asarray(IMAGES), jax.random.key(3))
  for out, ops, cropped in jax.tree.map(np.asarray, results):
    np.testing.assert_array_equal(out["student"], out["aligned"])
    moved = np.isin(ops, [policies.ID[n] for n in policies.GEOMETRIC]).any(axis=1)
    differs = (cropped != np.rint(out["aligned"] * 255)).any(axis=(1, 2, 3))
    assert moved.any()
    assert not differs[~moved].any(), "the policy's geometry moves the images it was drawn for only"
    assert differs[moved].mean() > 0.5


def test_photometry_of_a_policy_and_colours_leave_the_aligned_view_alone():
  out = views(GEOMETRY | COLORS | {"policy": "randaugment_color"})
  np.testing.assert_array_equal(out["aligned"], all_geometries()[-1]["aligned"])
  np.testing.assert_array_equal(out["student"], out["same"])
  assert (out["student"] != out["aligned"]).any(axis=(1, 2, 3)).mean() > 0.9
  assert out["student"].min() >= 0
  assert out["student"].max() <= 1


def is_a_function(values, levels):
  """Whether equal `levels` have equal `values` everywhere in a picture, channel by channel."""
  for c in range(levels.shape[-1]):
    order = np.argsort(levels[..., c], axis=None)
    level, value = levels[..., c].ravel()[order], values[..., c].ravel()[order]
    if (np.abs(np.diff(value))[np.diff(level) == 0] > 1e-6).any():
      return False
  return True


def test_a_coded_image_lands_on_the_same_cells_with_photometry_on():
  """Sixteen levels scattered over the image. Photometry that maps levels to levels leaves pixels that were equal equal,
  wherever they are; moved by a single pixel, they would not be."""
  augment = {"crop": 3, "flip": True, "policy": "randaugment", "brightness": 0.3, "contrast": 0.3}
  code = IMAGES // 16 * 16
  out = views(augment, images=code)
  drawn, _ = draws(augment)
  mixes_pixels = np.isin(drawn.plan.ops, [policies.ID[n] for n in ("color", "sharpness")]).any(axis=1)
  recolored = [i for i in range(B) if not mixes_pixels[i]]
  assert len(recolored) > B / 2
  changed = 0
  for i in recolored:
    student, aligned, clean = (out[name][i] for name in ("student", "aligned", "clean"))
    assert is_a_function(student, aligned)
    assert not is_a_function(np.roll(student, 1, axis=1), aligned)
    assert not is_a_function(student, clean)
    changed += (student != aligned).any()
  assert changed > len(recolored) / 2


def test_drawn_affine_geometry_equals_pixels_moved_by_hand():
  drawn = {"translate": jnp.array([[1.0, 2.0]]), "rotation": jnp.array([90.0])}
  got = operations.affine(jnp.asarray(IMAGES[:1]), affine_matrices(drawn, 1, (SIZE, SIZE)))
  turned = np.rot90(IMAGES[0])  # counter-clockwise
  expected = np.zeros_like(turned)
  expected[1:, 2:] = turned[:-1, :-2]
  np.testing.assert_array_equal(got[0], expected)
  centre = jnp.array([[SIZE / 2, SIZE / 2, 1.0]])
  bent = affine_matrices({"scale": jnp.array([2.0]), "shear": jnp.array([45.0])}, 1, (SIZE, SIZE))
  np.testing.assert_allclose(bent[0] @ centre[0], centre[0, :2], atol=1e-5)  # the centre stays
  np.testing.assert_allclose(bent[0, :, :2], [[0.5, 0.5], [0, 0.5]], atol=1e-6)


def test_given_boxes_replace_the_drawn_ones_and_nothing_else():
  augment = {"crop": 2, "flip": True, "policy": "trivialaugment_color", "erase": 0.5, "brightness": 0.3}
  boxes = draw_boxes(jax.random.key(9), IMAGES.shape, crop=3, flip=True, scale=(1.0, 1.0))
  out = views(augment, boxes=boxes)
  expected = sample_boxes(jnp.asarray(IMAGES, jnp.float32), boxes, SIZE)
  np.testing.assert_allclose(out["aligned"], np.asarray(expected) / 255, rtol=1.2e-7)
  own, given = draws(augment)[0], draws(augment, boxes=boxes)[0]
  jax.tree.map(np.testing.assert_array_equal, own.replace(boxes=boxes), given)
  assert (own.boxes != boxes).any()
  with pytest.raises(ValueError, match="for 64 views of full size"):
    views(augment, boxes=boxes[:-1])


def test_positions_decide_what_a_policy_draws():
  augment = {"policy": "randaugment"}
  plan = draws(augment, shape=(128, *IMAGES.shape[1:]))[0].plan
  half = draws(augment, positions=jnp.arange(64, 128))[0].plan
  assert plan.sliced
  np.testing.assert_array_equal(half.ops, plan.ops[64:])
  np.testing.assert_array_equal(half.magnitudes, plan.magnitudes[64:])
  assert (draws(augment)[0].plan.ops != half.ops).any()


def test_views_and_local_crops_draw_their_own_policies():
  shape = {"global_count": 2, "local_count": 2}
  drawn, small = draws({"policy": "trivialaugment"}, views=shape)
  assert drawn.plan.ops.shape == small.plan.ops.shape == (2 * B, 1)
  assert (drawn.plan.ops[:B] != drawn.plan.ops[B:]).any()
  assert not np.isin(small.plan.ops, [policies.ID[n] for n in policies.GEOMETRIC]).any()
  assert views({"policy": "trivialaugment"}, shape)["local"].shape == (2 * B, 4, 4, 3)


@pytest.mark.parametrize("option", ["mixup", "cutmix"])
def test_mixing_is_the_last_thing_done_and_stays_within_a_view(option):
  augment, shape = {"crop": 2, "brightness": 0.3}, {"global_count": 2}
  plain = views(augment, shape)
  mixed = views(augment | {option: 1.0, "mix_per_sample": True}, shape)
  assert "mix" not in plain
  partner, weight = mixed["mix"]
  assert (partner.dtype, weight.dtype) == (np.int32, np.float32)
  np.testing.assert_array_equal(partner, np.concatenate([np.arange(B)[::-1], B + np.arange(B)[::-1]]))
  own, other = plain["student"].astype(np.float64), plain["student"][partner].astype(np.float64)
  for name in ("student", "same"):
    if option == "mixup":
      w = weight.astype(np.float64)[:, None, None, None]
      np.testing.assert_allclose(mixed[name], w * own + (1 - w) * other, atol=2e-7)
    else:
      kept, pasted = ((mixed[name] == x).all(-1) for x in (own, other))
      assert (kept | pasted).all()
      assert (kept.mean(axis=(1, 2)) >= weight - 1e-6).all()  # pixels may be equal in both
      assert (pasted.mean(axis=(1, 2)) >= 1 - weight - 1e-6).all()
  np.testing.assert_array_equal(mixed["aligned"], plain["aligned"])
  np.testing.assert_array_equal(mixed["clean"], plain["clean"])
  assert len(set(weight.tolist())) > B / 4, "one share for each image"


def test_each_colour_operation_is_the_one_of_its_name():
  x = jnp.asarray(IMAGES[:16]).astype(jnp.float32) / 255
  apply = jax.jit(
    lambda k: {
      n: photometry(x, k, mean=MEAN, **{n: v})
      for n, v in {"grayscale": 0.5, "solarize": 0.5, "hue": 0.2, "blur": 0.5, "erase": 0.9}.items()
    }
  )
  out = {n: np.asarray(v) for n, v in apply(jax.random.key(1)).items()}
  level = np.rint(out["grayscale"] * 255).astype(np.uint8)
  grey = np.asarray(operations.grayscale(jnp.asarray(IMAGES[:16])))
  for name, result, changed in (
    ("grayscale", level, grey),
    (
      "solarize",
      np.rint(out["solarize"] * 255).astype(np.uint8),
      np.where(IMAGES < 128, IMAGES, 255 - IMAGES)[:16],
    ),
  ):
    hit = (result != IMAGES[:16]).any(axis=(1, 2, 3))
    assert 0 < hit.sum() < 16, name
    np.testing.assert_array_equal(result[hit], changed[hit])
  assert (out["hue"] != x).any(axis=(1, 2, 3)).all()
  np.testing.assert_allclose(
    out["hue"].max(-1), np.asarray(x).max(-1), atol=1e-6
  )  # hue keeps the value of HSV
  blurred = (out["blur"] != x).any(axis=(1, 2, 3))
  assert 0 < blurred.sum() < 16
  assert (np.abs(np.diff(out["blur"], axis=2)).mean(axis=(1, 2, 3)) < 0.33)[blurred].any()
  erased = (out["erase"] != x).any(-1)
  assert 8 < erased.any(axis=(1, 2)).sum() <= 16
  np.testing.assert_allclose(out["erase"][erased], np.broadcast_to(MEAN, (erased.sum(), 3)), rtol=1e-6)


def test_options_left_out_change_nothing_and_grey_images_pass():
  augment = COLORS | {"policy": "trivialaugment", "crop": 1}
  make = functools.partial(make_views, mean=(0.5,), augment=augment, views=VIEWS)
  grey = jax.jit(make)(jnp.asarray(IMAGES[:4, ..., :1]), jax.random.key(0))
  assert grey["student"].shape == (4, SIZE, SIZE, 1)
  np.testing.assert_array_equal(views()["student"], views()["clean"])


def test_describe_names_what_was_drawn():
  augment = {
    "crop": 2,
    "flip": True,
    "rotation": 9.0,
    "policy": "autoaugment",
    "brightness": 0.2,
    "erase": 1.0,
  }
  drawn, _ = draws(augment)
  geometry, colors = describe(drawn, (SIZE, SIZE))
  whole = policies.describe(drawn.plan)
  for i in range(B):
    named = {word for text in (geometry[i], colors[i]) for word in text.split(", ")}
    assert set(whole[i].split(", ")) - {"identity"} <= named
    assert ("mirrored" in named) == bool(drawn.boxes[i, 4])
    assert f"rotation {float(drawn.affine['rotation'][i]):.3g}" in named
    assert f"brightness ×{float(drawn.photometry['brightness'][i]):.3g}" in colors[i]
    assert "brightness" not in geometry[i]
    assert "erase" in colors[i]
  nothing, _ = draws({})
  assert describe(nothing, (SIZE, SIZE)) == ([""] * B, [""] * B)


def test_the_schema_names_the_policies_there_are():
  assert (*schema.POLICIES, *schema.COLOR_POLICIES) == policies.POLICIES


CNN = {"weights": "ema", "view": "aligned"}
TOKENS = {
  "kind": "token_cosine",
  "teacher": "cnn",
  "student_taps": ("block00/tokens",),
  "teacher_taps": ("block00/tokens",),
}


def arm(view="aligned", **teacher):
  return {
    "teachers": {"cnn": {"weights": "ema", "view": view, **teacher}},
    "terms": {"tokens": TOKENS},
    "train": {"ema": 0.9},
  }


@pytest.mark.parametrize(
  ("augment", "more", "message"),
  [
    ({"policy": "autoagument"}, {}, "unknown value 'autoagument'"),
    ({"mixup": -0.1}, {}, "out of range"),
    ({"scale": (1.2, 0.8)}, {}, "not a range"),
    ({"mixup": 0.8}, arm(), "needs a teacher that sees the mixed image"),
    ({"cutmix": 1.0}, arm("clean"), "needs a teacher that sees the mixed image"),
    ({"rotation": 90.0}, {"data": {"name": "digits"}}, "changes what the images of 'digits' show"),
    ({"rotation": 1.0}, {"data": {"name": "synthetic_shapes"}}, "textures of 'synthetic_shapes'"),
    ({"policy": "randaugment"}, {"data": {"name": "synthetic_shapes"}}, "textures of 'synthetic_shapes'"),
  ],
)
def test_the_config_refuses(augment, more, message):
  data = {**more.get("data", {}), "augment": augment}
  with pytest.raises(UserError, match=message) as e:
    tiny.config(**{**more, "data": data})
  assert e.value.hint


def test_the_config_allows_mixing_where_the_teacher_sees_it_and_small_rotations():
  tiny.config(**arm("same"), data={"augment": {"mixup": 0.8, "policy": "autoaugment"}})
  tiny.config(data={"name": "digits", "augment": {"rotation": 15.0, "mixup": 0.8}})
  tiny.config(data={"name": "synthetic_shapes", "augment": {"policy": "randaugment_color", "translate": 0.1}})


def test_a_bank_takes_colours_only():
  for augment, hint in (
    ({"policy": "randaugment"}, "use policy=randaugment_color"),
    ({"translate": 0.1}, "use translate at its default"),
  ):
    config = tiny.config(**arm(), data={"augment": augment})
    with config.unlocked():
      config.teachers.cnn.bank = "runs/bank"
    with pytest.raises(UserError, match="holds crops and mirrors only") as e:
      configs.validate_augment(config, "")
    assert e.value.hint.startswith(hint)
    config.data.augment.update(policy="randaugment_color", translate=0.0)
    configs.validate_augment(config, "")


def test_a_study_with_a_token_term_mixes_in_no_arm():
  raw = tiny.config().to_dict()
  raw["data"]["augment"]["cutmix"] = 1.0
  plain = {"terms": {"ce": tiny.CE}}
  study = {"arms": {"none": plain, "tokens": {k: arm("same")[k] for k in ("teachers", "terms")}}}
  with pytest.raises(UserError, match=r"a study with a token term \(study.arms.tokens.terms.tokens\)"):
    configs.validate(configs.complete({**raw, "study": study}))
  configs.validate(configs.complete({**raw, "study": {"arms": {"none": plain}}}))
