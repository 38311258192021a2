"""Memories: what is cached of a context, for queries to read.

This is the only file that knows the packed layouts of a `TreeMemory` and of a
`NodeMemory`. The other files use the functions below.
"""

from collections.abc import Sequence
import dataclasses

import chex
import jax
import jax.numpy as jnp

from tca_jax import sharded_tree
from tca_jax import state
from tca_jax.checks import as_array
from tca_jax.checks import check_floating
from tca_jax.statistics import Domain
from tca_jax.statistics import LevelStatistics
from tca_jax.statistics import measure_domain
from tca_jax.statistics import NodeStatistics
from tca_jax.tree import Tree

__all__ = [
  "FlatMemory",
  "NodeMemory",
  "Nodes",
  "PointMemory",
  "TreeMemory",
  "from_slots",
  "join_levels",
  "leaf_nodes",
  "leaves",
  "level_slots",
  "num_slots",
  "pack",
  "pack_nodes",
  "pack_points",
  "pack_rows",
  "sibling_nodes",
  "slot_nodes",
]


@chex.dataclass(frozen=True)
class FlatMemory:
  """Keys and values without a tree; a query reads all of them.

  A batch of memories has leading axes on every array.

  Attributes:
    keys: `[N, H, Dh]`.
    values: `[N, H, Dv]`.
    mask: `[N]` bool, True at valid tokens.
  """

  keys: jax.Array
  values: jax.Array
  mask: jax.Array


