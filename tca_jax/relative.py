"""Relative reads: nodes as seen from a query.

A node's statistics (see `statistics`) say where it lies and what values it has. Here
they are expressed relative to a query, so that a model can use distances: offsets in
units of a local length, and values relative to a local reference, in units of a local
spread. The result does not change if all locations are shifted or scaled together, or
if all values are mapped by the same increasing affine function.

`nearest_nodes` is the policy that goes with it. It follows the nodes whose bounding
boxes are nearest to the query, and has nothing to learn.

An axis may be periodic, such as a longitude. An argument `periods` gives the period of
each axis, with 0 for an axis that is not periodic; None means that no axis is. On a
periodic axis, a difference is the shortest one around the circle.
"""

from collections.abc import Sequence
import dataclasses
import itertools

import chex
import jax
import jax.numpy as jnp

from tca_jax.checks import check_floating
from tca_jax.covariance import squared_length
from tca_jax.masking import masked_mean
from tca_jax.node_memory import NodeMemory
from tca_jax.node_memory import Nodes
from tca_jax.node_memory import sibling_nodes
from tca_jax.node_memory import token_nodes
from tca_jax.sharded_tree import from_owner
from tca_jax.sharded_tree import num_above
from tca_jax.statistics import Domain
from tca_jax.statistics import LevelStatistics
from tca_jax.walk import beam_widths
from tca_jax.walk import locate_nodes
from tca_jax.walk import NodesRead
from tca_jax.walk import path_to_leaf
from tca_jax.walk import split_beam

__all__ = [
  "ABSOLUTE_FEATURES",
  "LocalFrame",
  "absolute_frame",
  "child_features",
  "local_frame",
  "nearest_nodes",
  "node_features",
  "offset_between",
  "residual_values",
  "split_off_border",
]

#: The number of features of `child_features` that depend on absolute units.
ABSOLUTE_FEATURES = 2

_FAR = 1e30  # the squared distance of a node without valid token
_TINY = 1e-12  # avoids division by 0; far below any squared length in its unit
_NUM_NEAREST = 4  # nodes whose mean distance is the local length
_SMOOTHING = 0.25  # added to squared distances, in units of the local length
_SUMMARY_WEIGHT = 0.05  # weight of a node of several tokens in the local fit
_RIDGE = 0.02  # penalty of the slope in the local fit, relative to the weights
_SMALLEST = 1e-3  # smallest local spread, relative to the spread of all values
_LARGEST = 20.0  # features of values are clipped here
_FARTHEST = 4.0  # offsets are clipped here; a squashed offset is beside them
_TRUST = 6.0  # the distance, in local lengths, from which the plane counts less
_CENTROID_WEIGHT = 1e-4  # of the distance to a centroid, where boxes overlap


@chex.dataclass(frozen=True)
class LocalFrame:
  """The units in which a query sees the nodes that it reads.

  A plane is fitted to the values of the nodes, where near nodes weigh most. The
  reference is the plane's value at the query.

  Attributes:
    length: `[]` float32, the root mean square distance of the four nearest nodes.
    reference: `[E]` float32, relative to `Domain.value_origin`.
    slope: `[C, E]` float32, the change of the plane's value per local length.
    spread: `[E]` float32, the weighted root mean square of the values around the plane.
  """

  length: jax.Array
  reference: jax.Array
  slope: jax.Array
  spread: jax.Array


def offset_between(
  start: jax.Array, end: jax.Array, periods: Sequence[float] | None = None
) -> jax.Array:
  """Computes end - start, the short way around each periodic axis.

  Args:
    start: `[..., C]`.
    end: `[..., C]`.
    periods: see the module.

  Returns:
    `[..., C]`.

  >>> offset_between(jnp.array([170.0]), jnp.array([-170.0]), [360]).tolist()
  [20.0]
  """
  offset = end - start
  if periods is None or not any(periods):
    return offset
  period = jnp.array([p or 1 for p in periods], offset.dtype)
  wraps = jnp.array([bool(p) for p in periods])
  period = jnp.expand_dims(period, range(offset.ndim - 1))
  wraps = jnp.expand_dims(wraps, range(offset.ndim - 1))
  return offset - jnp.where(wraps, period * jnp.round(offset / period), 0)


