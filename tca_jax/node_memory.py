"""Memories of relative reads: where nodes lie, their values, and learned summaries.

This is the only file that knows the packed layout of a `NodeMemory`. The other files use
the functions below.
"""

from collections.abc import Sequence
import dataclasses

import chex
import jax
import jax.numpy as jnp

from tca_jax import sharded_tree
from tca_jax import state
from tca_jax.checks import as_array
from tca_jax.memory import join_levels
from tca_jax.memory import level_slots
from tca_jax.statistics import Domain
from tca_jax.statistics import LevelStatistics
from tca_jax.statistics import measure_domain
from tca_jax.statistics import NodeStatistics
from tca_jax.tree import Tree

__all__ = [
  "NodeMemory",
  "Nodes",
  "PointMemory",
  "leaf_nodes",
  "pack_nodes",
  "pack_points",
  "pack_rows",
  "sibling_nodes",
  "slot_nodes",
  "token_nodes",
]


@chex.dataclass(frozen=True)
class Nodes:
  """Statistics and learned summaries of nodes, with any leading axes.

  Locations and values are relative to the origins of the `Domain`.

  Attributes:
    count: `[...]` float32, the number of valid tokens below each node. It is exact up
      to 2**24 tokens.
    low: `[..., C]` float32, the smallest coordinates of the nodes' bounding boxes.
    high: `[..., C]` float32, the largest coordinates of the boxes.
    centroid: `[..., C]` float32, the mean of the tokens' locations.
    mean: `[..., E]` float32, the mean of the tokens' values.
    variance: `[..., E]` float32, the population variance of the values.
    summary: `[..., W]` float32, the learned summaries.
    border: `[..., 2 * C, C + E]` float32, see `LevelStatistics`; None if not kept.
  """

  count: jax.Array
  low: jax.Array
  high: jax.Array
  centroid: jax.Array
  mean: jax.Array
  variance: jax.Array
  summary: jax.Array
  border: jax.Array | None = None


@chex.dataclass(frozen=True)
class NodeMemory:
  """A tree with the statistics and summaries of its nodes, packed for relative reads.

  Slots are those of a `TreeMemory`. One step of a walk reads one row. A batch of
  memories has leading axes on every array.

  Attributes:
    tree: the `Tree`.
    rows: `[R, b, F]` float32, one row per inner node: the fields of `Nodes` of its b
      children except for the border, with F = 1 + 3 * C + 2 * E + W.
    domain: the `Domain` of the context.
    borders: `[R, b, 2 * C, C + E]` float32, the borders of these nodes, which a walk
      does not need; None if they are not kept.
    evidence: `[K]` float32, how well covariance functions fit the tokens, see
      `covariance_fit.log_likelihoods`; None if not measured. Tokens that join or leave
      the memory do not change it until it is rebuilt.
  """

  tree: Tree
  rows: jax.Array
  domain: Domain
  borders: jax.Array | None = None
  evidence: jax.Array | None = None


@chex.dataclass(frozen=True)
class PointMemory:
  """The tokens of a context as nodes without children; a query reads all of them.

  A batch of memories has leading axes on every array.

  Attributes:
    nodes: `Nodes` with axis `[N]`.
    domain: the `Domain` of the context.
    evidence: see `NodeMemory`.
  """

  nodes: Nodes
  domain: Domain
  evidence: jax.Array | None = None


def pack_nodes(
  tree: Tree,
  statistics: NodeStatistics,
  summaries: Sequence[jax.Array],
  evidence: jax.Array | None = None,
) -> NodeMemory:
  """Packs the statistics and summaries of one tree.

  Args:
    tree: the `Tree` of one context.
    statistics: its `NodeStatistics`.
    summaries: depth + 1 levels of `[b**l, W]`, in the order of `aggregate`.
    evidence: see `NodeMemory`.

  Raises:
    ValueError: if the number of levels or a shape does not fit the tree.

  >>> from tca_jax.statistics import node_statistics
  >>> from tca_jax.tree import build_tree
  >>> x = jnp.arange(4.0)[:, None]
  >>> tree = build_tree(x)
  >>> summaries = [jnp.ones((2**l, 5)) for l in range(3)]
  >>> pack_nodes(tree, node_statistics(tree, x, x), summaries).rows.shape
  (3, 2, 11)
  """
  b, depth = tree.branch_factor, tree.depth
  shapes = [summary.shape for summary in summaries]
  if shapes != [(n, *shapes[0][1:]) for n in sharded_tree.level_sizes(tree)]:
    raise ValueError(
      f"summaries must be {depth + 1} levels of [{b}**l, W], got shapes {shapes}"
    )
  families = zip(statistics.levels, summaries, strict=True)

  def pack(levels: Sequence[jax.Array]) -> jax.Array:
    slots = join_levels(levels, b)
    return slots.reshape(-1, b, *slots.shape[1:])

  borders = [level.border for level in statistics.levels if level.border is not None]
  return NodeMemory(
    tree=jax.tree.map(jnp.asarray, tree),
    rows=pack([pack_rows(*family) for family in families]),
    domain=statistics.domain,
    borders=pack(borders) if borders else None,
    evidence=evidence,
  )


