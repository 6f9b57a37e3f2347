"""Which images make up a batch, and repeated augmentation (Berman et al., 2019)."""

from collections import Counter

import numpy as np
import pytest

from jaxkd.data.order import batch_indices
from jaxkd.errors import UserError
from tests import tiny


def batches(count, *, repeats, examples=50, batch_size=12, seed=3):
  options = {"examples": examples, "batch_size": batch_size, "seed": seed, "repeats": repeats}
  return [batch_indices(step, **options) for step in range(count)]


@pytest.mark.parametrize("repeats", [1, 2, 3, 12])
def test_each_batch_holds_every_image_as_often_as_asked(repeats):
  for batch in batches(20, repeats=repeats):
    assert batch.dtype == np.int32
    assert Counter(Counter(batch.tolist()).values()) == {repeats: 12 // repeats}
    copies = batch.reshape(repeats, -1)
    np.testing.assert_array_equal(copies, copies[:1].repeat(repeats, axis=0))


def test_a_pass_over_all_images_takes_as_many_epochs_as_repeats():
  """Epochs keep their steps: 4 batches of 12 from 48 images. No image comes back before all the others were shown."""
  seen = np.stack(batches(4 * 3, repeats=3, examples=48))
  assert Counter(seen.ravel().tolist()) == dict.fromkeys(range(48), 3)
  first, later = (set(part.ravel().tolist()) for part in (seen[:4], seen[4:]))
  assert len(first) == 16
  assert not first & later
  following = np.stack(batches(4 * 6, repeats=3, examples=48))[12:]
  assert Counter(following.ravel().tolist()) == dict.fromkeys(range(48), 3)
  assert (following != seen).any()


def test_without_repeats_nothing_changes_and_any_step_stands_alone():
  plain = [batch_indices(step, examples=50, batch_size=12, seed=3) for step in range(9)]
  np.testing.assert_array_equal(plain, batches(9, repeats=1))
  steps = batches(9, repeats=4)
  np.testing.assert_array_equal(batch_indices(7, examples=50, batch_size=12, seed=3, repeats=4), steps[7])
  assert any((a != b).any() for a, b in zip(steps, batches(9, repeats=4, seed=4), strict=True))


def test_a_batch_that_is_no_multiple_is_refused_with_the_next_one():
  with pytest.raises(UserError, match="batch size 12 is not divisible by 5 repeats"):
    batches(1, repeats=5)
  with pytest.raises(UserError, match=r"train.batch_size 16 is not divisible by data.augment.repeats 3") as e:
    tiny.config(data={"augment": {"repeats": 3}})
  assert e.value.hint == "e.g. --config.train.batch_size=18"
  tiny.config(data={"augment": {"repeats": 4}})
