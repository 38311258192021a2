"""Kriging of nodes: a Gaussian process that predicts from averages over nodes.

Kriging is the linear prediction of least variance under a given covariance function. In
geostatistics it uses the observations nearest to a location. Here it uses the nodes that
a query reads. The value of a node is the mean over its tokens, so covariances are those
of averages; for a leaf they are those of the observation.

Each query brings its covariance function, see `covariance`, in the units of its
`LocalFrame`.
"""

import jax
import jax.numpy as jnp

from tca_jax.covariance import Covariance
from tca_jax.covariance import squared_length
from tca_jax.node_memory import Nodes
from tca_jax.relative import LocalFrame
from tca_jax.relative import residual_values

__all__ = ["krige", "nearest_of"]

_JITTER = 1e-4  # smallest variance of noise, relative to that of the process
_SMALLEST = 1e-5  # smallest predicted variance, relative to that of the process
_MARGIN = 0.5  # how far a mean may be outside of the values read, in local spreads


def nearest_of(
  offset: jax.Array, nodes: Nodes, num_nearest: int
) -> tuple[jax.Array, Nodes]:
  """Selects the nodes whose centroids are nearest to each query.

  Args:
    offset: `[..., S, C]`, from the query to each node's centroid.
    nodes: `Nodes` with axes `[..., S]`, or ones that are broadcast to these.
    num_nearest: the largest number of nodes to select.

  Returns:
    The offsets and nodes, with axes `[..., min(num_nearest, S)]`.
  """
  lead = offset.shape[:-1]
  nodes = jax.tree.map(
    lambda x: jnp.broadcast_to(x, lead + x.shape[nodes.count.ndim :]), nodes
  )
  if num_nearest >= lead[-1]:
    return offset, nodes
  square = jnp.where(nodes.count > 0, squared_length(offset), jnp.inf)
  index = jax.lax.top_k(-square, num_nearest)[1]

  def take(x: jax.Array) -> jax.Array:
    at = jnp.expand_dims(index, range(index.ndim, x.ndim))
    return jnp.take_along_axis(x, at, axis=index.ndim - 1, mode="promise_in_bounds")

  return take(offset), jax.tree.map(take, nodes)


def krige(
  offset: jax.Array, nodes: Nodes, frame: LocalFrame, covariance: Covariance
) -> tuple[jax.Array, jax.Array]:
  """Predicts the value at each query from the mean values of nodes.

  The process describes the differences from the plane of the `LocalFrame`. Its mean is
  an unknown constant. So that a prediction far from all nodes stays reasonable, it is
  limited to the range of the values of the nodes, and half a local spread beyond.

  Args:
    offset: `[..., S, C]`, from the query to each node's centroid.
    nodes: `Nodes` with axes `[..., S]`.
    frame: the `LocalFrame` with axes `[...]`.
    covariance: the `Covariance` with axes `[...]`, in the units of the frame.

  Returns:
    The mean, `[..., E]`, relative to `frame.reference` and in units of `frame.spread`;
    and the standard deviation, `[...]`, of the value with its noise in these units.
    Without any valid node, the mean is 0.
  """
  valid = nodes.count > 0
  length = frame.length[..., None, None]
  x = offset / length
  y = jnp.where(valid[..., None], residual_values(x, nodes, frame), 0)
  axes = x.shape[-1]
  # The variance of n locations that are spread evenly over the sides of a box.
  sides = squared_length((nodes.high - nodes.low) / length) / axes
  spread = sides / 12 * (nodes.count + 1) / jnp.maximum(nodes.count - 1, 1)

  among = covariance.between(
    squared_length(x[..., :, None, :] - x[..., None, :, :]),
    spread[..., :, None] + spread[..., None, :],
    axes,
  )
  to_query = covariance.between(squared_length(x), spread, axes)
  among = jnp.where(valid[..., :, None] & valid[..., None, :], among, 0)
  to_query = jnp.where(valid, to_query, 0)
  variance = covariance.variance
  noise = covariance.noise[..., None] / jnp.maximum(nodes.count, 1)
  noise = jnp.where(valid, noise + _JITTER * variance[..., None], 1)
  eye = jnp.eye(valid.shape[-1], dtype=x.dtype)
  among += noise[..., None] * jnp.expand_dims(eye, range(valid.ndim - 1))

  right = jnp.concatenate([y, to_query[..., None]], axis=-1)
  products = _inverse_products(among, right)[..., -1, :]
  mean, explained = products[..., :-1], products[..., -1]
  low, high = jnp.min(y, axis=-2) - _MARGIN, jnp.max(y, axis=-2) + _MARGIN
  mean = jnp.clip(mean, jnp.minimum(low, -_MARGIN), jnp.maximum(high, _MARGIN))
  missing = jnp.maximum(variance - explained, _SMALLEST * variance)
  return mean, jnp.sqrt(missing + covariance.noise)


@jax.custom_jvp
def _inverse_products(matrix: jax.Array, right: jax.Array) -> jax.Array:
  """Computes right^T matrix^-1 right of a positive definite matrix.

  The derivative needs the solution of the system, and not that of the factorisation.

  Args:
    matrix: `[..., S, S]`.
    right: `[..., S, n]`.

  Returns:
    `[..., n, n]`.
  """
  half = _half_solution(jax.lax.linalg.cholesky(matrix, symmetrize_input=False), right)
  return _products(half, half)


@_inverse_products.defjvp
def _inverse_products_jvp(
  primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  (matrix, right), (d_matrix, d_right) = primals, tangents
  factor = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
  half = _half_solution(factor, right)
  solution = _half_solution(factor, half, transpose_a=True)
  change = _products(d_right, solution)
  change += jnp.swapaxes(change, -1, -2)
  change -= _products(solution, jnp.matmul(d_matrix, solution, precision="highest"))
  return _products(half, half), change


def _half_solution(
  factor: jax.Array, right: jax.Array, transpose_a: bool = False
) -> jax.Array:
  """factor^-1 right for a lower triangular factor, or that of its transpose."""
  return jax.lax.linalg.triangular_solve(
    factor, right, left_side=True, lower=True, transpose_a=transpose_a
  )


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
  """a^T b."""
  return jnp.matmul(jnp.swapaxes(a, -1, -2), b, precision="highest")