def nearest_nodes(
  query: jax.Array,
  memory: NodeMemory,
  num_paths: int = 1,
  periods: Sequence[float] | None = None,
  upper_paths: int | None = None,
) -> tuple[NodesRead, jax.Array]:
  """Follows the nodes whose bounding boxes are nearest to a query.

  At each level, a beam keeps the `num_paths` children that are nearest, and the others
  are read. The distance is that to the child's box; a small part of the distance to
  its centroid decides where boxes overlap. The nodes read cover every valid token of
  the context exactly once.

  Args:
    query: `[C]`, a location relative to `memory.domain.origin`.
    memory: the `NodeMemory` of one context.
    num_paths: the beam width, a static int.
    periods: see the module.
    upper_paths: the beam width on the upper levels, a static int; see
      `walk.beam_widths`. Cells are large there: in a plane, the four nearest ones have
      most of the tokens near a query.

  Returns:
    The nodes read, and their slots, `[|S|]` int32.

  Raises:
    ValueError: if query is not `[C]` floating point, or a beam width is below 1.
  """
  check_floating(query=query)
  if query.shape != memory.domain.origin.shape:
    raise ValueError(
      f"query must be {memory.domain.origin.shape}, got shape {query.shape}"
    )
  tree = memory.tree
  b, depth = tree.branch_factor, tree.depth
  widths = beam_widths(depth, num_paths, upper_paths)
  children = jnp.arange(b, dtype=jnp.int32)
  # The nodes on the beam: their slots, distances, and whether they have a token.
  kept = (jnp.zeros(1, jnp.int32), jnp.zeros(1), tree.num_valid[None] > 0)
  # The beam has all nodes of the first levels, and the walk starts at the last of them.
  whole = itertools.takewhile(
    lambda level: b**level <= widths[level - 1], range(1, depth)
  )
  start = len(list(whole))
  node = num_above(start, b) + jnp.arange(b**start, dtype=jnp.int32)
  read, levels = [], []
  for level in range(start + 1, depth + 1):
    siblings = sibling_nodes(memory, node)
    siblings = jax.tree.map(jnp.concatenate, siblings)  # [beam * b, ...]
    slot = (node[:, None] * b + children[None]).ravel()
    distance = _squared_distance(query, siblings, periods)
    distance, occupied = from_owner(tree, slot // b, (distance, siblings.count > 0))
    candidates = (slot, distance, occupied)
    on_beam, others = split_beam(-distance, widths[level - 1])
    read.append(jax.tree.map(lambda x, i=others: x[i], candidates))
    levels.extend([level] * len(others))
    kept = jax.tree.map(lambda x, i=on_beam: x[i], candidates)
    node = kept[0] + 1
  slots, _, mask = (jnp.concatenate(x) for x in zip(*read, kept, strict=True))
  levels.extend([depth] * len(node))
  best = kept[0][jnp.argmin(kept[1])]
  leaf = locate_nodes(best[None], [depth], tree)["index"][0]
  nodes = NodesRead(
    **locate_nodes(slots, levels, tree), mask=mask, path=path_to_leaf(leaf, tree)
  )
  return nodes, slots


def _squared_distance(
  query: jax.Array, nodes: Nodes, periods: Sequence[float] | None
) -> jax.Array:
  """The squared distance of nodes, `[n]`, by their boxes and centroids."""
  query = query[None]
  centre = nodes.low + (nodes.high - nodes.low) / 2
  gap = jnp.abs(offset_between(query, centre, periods)) - (nodes.high - centre)
  box = squared_length(jnp.maximum(gap, 0))
  centroid = squared_length(offset_between(query, nodes.centroid, periods))
  return jnp.where(nodes.count > 0, box + _CENTROID_WEIGHT * centroid, _FAR)


def local_frame(offset: jax.Array, nodes: Nodes, domain: Domain) -> LocalFrame:
  """Computes the units in which queries see the nodes that they read.

  Args:
    offset: `[..., S, C]`, from the query to each node's centroid.
    nodes: `Nodes` with axes `[..., S]`.
    domain: the `Domain` of the context, with leading axes that are broadcast to `[...]`.

  Returns:
    A `LocalFrame` with axes `[...]`.
  """
  valid = nodes.count > 0
  square = jnp.where(valid, squared_length(offset), _FAR)
  smallest = -jax.lax.top_k(-square, min(_NUM_NEAREST, square.shape[-1]))[0]
  mean = masked_mean(smallest, smallest < _FAR, axis=-1)
  extent = jnp.where(domain.extent > 0, domain.extent, 1)
  length = jnp.sqrt(mean + _TINY * extent**2)

  # --- A weighted least-squares fit of a plane.
  scaled = jnp.where(valid, square, 0) / length[..., None] ** 2
  weight = (
    jnp.where(nodes.count == 1, 1.0, _SUMMARY_WEIGHT) / (scaled + _SMOOTHING) ** 2
  )
  weight = jnp.where(valid, weight, 0)
  total = jnp.sum(weight, axis=-1, keepdims=True)
  weight = weight / jnp.where(total > 0, total, 1)

  def average(x: jax.Array) -> jax.Array:
    """`[..., S, n] -> [..., n]`; a matrix product, which is faster than a sum."""
    return jnp.einsum("...s,...sn->...n", weight, x, precision="highest")

  x, y = offset / length[..., None, None], nodes.mean
  y = jnp.broadcast_to(y, (*x.shape[:-1], y.shape[-1]))
  mean_x, mean_y = average(x), average(y)
  x, y = x - mean_x[..., None, :], y - mean_y[..., None, :]
  weighted = weight[..., None] * x
  covariance = jnp.einsum("...sc,...sd->...cd", weighted, x, precision="highest")
  ridge = _RIDGE * jnp.eye(x.shape[-1], dtype=x.dtype)
  covariance += jnp.broadcast_to(ridge, covariance.shape)
  product = jnp.einsum("...sc,...se->...ce", weighted, y, precision="highest")
  slope = jnp.linalg.solve(covariance, product)
  residual = y - jnp.matmul(x, slope, precision="highest")
  variance = average(residual**2 + nodes.variance)
  smallest_spread = _SMALLEST * jnp.where(
    domain.value_spread > 0, domain.value_spread, 1
  )
  return LocalFrame(
    length=length,
    reference=mean_y
    - jnp.einsum("...c,...ce->...e", mean_x, slope, precision="highest"),
    slope=slope,
    spread=jnp.sqrt(variance + smallest_spread**2),
  )


def split_off_border(
  query: jax.Array,
  nodes: Nodes,
  num_tokens: int = 1,
  periods: Sequence[float] | None = None,
) -> Nodes:
  """Splits nodes into the tokens of their border nearest to a query, and the rest.

  The mean of many tokens tells little of those near the query. The nearest of the tokens
  that touch the sides of the node's box often tells more. Count, mean and variance of
  the rest follow exactly. Its box is the expected one, if the others are spread evenly.

  Args:
    query: `[..., C]`, relative to the domain's origin.
    nodes: `Nodes` with axes `[..., S]`, whose border is kept.
    num_tokens: K, the largest number of tokens to split off a node.
    periods: see the module.

  Returns:
    `Nodes` with axes `[..., (1 + K) * S]` without border: the rests, then the nearest
    tokens, then the second nearest, and so on. A rest has at least one token. The parts
    of a node share its learned summary.

  Raises:
    ValueError: if the border of the nodes is not kept.
  """
  border = nodes.border
  if border is None:
    raise ValueError(
      "memory must keep the border of its nodes: index the context by a model with"
      " border_tokens of at least 1"
    )
  axes = query.shape[-1]
  where = offset_between(query[..., None, None, :], border[..., :axes], periods)
  distance = squared_length(where)
  left = dataclasses.replace(nodes, border=None)
  sides = jax.lax.broadcasted_iota(jnp.int32, distance.shape, distance.ndim - 1)
  parts = []
  for _ in range(num_tokens):
    nearest = jnp.argmin(distance, axis=-1).astype(jnp.int32)[..., None]
    chosen = sides == nearest
    token = jnp.sum(jnp.where(chosen[..., None], border, 0), axis=-2)
    # One token can touch several sides.
    touched = jnp.all(border == token[..., None, :], axis=-1) & jnp.isfinite(distance)
    found = (left.count > 1) & jnp.any(touched, axis=-1)
    location, value = jnp.split(token, [axes], axis=-1)
    parts.append(token_nodes(location, value, found, nodes.summary))
    left = _without_token(left, location, value, touched, found)
    distance = jnp.where(touched, jnp.inf, distance)
  axis = nodes.count.ndim - 1

  def join(*x: jax.Array) -> jax.Array:
    return jnp.concatenate(x, axis=axis)

  return jax.tree.map(join, left, *parts)


def _without_token(
  nodes: Nodes,
  location: jax.Array,
  value: jax.Array,
  touched: jax.Array,
  found: jax.Array,
) -> Nodes:
  """The nodes without one token each, where found.

  Args:
    nodes: `Nodes` with axes `[..., S]`.
    location: `[..., S, C]`, of the token.
    value: `[..., S, E]`, of the token.
    touched: `[..., S, 2 * C]` bool, the sides of the box that the token touches.
    found: `[..., S]` bool, False where the node is left as it is.
  """
  found, count = found[..., None], nodes.count[..., None]
  others = jnp.where(found, count - 1, 1)
  difference = nodes.mean - value
  centroid = nodes.centroid + (nodes.centroid - location) / others
  variance = (nodes.variance - difference**2 / others) * (others + 1) / others
  one_left = others == 1
  at_low, at_high = jnp.split(touched, 2, axis=-1)
  # The distance to the next token, if tokens are spread evenly.
  gap = (nodes.high - nodes.low) / others
  changed = dataclasses.replace(
    nodes,
    count=others[..., 0].astype(nodes.count.dtype),
    low=jnp.where(one_left, centroid, nodes.low + jnp.where(at_low, gap, 0)),
    high=jnp.where(one_left, centroid, nodes.high - jnp.where(at_high, gap, 0)),
    centroid=centroid,
    mean=nodes.mean + difference / others,
    variance=jnp.where(one_left, 0, jnp.maximum(variance, 0)),
  )

  def select(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.where(found if x.ndim == found.ndim else found[..., 0], x, y)

  return jax.tree.map(select, changed, nodes)


def absolute_frame(length: jax.Array, domain: Domain) -> LocalFrame:
  """The units in which values are seen as they are, and not relative to a plane.

  Args:
    length: `[...]` float32, positive, the unit of lengths.
    domain: the `Domain` of the context, with leading axes that are broadcast to `[...]`.

  Returns:
    A `LocalFrame` with axes `[...]`.
  """
  origin = domain.value_origin
  origin = jnp.broadcast_to(origin, (*length.shape, origin.shape[-1]))
  axes = domain.origin.shape[-1]
  return LocalFrame(
    length=length,
    reference=-origin,
    slope=jnp.zeros((*length.shape, axes, origin.shape[-1]), jnp.float32),
    spread=jnp.ones_like(origin),
  )


def node_features(
  offset: jax.Array, nodes: Nodes, frame: LocalFrame
) -> tuple[jax.Array, jax.Array]:
  """Describes nodes as seen from a query; see the module for the invariances.

  Args:
    offset: `[..., S, C]`, from the query to each node's centroid.
    nodes: `Nodes` with axes `[..., S]`.
    frame: the `LocalFrame` with axes `[...]`.

  Returns:
    Where, `[..., S, 3 * C + 4]`: offset, distance, extent and count; and what, `[...,
    S, 3 * E]`: the values relative to the reference and to the plane, and their
    spread. Both are 0 at nodes without valid token.
  """
  length = frame.length[..., None, None]
  valid = nodes.count[..., None] > 0
  x = offset / length
  square = squared_length(x)[..., None]
  distance = jnp.sqrt(square + _TINY)
  where = [
    jnp.clip(x, -_FARTHEST, _FARTHEST),
    x / (1 + distance),
    jnp.log(distance + 1e-3),
    1 / (1 + square),
    jnp.log1p((nodes.high - nodes.low) / length),
    jnp.log(jnp.maximum(nodes.count, 1))[..., None],
    (nodes.count == 1)[..., None].astype(x.dtype),
  ]
  spread = frame.spread[..., None, :]
  value = (nodes.mean - frame.reference[..., None, :]) / spread
  what = [
    jnp.clip(value, -_LARGEST, _LARGEST),
    jnp.clip(residual_values(x, nodes, frame), -_LARGEST, _LARGEST),
    jnp.minimum(jnp.sqrt(nodes.variance / spread**2 + _TINY), _LARGEST),
  ]
  shape = x.shape[:-1]

  def join(parts: list[jax.Array]) -> jax.Array:
    parts = [jnp.broadcast_to(part, (*shape, part.shape[-1])) for part in parts]
    return jnp.where(valid, jnp.concatenate(parts, axis=-1), 0)

  return join(where), join(what)


def residual_values(x: jax.Array, nodes: Nodes, frame: LocalFrame) -> jax.Array:
  """Computes the nodes' values relative to the local plane.

  The plane is followed up to six local lengths from the query; further away it stays
  constant along each direction.

  Args:
    x: `[..., S, C]`, from the query to each node's centroid, in local lengths.
    nodes: `Nodes` with axes `[..., S]`.
    frame: the `LocalFrame` with axes `[...]`.

  Returns:
    `[..., S, E]`, in local spreads.
  """
  distance = jnp.sqrt(squared_length(x)[..., None] + _TINY)
  trust = jnp.minimum(1, _TRUST / distance)
  plane = jnp.matmul(x, frame.slope, precision="highest") * trust
  value = nodes.mean - frame.reference[..., None, :] - plane
  return value / frame.spread[..., None, :]


def child_features(parents: LevelStatistics, children: LevelStatistics) -> jax.Array:
  """Describes nodes relative to their parents.

  Args:
    parents: the statistics of a level, with any leading axes.
    children: those of the level below.

  Returns:
    `[..., b**l, 2 * C + 2 * E + 1]` float32: offset from the parent's centroid and
    extent, in units of the parent's longest side; mean and spread of the values,
    relative to the parent's; the share of its tokens. Where the border is kept, also
    its 2 * C * (C + E) locations and values, likewise, and last the two
    `ABSOLUTE_FEATURES`: the logarithms of the parent's side and of its spread, the
    latter averaged over channels; 0 where the parent has no side or spread. All is 0 at
    nodes without valid token.
  """
  b = children.count.shape[-1] // parents.count.shape[-1]

  def repeat(x: jax.Array) -> jax.Array:
    return jnp.repeat(x, b, axis=-2)

  count = children.count[..., None].astype(jnp.float32)
  parent_count = parents.count[..., None].astype(jnp.float32)
  side = jnp.max(parents.high - parents.low, axis=-1, keepdims=True)
  side = repeat(jnp.where(side > 0, side, 1))
  spread = repeat(jnp.where(parents.variance > 0, parents.variance, 1) ** 0.5)
  features = [
    (children.centroid - repeat(parents.centroid)) / side,
    (children.high - children.low) / side,
    (children.mean - repeat(parents.mean)) / spread,
    jnp.sqrt(children.variance / spread**2 + _TINY),
    count / jnp.maximum(repeat(parent_count), 1),
  ]
  if children.border is not None:
    origin = jnp.concatenate([parents.centroid, parents.mean], axis=-1)
    sides = jnp.broadcast_to(side, children.centroid.shape)
    unit = jnp.concatenate([sides, spread], axis=-1)
    border = (children.border - repeat(origin)[..., None, :]) / unit[..., None, :]
    border = jnp.clip(border, -_FARTHEST, _FARTHEST)
    features.append(border.reshape(*border.shape[:-2], -1))
    features.append(jnp.log(side))
    features.append(jnp.mean(jnp.log(spread), axis=-1, keepdims=True))
  return jnp.where(count > 0, jnp.concatenate(features, axis=-1), 0)