def pack_rows(statistics: LevelStatistics, summaries: jax.Array) -> jax.Array:
  """Packs the statistics and summaries of some nodes of a `NodeMemory`.

  Args:
    statistics: `LevelStatistics` of n nodes.
    summaries: `[n, W]`.

  Returns:
    `[n, F]` float32, the fields of `Nodes` without the border.
  """
  count = statistics.count[:, None].astype(jnp.float32)
  boxes = (statistics.low, statistics.high, statistics.centroid)
  moments = (statistics.mean, statistics.variance)
  summaries = summaries.astype(jnp.float32)
  return jnp.concatenate([count, *boxes, *moments, summaries], axis=-1)


def pack_points(
  coords: jax.Array, values: jax.Array, mask: jax.Array, summaries: jax.Array
) -> PointMemory:
  """Packs the tokens of one context as nodes without children.

  Args:
    coords: `[N, C]` floating point.
    values: `[N, E]` floating point.
    mask: `[N]` bool, True at valid tokens.
    summaries: `[N, W]`.
  """
  coords, values, mask, summaries = (
    as_array(name, x)
    for name, x in (
      ("coords", coords),
      ("values", values),
      ("mask", mask),
      ("summaries", summaries),
    )
  )
  domain = measure_domain(coords, values, mask)
  location, value = domain.centre(coords, values, mask)
  nodes = token_nodes(location, value, mask, summaries.astype(jnp.float32))
  return PointMemory(nodes=nodes, domain=domain)


def token_nodes(
  location: jax.Array, value: jax.Array, valid: jax.Array, summary: jax.Array
) -> Nodes:
  """The nodes of one token each.

  Args:
    location: `[..., C]` float32, relative to `Domain.origin`.
    value: `[..., E]` float32, relative to `Domain.value_origin`.
    valid: `[...]` bool, whether the node has the token.
    summary: `[..., W]` float32.
  """
  return Nodes(
    count=valid.astype(jnp.float32),
    low=location,
    high=location,
    centroid=location,
    mean=value,
    variance=jnp.zeros_like(value),
    summary=summary,
  )


def leaf_nodes(memory: NodeMemory) -> PointMemory:
  """Returns all leaf slots, in leaf order, as nodes without children.

  Args:
    memory: a `NodeMemory`, or a batch of them.
  """
  sharded_tree.check_whole(memory.tree)
  slots = level_slots(memory.tree, memory.tree.depth)
  nodes = dataclasses.replace(slot_nodes(memory, slots), border=None)
  return PointMemory(nodes=nodes, domain=memory.domain, evidence=memory.evidence)


def sibling_nodes(memory: NodeMemory, node: jax.Array) -> Nodes:
  """Returns the children of inner nodes that this device has.

  Args:
    memory: the `NodeMemory` of one context.
    node: `[...]` int32, inner nodes, numbered level by level from the root.

  Returns:
    `Nodes` with axes `[..., b]`.
  """
  row = sharded_tree.stored_row(memory.tree, node)

  def gather(x: jax.Array) -> jax.Array:
    return jnp.asarray(x).at[row].get(mode="promise_in_bounds")

  return _unpack(gather(memory.rows), jax.tree.map(gather, memory.borders), memory)


def slot_nodes(memory: NodeMemory, slot: jax.Array | slice) -> Nodes:
  """Returns the nodes in slots.

  Args:
    memory: the `NodeMemory` of one context; for a slice, also a batch of them.
    slot: int32 of any shape, or a slice.

  Returns:
    `Nodes` with the axes of slot.
  """
  tree = memory.tree
  lead = memory.rows.ndim - 3

  def take(x: jax.Array) -> jax.Array:
    x = x.reshape(*x.shape[:lead], -1, *x.shape[lead + 2 :])
    if isinstance(slot, slice):
      return x[(slice(None),) * lead + (slot,)]
    at = sharded_tree.stored_slot(tree, slot)
    return jnp.asarray(x).at[at].get(mode="promise_in_bounds")

  rows, borders = take(memory.rows), jax.tree.map(take, memory.borders)
  if not isinstance(slot, slice):
    found = (rows, borders)
    rows, borders = sharded_tree.from_owner(tree, slot // tree.branch_factor, found)
  return _unpack(rows, borders, memory)


def _unpack(rows: jax.Array, border: jax.Array | None, memory: NodeMemory) -> Nodes:
  """The fields of `[..., F]`, and the border."""
  c, e = memory.domain.origin.shape[-1], memory.domain.value_origin.shape[-1]
  stops = [1, *(1 + c * i for i in (1, 2, 3)), *(1 + 3 * c + e * i for i in (1, 2))]
  count, low, high, centroid, mean, variance, summary = jnp.split(rows, stops, axis=-1)
  return Nodes(
    count=count[..., 0],
    low=low,
    high=high,
    centroid=centroid,
    mean=mean,
    variance=variance,
    summary=summary,
    border=border,
  )


for _kind in (Domain, Nodes, NodeMemory, PointMemory):
  state.register(_kind)
