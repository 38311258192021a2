"""Statistics of nodes against the reference, and their invariances."""

import dataclasses
import itertools

import chex
import jax
import numpy as np
import pytest

from tca_jax import statistics
from tca_jax import tree as tree_lib
from tests import cases
from tests import reference

_build = jax.jit(tree_lib.build_tree, static_argnames="branch_factor")
_statistics = jax.jit(statistics.node_statistics, static_argnames="keep_border")


def _absolute(found):
  """{(level, index): (count, centroid, low, high, mean, variance, border)}, absolute."""
  found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
  nodes = {}
  for l, level in enumerate(found.levels):
    for i, count in enumerate(level.count):
      where = [
        x[i] + found.domain.origin for x in (level.centroid, level.low, level.high)
      ]
      mean = level.mean[i] + found.domain.value_origin
      origin = np.concatenate([found.domain.origin, found.domain.value_origin])
      border = level.border[i] + origin
      nodes[l, i] = (count, *where, mean, level.variance[i], border)
  return nodes


def _check(found, expected, scale):
  assert found.keys() == expected.keys()
  for node, (count, *moments) in expected.items():
    assert found[node][0] == count
    if count:
      for x, y in zip(found[node][1:], moments, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("n, b", cases.SHAPES)
def test_node_statistics_any_layout_and_mask_equal_reference(n, b, rng):
  for layout, kind in itertools.product(cases.LAYOUTS, cases.MASKS):
    coords, mask = cases.coords(layout, n, rng), cases.mask(kind, n, rng)
    values = rng.normal(size=(n, 3)).astype(np.float32)
    junk = np.where(mask[:, None], values, np.nan)  # masked tokens have no effect
    tree = _build(coords, mask, branch_factor=b)
    found = _statistics(tree, coords, junk, keep_border=True)
    expected = reference.node_statistics(
      reference.build(coords, mask, b), coords, values
    )
    _check(_absolute(found), expected, scale=max(n, 10))
    for level in found.levels:
      empty = np.asarray(level.count) == 0
      for x in (level.centroid, level.low, level.high, level.mean, level.variance,
                level.border):  # fmt: skip
        assert not np.any(np.asarray(x)[empty]) and np.all(np.isfinite(x))


def test_node_statistics_large_offset_keeps_the_precision_of_the_input(rng):
  coords = (5e6 + 300 * rng.random((100, 2))).astype(np.float32)
  values = (1e6 + rng.normal(size=(100, 1))).astype(np.float32)
  found = _statistics(_build(coords), coords, values, keep_border=True)
  expected = reference.node_statistics(
    reference.build(coords, np.ones(100, bool), 2), coords, values
  )
  _check(_absolute(found), expected, scale=10)
  (variance,) = np.asarray(found.levels[0].variance[0])
  assert variance == pytest.approx(np.var(np.float64(values)), rel=1e-5)


def test_node_statistics_permuted_tokens_are_equal(rng):
  coords = rng.normal(size=(33, 2)).astype(np.float32)
  values, order = coords[:, :1] ** 2, rng.permutation(33)
  found = _statistics(_build(coords), coords, values, keep_border=True)
  coords, values = coords[order], values[order]
  permuted = _statistics(_build(coords), coords, values, keep_border=True)
  chex.assert_trees_all_close(found, permuted, atol=1e-6)


def test_node_statistics_jit_equals_eager_and_vmap_equals_loop(rng):
  coords = rng.normal(size=(3, 5, 2)).astype(np.float32)
  trees = jax.jit(jax.vmap(tree_lib.build_tree))(coords)
  batched = jax.jit(jax.vmap(statistics.node_statistics))(trees, coords, coords)
  for i, x in enumerate(coords):
    tree = jax.tree.map(lambda leaf, i=i: leaf[i], trees)
    one = statistics.node_statistics(tree, x, x)
    chex.assert_trees_all_close(one, _statistics(tree, x, x), atol=1e-6)
    chex.assert_trees_all_close(
      one, jax.tree.map(lambda leaf, i=i: leaf[i], batched), atol=1e-6
    )


def test_node_statistics_traces_once_a_shape(rng, count_traces):
  traced, fn = count_traces(statistics.node_statistics)
  for _ in range(2):
    coords, mask = rng.normal(size=(9, 2)).astype(np.float32), cases.mask("one", 9, rng)
    fn(_build(coords, mask), coords, coords)
  assert traced.traces == 1


def test_node_statistics_gradients_are_finite(rng):
  coords = np.zeros((8, 2), np.float32)  # duplicates, constant values

  @jax.jit
  @jax.grad
  def gradient(x, tree):
    return sum(map(lambda y: y.sum(), jax.tree.leaves(_floats(tree, x))))

  for kind in cases.MASKS:
    tree = _build(coords, cases.mask(kind, 8, rng))
    assert np.all(np.isfinite(gradient(coords, tree)))


def _floats(tree, x):
  levels = statistics.node_statistics(tree, x, x, keep_border=True).levels
  return [dataclasses.replace(level, count=None) for level in levels]


@pytest.mark.parametrize(
  "coords, values, message",
  [
    (np.ones((4, 2)), np.ones((5, 1)), r"values must be \[N, width\] .* got shape"),
    (np.ones((9, 2)), np.ones((9, 1)), r"coords must be \[N, width\] .* depth 2"),
    (np.ones(4), np.ones((4, 1)), r"coords must be \[N, width\]"),
    (np.ones((4, 2)), np.ones((4, 1), int), "values must be floating point, got"),
  ],
)
def test_node_statistics_bad_input_raises(coords, values, message):
  tree = tree_lib.build_tree(np.ones((4, 1), np.float32))
  with pytest.raises(ValueError, match=message):
    statistics.node_statistics(tree, coords, values)
