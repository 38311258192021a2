"""Statistics of the tokens below each node of a tree; nothing is learned.

A node's count, mean location, bounding box, and the mean and variance of given values
follow from those of its children. One pass from the leaves to the root computes them for
all nodes, in time linear in the number of tokens.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from tca_jax.checks import check_floating
from tca_jax.masking import masked_mean
from tca_jax.tree import Tree
from tca_jax.tree import tree_depth

__all__ = [
  "Domain",
  "LevelStatistics",
  "NodeStatistics",
  "domain_of_root",
  "measure_domain",
  "merge_siblings",
  "node_statistics",
  "single_tokens",
]


@chex.dataclass(frozen=True)
class Domain:
  """Where the valid tokens of a context lie, and the range of their values.

  Attributes:
    origin: `[C]` float32, the centre of their bounding box.
    extent: `[]` float32, the longest side of the box.
    value_origin: `[E]` float32, the centre of the range of their values.
    value_spread: `[E]` float32, the standard deviation of their values.
  """

  origin: jax.Array
  extent: jax.Array
  value_origin: jax.Array
  value_spread: jax.Array

  def centre(
    self, coords: jax.Array, values: jax.Array, mask: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns locations and values relative to the origins, float32, 0 where masked.

    Args:
      coords: `[N, C]` floating point.
      values: `[N, E]` floating point.
      mask: `[N]` bool, True at valid tokens.
    """
    location = coords.astype(jnp.float32) - self.origin[None]
    value = values.astype(jnp.float32) - self.value_origin[None]
    valid = mask[:, None]
    return jnp.where(valid, location, 0), jnp.where(valid, value, 0)


@chex.dataclass(frozen=True)
class LevelStatistics:
  """Statistics of the nodes of one level; those of a node without valid token are 0.

  Locations are relative to `Domain.origin`, values to `Domain.value_origin`.

  Attributes:
    count: `[b**l]` int32, the number of valid tokens below each node.
    centroid: `[b**l, C]` float32, the mean of their locations.
    low: `[b**l, C]` float32, the smallest coordinates of their bounding box.
    high: `[b**l, C]` float32, the largest coordinates of their bounding box.
    mean: `[b**l, E]` float32, the mean of their values.
    variance: `[b**l, E]` float32, the population variance of their values.
    border: `[b**l, 2 * C, C + E]` float32, the tokens that touch the sides of the box:
      for each axis that of the smallest coordinate, then for each axis that of the
      largest one; the location, then the value of each. None if they are not kept.
  """

  count: jax.Array
  centroid: jax.Array
  low: jax.Array
  high: jax.Array
  mean: jax.Array
  variance: jax.Array
  border: jax.Array | None = None


@chex.dataclass(frozen=True)
class NodeStatistics:
  """Statistics of all nodes of a tree.

  Attributes:
    domain: the `Domain` of the context.
    levels: depth + 1 `LevelStatistics`, from the root to the leaves in leaf order.
  """

  domain: Domain
  levels: tuple[LevelStatistics, ...]


def measure_domain(
  coords: jax.Array, values: jax.Array, mask: jax.Array | None = None
) -> Domain:
  """Measures where the tokens of a context lie, and the range of their values.

  Args:
    coords: `[N, C]` floating point.
    values: `[N, E]` floating point.
    mask: `[N]` bool, True at valid tokens; None means that all are valid.

  Returns:
    A `Domain`; all 0 if no token is valid.

  Raises:
    ValueError: if an array is not floating point.

  >>> x = jnp.array([[1.0], [5.0]])
  >>> domain = measure_domain(x, 2 * x)
  >>> domain.origin.item(), domain.extent.item(), domain.value_spread.item()
  (3.0, 4.0, 4.0)
  """
  coords, values = jnp.asarray(coords), jnp.asarray(values)
  check_floating(coords=coords, values=values)
  valid = jnp.ones((len(coords), 1), bool) if mask is None else mask[:, None]
  centres, sides = [], []
  for array in (coords, values):
    x = array.astype(jnp.float32)
    low = jnp.min(jnp.where(valid, x, jnp.inf), axis=0)
    side = jnp.max(jnp.where(valid, x, -jnp.inf), axis=0) - low
    centres.append(jnp.where(jnp.any(valid), low + side / 2, 0))
    sides.append(jnp.where(jnp.any(valid), side, 0))
  relative = jnp.where(valid, values.astype(jnp.float32) - centres[1][None], 0)
  mean = masked_mean(relative, valid, axis=0, keepdims=True)
  variance = masked_mean((relative - mean) ** 2, valid, axis=0)
  varies = variance > 0
  return Domain(
    origin=centres[0],
    extent=jnp.max(sides[0]),
    value_origin=centres[1],
    # Finite gradients also where the variance is 0.
    value_spread=jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1)), 0),
  )