@chex.dataclass(frozen=True)
class TreeMemory:
  """A tree with the keys and values of its nodes, packed for reading.

  One step of a walk reads the keys of all children of one node. They are one
  contiguous row of `keys`.

  Nodes are stored in slots, level by level from the children of the root. The root
  is left out, because no query reads it. Slot s is child s % b of the inner node
  s // b, where inner nodes are numbered level by level from the root. If the root is
  the only leaf, it is in slot 0. There are R inner nodes and R * b slots, see
  `num_slots`. A batch of memories has leading axes on every array.

  Attributes:
    tree: the `Tree`.
    keys: `[R, H, b, Dh]`, one row per inner node, heads before children.
    values: `[R * b, H, Dv]`, one row per slot.
    policy_keys: `[R, H', b, Dp]` if the policy has its own keys, else None.
  """

  tree: Tree
  keys: jax.Array
  values: jax.Array
  policy_keys: jax.Array | None = None


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
  """

  tree: Tree
  rows: jax.Array
  domain: Domain
  borders: jax.Array | None = None


@chex.dataclass(frozen=True)
class PointMemory:
  """The tokens of a context as nodes without children; a query reads all of them.

  A batch of memories has leading axes on every array.

  Attributes:
    nodes: `Nodes` with axis `[N]`.
    domain: the `Domain` of the context.
  """

  nodes: Nodes
  domain: Domain


def num_slots(tree: Tree) -> int:
  """Returns the number of slots, R * b, of a memory over a tree (on one device).

  Args:
    tree: a `Tree`, or a batch of trees.

  >>> from tca_jax.tree import build_tree
  >>> num_slots(build_tree(jnp.ones((8, 1)))), num_slots(build_tree(jnp.ones((1, 1))))
  (14, 2)
  """
  return sum(sharded_tree.level_sizes(tree)[1:]) or tree.branch_factor


def level_slots(tree: Tree, level: int) -> slice:
  """Returns the slots of all nodes of a level.

  Args:
    tree: a `Tree`, or a batch of trees.
    level: the level, in [1, depth]; in a tree of depth 0 it is 0.

  Raises:
    ValueError: if level is 0 in a deeper tree, because the root has no slot.

  >>> from tca_jax.tree import build_tree
  >>> level_slots(build_tree(jnp.ones((8, 1))), 2)
  slice(2, 6, None)
  """
  if level == 0 and tree.depth > 0:
    raise ValueError("a memory has no slot for the root: level must be at least 1")
  b = tree.branch_factor
  start = max((b**level - 1) // (b - 1) - 1, 0)
  return slice(start, start + b**level)


def join_levels(levels: Sequence[jax.Array], branch_factor: int) -> jax.Array:
  """Concatenates the levels of a tree in slot order.

  Args:
    levels: depth + 1 arrays, `[b**l, ...]` from the root to the leaves.
    branch_factor: b.

  Returns:
    `[R * b, ...]`.

  >>> join_levels([jnp.zeros(1), jnp.array([1, 2]), jnp.array([3, 4, 5, 6])], 2).tolist()
  [1, 2, 3, 4, 5, 6]
  """
  if len(levels) > 1:
    return jnp.concatenate(levels[1:])
  root = jnp.asarray(levels[0])
  return jnp.pad(root, [(0, branch_factor - 1)] + [(0, 0)] * (root.ndim - 1))


def pack(
  tree: Tree,
  keys: Sequence[jax.Array],
  values: Sequence[jax.Array],
  policy_keys: Sequence[jax.Array] | None = None,
) -> TreeMemory:
  """Packs the keys and values of one tree, given as levels.

  Args:
    tree: the `Tree` of one context.
    keys: depth + 1 levels of `[b**l, H, Dh]`, in the order of `aggregate`.
    values: depth + 1 levels of `[b**l, H, Dv]`.
    policy_keys: levels of `[b**l, H', Dp]` if the policy has its own keys.

  Raises:
    ValueError: if the number of levels, a shape or a dtype does not fit the tree.

  >>> from tca_jax.tree import build_tree
  >>> levels = [jnp.ones((2**l, 1, 3)) for l in range(3)]
  >>> memory = pack(build_tree(jnp.arange(4.0)[:, None]), levels, levels)
  >>> memory.keys.shape, memory.values.shape
  ((3, 1, 2, 3), (6, 1, 3))
  """
  keys = _check_levels("keys", keys, tree)
  values = _check_levels("values", values, tree, keys[0].shape[1])
  if policy_keys is not None:
    policy_keys = _check_levels("policy_keys", policy_keys, tree)
  b = tree.branch_factor
  return from_slots(
    jax.tree.map(jnp.asarray, tree),
    join_levels(keys, b),
    join_levels(values, b),
    None if policy_keys is None else join_levels(policy_keys, b),
  )


def from_slots(
  tree: Tree,
  keys: jax.Array,
  values: jax.Array,
  policy_keys: jax.Array | None = None,
) -> TreeMemory:
  """Packs keys and values that are already in slot order; see `TreeMemory`.

  Args:
    tree: a `Tree`, or a batch of trees.
    keys: `[..., R * b, H, Dh]`, with the leading axes of the trees.
    values: `[..., R * b, H, Dv]`.
    policy_keys: `[..., R * b, H', Dp]` if the policy has its own keys.

  Raises:
    ValueError: if an array does not have `num_slots` rows.
  """
  b, slots = tree.branch_factor, num_slots(tree)
  lead = tree.leaf_index.shape[:-1]
  keys, values = as_array("keys", keys), as_array("values", values)
  if policy_keys is not None:
    policy_keys = as_array("policy_keys", policy_keys)
  named = {"keys": keys, "values": values, "policy_keys": policy_keys}
  for name, x in named.items():
    if x is not None and (x.ndim != len(lead) + 3 or x.shape[:-2] != (*lead, slots)):
      raise ValueError(f"{name} must be {(*lead, slots)} + (H, width), got {x.shape}")

  def sibling_rows(x: jax.Array) -> jax.Array:
    """`[..., R * b, H, width]` to `[..., R, H, b, width]`."""
    return jnp.swapaxes(x.reshape(*lead, -1, b, *x.shape[-2:]), -3, -2)

  return TreeMemory(
    tree=tree,
    keys=sibling_rows(keys),
    values=values,
    policy_keys=None if policy_keys is None else sibling_rows(policy_keys),
  )


def pack_nodes(
  tree: Tree, statistics: NodeStatistics, summaries: Sequence[jax.Array]
) -> NodeMemory:
  """Packs the statistics and summaries of one tree.

  Args:
    tree: the `Tree` of one context.
    statistics: its `NodeStatistics`.
    summaries: depth + 1 levels of `[b**l, W]`, in the order of `aggregate`.

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

  borders = [level.border for level in statistics.levels]
  return NodeMemory(
    tree=jax.tree.map(jnp.asarray, tree),
    rows=pack([pack_rows(*family) for family in families]),
    domain=statistics.domain,
    borders=None if borders[0] is None else pack(borders),
  )


