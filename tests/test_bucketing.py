"""Buckets of contexts: least padding, and the predictions of each context alone."""

import doctest
import functools
import itertools
import pathlib

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

import tca_jax
from tca_jax import bucketing
from tests import models

SIZES = [3, 7, 1, 4, 9, 2]


def _smallest_padding(sizes, max_buckets):
  """The least padding over all divisions of the sorted sizes; slow and simple."""
  sizes = sorted(sizes)
  best = np.inf
  for count in range(min(max_buckets, len(sizes))):
    for cuts in itertools.combinations(range(1, len(sizes)), count):
      edges = [0, *cuts, len(sizes)]
      parts = [sizes[i:j] for i, j in itertools.pairwise(edges)]
      best = min(best, sum(len(part) * part[-1] for part in parts))
  return best - sum(sizes)


@hypothesis.given(
  sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8),
  max_buckets=st.integers(1, 5),
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_make_buckets_has_the_least_padding(sizes, max_buckets):
  buckets = bucketing.make_buckets(sizes, max_buckets)
  assert 1 <= len(buckets) <= max_buckets
  assert sorted(np.concatenate(buckets)) == list(range(len(sizes)))
  assert all(len(bucket) and (np.diff(bucket) > 0).all() for bucket in buckets)
  largest = [max(sizes[i] for i in bucket) for bucket in buckets]
  assert largest == sorted(set(largest))
  padded = sum(n * len(bucket) for n, bucket in zip(largest, buckets, strict=True))
  assert padded - sum(sizes) == _smallest_padding(sizes, max_buckets)
  share = bucketing.padding_share(sizes, buckets)
  assert share == pytest.approx((padded - sum(sizes)) / padded)


@pytest.mark.parametrize(
  "sizes, max_buckets, message",
  [
    ([], 1, "list of integers, got"),
    ([1.5], 1, "list of integers, got"),
    ([[1]], 1, "list of integers, got"),
    ([3, 0], 1, "at least 1, got 0 for context 1"),
    ([3], 0, "max_buckets must be at least 1, got 0"),
  ],
)
def test_make_buckets_bad_input_raises(sizes, max_buckets, message):
  with pytest.raises(ValueError, match=message):
    bucketing.make_buckets(sizes, max_buckets)


def _contexts(rng):
  draw = functools.partial(rng.standard_normal, dtype=np.float32)
  coords = [draw((n, models.NUM_AXES)) for n in SIZES]
  values = [draw((n, 1)) for n in SIZES]
  queries = [draw((m, models.NUM_AXES)) for m in (2, 1, 3, 1, 2, 1)]
  return coords, values, queries


@pytest.mark.parametrize(
  "name, options",
  [
    ("tca", {}),
    ("ca", {}),
    pytest.param("perceiver", {}, marks=pytest.mark.slow),
    # Kriging would magnify the rounding of float32.
    pytest.param("relative_tca", {"num_kriged": 0}, marks=pytest.mark.slow),
    pytest.param("relative_ca", {"num_kriged": 0}, marks=pytest.mark.slow),
  ],
)
def test_predictions_of_buckets_equal_those_of_each_context_alone(name, options, rng):
  coords, values, queries = _contexts(rng)
  model = models.model(name, **options)
  params = models.params(model)

  buckets = bucketing.make_buckets(SIZES, 2)

  @jax.jit
  def predict(params, batches):
    outputs = [model.apply(params, **batch).output for batch in batches]
    return bucketing.in_order(buckets, outputs)

  batches = bucketing.pad_contexts(buckets, coords, values, queries)
  found = predict(params, batches)
  assert found.mean.shape == (len(SIZES), 3, 1)
  alone = jax.jit(model.apply)
  for i in (0, 1):  # one of each bucket, both with padding there; others compile longer
    expected = alone(params, coords[i][None], values[i][None], queries[i][None]).output
    for x, y in ((found.mean, expected.mean), (found.std, expected.std)):
      np.testing.assert_allclose(x[i, : len(queries[i])], y[0], rtol=1e-5, atol=1e-5)


def test_in_order_pads_and_restores_the_order():
  buckets = [np.array([1, 2]), np.array([0])]
  outputs = [{"x": np.array([[1.0], [2.0]])}, {"x": np.array([[5.0, 6.0]])}]
  found = bucketing.in_order(buckets, outputs)["x"]
  np.testing.assert_array_equal(found, [[5, 6], [1, 0], [2, 0]])
  with pytest.raises(ValueError, match="2 buckets, got 1 outputs"):
    bucketing.in_order(buckets, outputs[:1])
  for wrong in (np.zeros((2, 1)), np.zeros((1, 1, 4)), np.zeros(1)):
    with pytest.raises(ValueError, match=r"must be .* with n = 1, got shape"):
      bucketing.in_order(buckets, [np.zeros((2, 1)), wrong])


def test_pad_contexts_masks_the_padding(rng):
  coords, values, queries = _contexts(rng)
  buckets = bucketing.make_buckets(SIZES, 2)
  for bucket, batch in zip(
    buckets, bucketing.pad_contexts(buckets, coords, values, queries), strict=True
  ):
    for row, i in enumerate(bucket):
      for name, arrays in (("coords", coords), ("values", values)):
        x = batch[name][row]
        np.testing.assert_array_equal(x[batch["mask"][row]], arrays[i])
        assert not x[SIZES[i] :].any() and batch["mask"][row].sum() == SIZES[i]
      x = batch["query_coords"][row]
      np.testing.assert_array_equal(x[: len(queries[i])], queries[i])


def test_pad_contexts_bad_input_raises(rng):
  coords, values, queries = _contexts(rng)
  buckets = bucketing.make_buckets(SIZES, 2)
  for wrong, message in (
    ((coords[1:], values, queries), "6 contexts, got 5 coords and 6 query_coords"),
    ((coords, values[1:], queries), "6 contexts, got 5 values and 6 query_coords"),
    ((coords, values[::-1], queries), "context 0 has 3 coords and 2 values"),
    (([x[:, 0] for x in coords], values, queries), "must be two-dimensional"),
  ):
    with pytest.raises(ValueError, match=message):
      bucketing.pad_contexts(buckets, *wrong)


def test_call_compiles_once_for_new_values_of_the_same_shapes(rng, count_traces):
  buckets = bucketing.make_buckets(SIZES, 3)
  head = tca_jax.GaussianHead(1, hidden=4)
  params = head.init(jax.random.key(0), np.zeros((1, 1, 2), np.float32))

  def predict(params, batches):
    means = [head.apply(params, batch["coords"]).mean for batch in batches]
    return bucketing.in_order(buckets, means)

  traced, jitted = count_traces(predict)
  for _ in range(2):
    jitted(params, bucketing.pad_contexts(buckets, *_contexts(rng)))
  assert traced.traces == 1


def test_page_examples_run():
  page = pathlib.Path(__file__).parent.parent / "docs/concepts/many_contexts.md"
  assert doctest.testfile(str(page), module_relative=False).failed == 0