def node_statistics(
  tree: Tree,
  coords: jax.Array,
  values: jax.Array,
  domain: Domain | None = None,
  *,
  keep_border: bool = False,
) -> NodeStatistics:
  """Computes the statistics of the tokens below every node.

  Coordinates and values are first taken relative to the centre of their range, so that
  a large offset (such as 5e6 metres in a map projection) costs no precision beyond that
  of the input.

  Args:
    tree: a `Tree` over the N tokens of one context.
    coords: `[N, C]` floating point, the locations of the tokens.
    values: `[N, E]` floating point, the values to average.
    domain: the `Domain` whose origins are used; None means that it is measured.
    keep_border: whether to keep the tokens that touch the sides of each node's box.

  Returns:
    A `NodeStatistics`.

  Raises:
    ValueError: if an array is not `[N, width]` with N that fits the tree, or not
      floating point.

  >>> from tca_jax.tree import build_tree
  >>> x = jnp.array([[0.0], [1.0], [4.0]])
  >>> root = node_statistics(build_tree(x), x, 2 * x).levels[0]
  >>> root.count.item(), root.low.tolist(), root.high.tolist()
  (3, [[-2.0]], [[2.0]])
  """
  coords, values = jnp.asarray(coords), jnp.asarray(values)
  check_floating(coords=coords, values=values)
  b, depth = tree.branch_factor, tree.depth
  for name, x in {"coords": coords, "values": values}.items():
    if x.ndim != 2 or tree_depth(len(x), b) != depth or x.shape[0] != coords.shape[0]:
      raise ValueError(
        f"{name} must be [N, width] with one N of depth {depth} at branch factor {b},"
        f" got shape {x.shape}"
      )
  leaf_index = jnp.asarray(tree.leaf_index)
  valid = jnp.asarray(tree.leaf_mask)
  coords, values = coords[leaf_index], values[leaf_index]
  if domain is None:
    domain = measure_domain(coords, values, valid)
  location, value = domain.centre(coords, values, valid)
  levels = [single_tokens(location, value, valid, keep_border)]
  for _ in range(depth):
    levels.append(merge_siblings(levels[-1], b))
  return NodeStatistics(domain=domain, levels=tuple(reversed(levels)))


def single_tokens(
  location: jax.Array, value: jax.Array, valid: jax.Array, keep_border: bool
) -> LevelStatistics:
  """The statistics of nodes of one token each.

  Args:
    location: `[n, C]` float32, relative to `Domain.origin`; 0 where not valid.
    value: `[n, E]` float32, relative to `Domain.value_origin`; 0 where not valid.
    valid: `[n]` bool, whether the node has the token.
    keep_border: see `node_statistics`.
  """
  border = None
  if keep_border:
    token = jnp.concatenate([location, value], axis=-1)[:, None]
    sides = 2 * location.shape[-1]
    border = jnp.broadcast_to(token, (len(token), sides, token.shape[-1]))
  return LevelStatistics(
    count=valid.astype(jnp.int32),
    centroid=location,
    low=location,
    high=location,
    mean=value,
    variance=jnp.zeros_like(value),
    border=border,
  )


def merge_siblings(children: LevelStatistics, b: int) -> LevelStatistics:
  """Computes the statistics of nodes from those of their children.

  Args:
    children: `LevelStatistics` of n * b nodes, siblings next to each other.
    b: the branch factor.

  Returns:
    `LevelStatistics` of n nodes.
  """
  children = jax.tree.map(lambda x: x.reshape(len(x) // b, b, *x.shape[1:]), children)
  count = children.count[..., None]  # [nodes, b, 1]
  total = jnp.sum(count, axis=1, dtype=jnp.int32)
  share = count.astype(jnp.float32) / jnp.maximum(total, 1).astype(jnp.float32)[:, None]
  mean = jnp.sum(share * children.mean, axis=1)
  squares = children.variance + (children.mean - mean[:, None]) ** 2
  valid, any_valid = count > 0, total > 0
  low = jnp.min(jnp.where(valid, children.low, jnp.inf), axis=1)
  high = jnp.max(jnp.where(valid, children.high, -jnp.inf), axis=1)
  border = None
  if children.border is not None:
    # By the border alone: while a memory is renewed, borders are renewed before boxes.
    axes = children.low.shape[-1]
    sides = [children.border[:, :, i, i % axes] for i in range(2 * axes)]
    outward = jnp.stack([*(-x for x in sides[:axes]), *sides[axes:]], axis=-1)
    outermost = jnp.argmax(jnp.where(valid, outward, -jnp.inf), axis=1)  # [nodes, 2 C]
    chosen = jnp.arange(b)[None, :, None] == outermost[:, None]
    border = jnp.sum(jnp.where(chosen[..., None], children.border, 0), axis=1)
  return LevelStatistics(
    count=total[:, 0],
    centroid=jnp.sum(share * children.centroid, axis=1),
    low=jnp.where(any_valid, low, 0),
    high=jnp.where(any_valid, high, 0),
    mean=mean,
    variance=jnp.sum(share * squares, axis=1),
    border=border,
  )


def domain_of_root(domain: Domain, root: LevelStatistics) -> Domain:
  """Measures a domain by the statistics of the root.

  Args:
    domain: the `Domain`, whose origins stay.
    root: the `LevelStatistics` of the root.

  Returns:
    The `Domain` with another extent and spread.
  """
  variance = root.variance[0]
  varies = variance > 0
  return dataclasses.replace(
    domain,
    extent=jnp.max(root.high[0] - root.low[0]),
    # Finite gradients also where the variance is 0.
    value_spread=jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1)), 0),
  )
