"""Batches: padding, batch sizes and the split of examples into batches."""

import chex
import numpy as np
import pytest

from experiments.common import batch as batch_lib
from experiments.common.errors import ConfigError


def _batch(rng, targets):
  return batch_lib.Batch(
    coords=rng.normal(size=(2, 3, 2)).astype(np.float32),
    values=rng.normal(size=(2, 3, 4)).astype(np.float32),
    mask=np.array([[True, True, False], [False, False, True]]),
    query_coords=rng.normal(size=(2, 2, 2)).astype(np.float32),
    targets=targets,
    query_mask=np.array([[True, False], [True, True]]),
  )


@pytest.mark.parametrize("kind", ["labels", "values"])
def test_cleaned_padded_queries_and_targets_are_zero(kind, rng):
  targets = (
    rng.integers(1, 9, (2, 2), dtype=np.int32)
    if kind == "labels"
    else rng.normal(size=(2, 2, 1)).astype(np.float32)
  )
  batch = _batch(rng, targets)
  batch.query_coords[~batch.query_mask] = np.nan
  batch.targets[~batch.query_mask] = np.nan if kind == "values" else -7
  cleaned = batch.cleaned()
  chex.assert_trees_all_equal_shapes_and_dtypes(cleaned, batch)
  valid = batch.query_mask
  for name in ("query_coords", "targets"):
    before, after = np.asarray(batch[name]), np.asarray(cleaned[name])
    np.testing.assert_array_equal(after[valid], before[valid])
    assert not np.any(after[~valid])
  for name in ("coords", "values", "mask", "query_mask"):
    np.testing.assert_array_equal(cleaned[name], batch[name])


def test_check_batch_size_above_the_number_of_examples_raises():
  batch_lib.check_batch_size(2000, 2000, "images")
  message = "at most the 2,000 images to train on, got 2,001"
  with pytest.raises(ConfigError, match=message):
    batch_lib.check_batch_size(2001, 2000, "images")


@pytest.mark.parametrize("num_examples", [1, 5, 6, 7])
@pytest.mark.parametrize("max_batches", [0, 1, 9])
def test_batch_indices_every_example_is_new_once(num_examples, max_batches):
  batches = list(batch_lib.batch_indices(num_examples, 3, max_batches))
  needed = -(-num_examples // 3)
  assert len(batches) == min(max_batches or needed, needed)
  assert all(index.shape == new.shape == (3,) for index, new in batches)
  used = np.concatenate([index[new] for index, new in batches])
  assert used.tolist() == list(range(min(num_examples, 3 * len(batches))))
