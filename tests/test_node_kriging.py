"""Kriging of nodes: predictions, and degenerate contexts."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tca_jax import node_kriging
from tca_jax.covariance import Covariance
from tca_jax.covariance import LENGTHS
from tca_jax.node_memory import Nodes
from tca_jax.relative import LocalFrame
from tests import reference

_krige = jax.jit(node_kriging.krige)
_NUM_CHANGES = len(LENGTHS) + 2


def _nodes(rng, size, axes=2, channels=1, points=False):
  """Random nodes and the offsets of their centroids."""
  offset = rng.normal(size=(size, axes)).astype(np.float32)
  count = np.ones(size) if points else rng.integers(1, 5, size)
  side = rng.uniform(size=(size, axes)) * (count > 1)[:, None]
  values = rng.normal(size=(size, channels))
  nodes = Nodes(
    count=count,
    low=offset - side / 2,
    high=offset + side / 2,
    centroid=offset,
    mean=values,
    variance=np.zeros_like(values),
    summary=np.zeros((size, 0)),
  )
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (offset, nodes))


def _frame(length=1.0, axes=2, channels=1, slope=0.0, reference=0.0, spread=1.0):
  return LocalFrame(
    length=jnp.float32(length),
    reference=jnp.full(channels, reference),
    slope=jnp.full((axes, channels), slope),
    spread=jnp.full(channels, spread),
  )


def _covariance(rng):
  changes = rng.normal(size=_NUM_CHANGES)
  return Covariance.default().changed(jnp.asarray(changes, jnp.float32))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("points", [False, True])
def test_krige_equals_the_reference(axes, points, rng):
  for size in (1, 2, 20):
    offset, nodes = _nodes(rng, size, axes, points=points)
    covariance = _covariance(rng)
    mean, std = _krige(offset, nodes, _frame(axes=axes), covariance)
    expected = reference.krige(
      *(np.asarray(x, np.float64) for x in (offset, nodes.count)),
      np.asarray(nodes.high - nodes.low, np.float64),
      np.asarray(nodes.mean[:, 0], np.float64),
      LENGTHS,
      *(np.asarray(x, np.float64) for x in (covariance.variances, covariance.constant)),
      np.float64(covariance.noise),
    )
    np.testing.assert_allclose(mean[0], expected[0], rtol=0, atol=5e-3)
    np.testing.assert_allclose(std, expected[1], rtol=5e-3)


def test_krige_works_in_the_units_of_the_frame(rng):
  offset, nodes = _nodes(rng, 12)
  covariance = _covariance(rng)
  expected = _krige(offset, nodes, _frame(), covariance)
  plane = 5 + 7 * nodes.mean + 3 * 7 * jnp.sum(offset, axis=1, keepdims=True)
  moved = nodes.replace(
    low=4 * nodes.low, high=4 * nodes.high, centroid=4 * offset, mean=plane
  )
  frame = _frame(length=4.0, slope=3.0 * 7, reference=5.0, spread=7.0)
  found = _krige(4 * offset, moved, frame, covariance)
  chex.assert_trees_all_close(found, expected, rtol=1e-2, atol=1e-2)


def test_krige_of_several_channels_and_queries_is_that_of_each(rng):
  parts = [_nodes(rng, 9, channels=2) for _ in range(3)]
  changes = jnp.asarray(rng.normal(size=(3, _NUM_CHANGES)), jnp.float32)
  offset, nodes = jax.tree.map(lambda *x: jnp.stack(x), *parts)
  frame = _frame(channels=2)
  frames = jax.tree.map(lambda x: jnp.stack([x] * 3), frame)
  covariance = Covariance.default().changed(changes)
  mean, std = _krige(offset, nodes, frames, covariance)
  assert mean.shape == (3, 2) and std.shape == (3,)
  for i, (one_offset, one) in enumerate(parts):
    for channel in range(2):
      single = one.replace(mean=one.mean[:, channel, None])
      function = jax.tree.map(lambda x, i=i: x[i], covariance)
      found = _krige(one_offset, single, _frame(), function)
      np.testing.assert_allclose(found[0], mean[i, channel, None], rtol=0, atol=2e-3)
      np.testing.assert_allclose(found[1], std[i], rtol=2e-3)


def test_krige_ignores_nodes_without_token(rng):
  offset, nodes = _nodes(rng, 8)
  covariance = _covariance(rng)
  expected = _krige(offset, nodes, _frame(), covariance)
  more = jax.tree.map(lambda x: jnp.concatenate([x, 0 * x]), nodes)
  found = _krige(jnp.concatenate([offset, 0 * offset]), more, _frame(), covariance)
  chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-3)
  none = nodes.replace(count=0 * nodes.count)
  mean, std = _krige(offset, none, _frame(), covariance)
  assert mean.tolist() == [0.0] and std > 0


def test_krige_at_an_observation_without_noise_returns_it(rng):
  offset, nodes = _nodes(rng, 10, points=True)
  offset = offset - offset[3][None]
  changes = jnp.zeros(_NUM_CHANGES).at[-1].set(-8.0)
  covariance = Covariance.default().changed(changes)
  mean, std = _krige(offset, nodes, _frame(), covariance)
  np.testing.assert_allclose(mean, nodes.mean[3], rtol=0, atol=0.05)
  assert std < 0.2


def test_nearest_of_selects_the_nearest_valid_nodes(rng):
  offset, nodes = _nodes(rng, 30)
  nodes = nodes.replace(count=nodes.count.at[::3].set(0))
  near, found = node_kriging.nearest_of(offset, nodes, 5)
  distance = np.where(nodes.count > 0, np.linalg.norm(offset, axis=1), np.inf)
  order = np.argsort(distance)[:5]
  np.testing.assert_array_equal(near, offset[order])
  np.testing.assert_array_equal(found.mean, nodes.mean[order])
  everything, _ = node_kriging.nearest_of(offset, nodes, 30)
  np.testing.assert_array_equal(everything, offset)


def test_nearest_of_nodes_that_queries_share(rng):
  _, nodes = _nodes(rng, 20)
  queries = jnp.asarray(rng.normal(size=(4, 1, 2)), jnp.float32)
  offset = nodes.centroid[None] - queries
  shared = jax.tree.map(lambda x: x[None], nodes)
  near, found = node_kriging.nearest_of(offset, shared, 6)
  assert near.shape == (4, 6, 2) and found.mean.shape == (4, 6, 1)
  for i in range(4):
    np.testing.assert_array_equal(
      near[i], node_kriging.nearest_of(offset[i], nodes, 6)[0]
    )


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e6])
def test_gradients_are_finite_for_every_covariance_function(scale, rng):
  offset, nodes = _nodes(rng, 32, points=True)
  offset = scale * offset

  def total(offset, values, changes):
    covariance = Covariance.default().changed(changes)
    mean, std = _krige(offset, nodes.replace(mean=values), _frame(), covariance)
    return jnp.sum(mean) + jnp.log(std)

  gradient = jax.jit(jax.vmap(jax.value_and_grad(total, (0, 1, 2)), (None, None, 0)))
  changes = jnp.asarray(rng.normal(size=(100, _NUM_CHANGES)) * 20, jnp.float32)
  chex.assert_tree_all_finite(gradient(offset, nodes.mean, changes))


def test_derivatives_of_inverse_products_equal_those_of_a_general_solver(rng):
  root = rng.normal(size=(3, 5, 5))
  matrix = jnp.asarray(root @ np.swapaxes(root, 1, 2) + np.eye(5), jnp.float32)
  right = jnp.asarray(rng.normal(size=(3, 5, 2)), jnp.float32)

  def general(matrix, right):
    return jnp.swapaxes(right, 1, 2) @ jnp.linalg.solve(matrix, right)

  def total(products, matrix, right):
    symmetric = (matrix + jnp.swapaxes(matrix, 1, 2)) / 2
    return jnp.sum(jnp.sin(products(symmetric, right)))

  for derivative in (jax.value_and_grad, jax.jacfwd):
    found, expected = (
      derivative(functools.partial(total, f), (0, 1))(matrix, right)
      for f in (node_kriging._inverse_products, general)
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-3)