def pack_rows(statistics: LevelStatistics, summaries: jax.Array) -> jax.Array:
  """Packs the statistics and summaries of some nodes of a `NodeMemory`.

  Args:
    statistics: `LevelStatistics` of n nodes.
    summaries: `[n, W]`.

  Returns:
    `[n, F]` float32, the fields of `Nodes`.
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
  nodes = Nodes(
    count=mask.astype(jnp.float32),
    low=location,
    high=location,
    centroid=location,
    mean=value,
    variance=jnp.zeros_like(value),
    summary=summaries.astype(jnp.float32),
  )
  return PointMemory(nodes=nodes, domain=domain)


def leaf_nodes(memory: NodeMemory) -> PointMemory:
  """Returns all leaf slots, in leaf order, as nodes without children.

  Args:
    memory: a `NodeMemory`, or a batch of them.
  """
  sharded_tree.check_whole(memory.tree)
  slots = level_slots(memory.tree, memory.tree.depth)
  nodes = dataclasses.replace(slot_nodes(memory, slots), border=None)
  return PointMemory(nodes=nodes, domain=memory.domain)


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

  return _unpack(*jax.tree.map(gather, (memory.rows, memory.borders)), memory)


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

  found = jax.tree.map(take, (memory.rows, memory.borders))
  if not isinstance(slot, slice):
    found = sharded_tree.from_owner(tree, slot // tree.branch_factor, found)
  return _unpack(*found, memory)


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


def leaves(memory: TreeMemory) -> FlatMemory:
  """Returns the keys and values of all leaf slots, in leaf order.

  Args:
    memory: a `TreeMemory`, or a batch of them.

  Returns:
    A `FlatMemory` with N = L, the number of leaf slots; its mask is `leaf_mask`.
  """
  tree = memory.tree
  sharded_tree.check_whole(tree)
  slots = level_slots(tree, tree.depth)
  keys = jnp.swapaxes(
    memory.keys[..., slots.start // tree.branch_factor :, :, :, :], -3, -2
  )
  keys = keys.reshape(*keys.shape[:-4], -1, *keys.shape[-2:])
  return FlatMemory(
    keys=keys[..., : tree.num_leaves, :, :],
    values=memory.values[..., slots, :, :],
    mask=tree.leaf_mask,
  )


def _check_levels(
  name: str,
  levels: Sequence[jax.Array],
  tree: Tree,
  num_heads: int | None = None,
) -> list[jax.Array]:
  """Converts levels; raises ValueError unless they are `[b**l, H, width]`."""
  b, depth = tree.branch_factor, tree.depth
  levels = [as_array(f"{name}[{l}]", level) for l, level in enumerate(levels)]
  if len(levels) != depth + 1:
    raise ValueError(
      f"{name} must have depth + 1 = {depth + 1} levels, got {len(levels)}"
    )
  tail = levels[0].shape[1:]
  heads, width = tail if len(tail) == 2 else ("H", "Dh")
  heads = num_heads or heads
  for l, level in enumerate(levels):
    if level.shape != (b**l, heads, width):
      raise ValueError(
        f"{name}[{l}] must be [{b**l}, {heads}, {width}], got {level.shape}"
      )
    check_floating(**{f"{name}[{l}]": level})
  return levels


for _kind in (Tree, Domain, FlatMemory, TreeMemory, Nodes, NodeMemory, PointMemory):
  state.register(_kind)
