"""DINO's photometry: how often each view is blurred and solarised, and colour jitter that is drawn as a whole."""

import functools

import jax
import numpy as np
import pytest

from configs import dino_vit
from jaxkd import config as configs
from jaxkd.data.augment import changes_images, draw_views, make_views
from jaxkd.errors import UserError
from tests import tiny

B = 2000
VIEWS = {
  "global_count": 2,
  "global_scale": (1.0, 1.0),
  "local_count": 2,
  "local_size": 4,
  "local_scale": (0.2, 0.5),
  "recipe": "dino",
}
AUGMENT = dino_vit.COLOUR
FACTORS = ("brightness", "contrast", "saturation")


@functools.lru_cache
def drawn():
  draw = jax.jit(lambda key: draw_views(key, (B, 8, 8, 3), augment=AUGMENT, views=VIEWS))
  return jax.tree.map(np.asarray, draw(jax.random.key(0)))


def assert_share(chosen, share):
  assert abs(chosen.mean() - share) <= 4.5 * np.sqrt(share * (1 - share) / chosen.size), chosen.mean()


def test_each_view_has_its_own_probabilities():
  whole, small = (d.photometry for d in drawn())
  for options, view, blur, solarize in (
    (whole, slice(0, B), 1.0, 0.0),
    (whole, slice(B, 2 * B), 0.1, 0.2),
    (small, slice(0, 2 * B), 0.5, 0.0),
  ):
    assert_share(options["blur"][view] > 0, blur)
    assert_share(options.get("solarize", np.zeros(2 * B, bool))[view], solarize)
    assert_share(options["grayscale"][view], 0.2)
  sigma = whole["blur"][:B]
  assert 0.1 <= sigma.min() < 0.15
  assert 1.95 < sigma.max() <= 2.0
  with pytest.raises(AssertionError):
    assert_share(whole["blur"][:B] > 0, 0.9)


def test_jitter_takes_all_four_or_none():
  for options in (d.photometry for d in drawn()):
    touched = np.stack([*(options[name] != 1 for name in FACTORS), options["hue"] != 0])
    assert (touched == touched[:1]).all()
    assert_share(touched[0], 0.8)
    for name, amount in (("brightness", 0.4), ("contrast", 0.4), ("saturation", 0.2)):
      chosen = options[name][touched[0]]
      assert 1 - amount <= chosen.min() < 1 - 0.98 * amount
      assert 1 + 0.98 * amount < chosen.max() <= 1 + amount
    assert 0.098 < np.abs(options["hue"]).max() <= 0.1


def test_without_a_recipe_the_draws_are_those_of_the_options():
  draw = lambda views, **more: draw_views(  # noqa: E731
    jax.random.key(1), (16, 8, 8, 3), augment=AUGMENT | more, views=VIEWS | views
  )
  plain, named = (
    jax.jit(lambda v=v: draw({**v}, blur=0.5)[0].photometry)() for v in ({"recipe": "none"}, {})
  )
  assert "solarize" not in plain
  np.testing.assert_array_equal(plain["brightness"], named["brightness"])
  assert (plain["blur"] != named["blur"]).any()
  assert changes_images({}, VIEWS)
  assert not changes_images({}, VIEWS | {"recipe": "none"})


def test_views_are_drawn_with_the_recipe():
  images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
  make = jax.jit(functools.partial(make_views, mean=(0.5,) * 3, augment={}, views=VIEWS))
  out = jax.tree.map(np.asarray, make(images, jax.random.key(0)))
  changed = (out["student"] != out["aligned"]).any(axis=(1, 2, 3))
  assert changed[:16].mean() > 0.8, "all are blurred, some by a tenth of a pixel"
  assert changed[16:].mean() < 0.7


def test_the_preset_asks_for_it_where_there_is_colour():
  colour, grey = (
    configs.complete(dino_vit.get_config(f"data={name}")).data for name in ("cifar10", "digits")
  )
  assert (colour.views.recipe, colour.augment.jitter, colour.augment.hue) == ("dino", 0.8, 0.1)
  assert (grey.views.recipe, grey.augment.hue, grey.augment.saturation) == ("none", 0.0, 0.0)


@pytest.mark.parametrize("option", ["blur", "solarize"])
def test_two_answers_are_refused(option):
  with pytest.raises(UserError, match=f"data.augment.{option} and data.views.recipe=dino both say") as e:
    tiny.config(data={"augment": {option: 0.5}, "views": {"recipe": "dino"}})
  assert e.value.hint.startswith(f"set --config.data.augment.{option}=0")
