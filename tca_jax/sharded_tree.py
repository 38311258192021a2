"""Trees that are split over devices: which device has a node, and where.

With P = b**k devices, every device has one of the P subtrees below level k, and a copy of
the k levels above. It stores the nodes in slots as a `TreeMemory` does: first those of
levels 1 to k of the whole tree, then those below the root of its own subtree.

The functions below take any tree. For one on a single device they do nothing. For a
`ShardedTree` they must be called inside `jax.shard_map`.
"""

from collections.abc import Sequence
import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from tca_jax.node_counts import split_count
from tca_jax.tree import Tree
from tca_jax.tree import tree_depth

__all__ = [
  "ShardedTree",
  "add_up",
  "check_whole",
  "families",
  "from_owner",
  "keep_own",
  "level_sizes",
  "num_above",
  "stored_row",
  "stored_slot",
]

_T = typing.TypeVar("_T")


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["leaf_index", "leaf_mask", "root_count"],
  meta_fields=["axis_name"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardedTree(Tree):
  """A tree that is split over the devices of one axis of a mesh.

  Outside `jax.shard_map`, `leaf_index` and `leaf_mask` are those of the whole tree, one
  part per device. Inside, each device has its own part, and the properties are those of
  the whole tree.

  Attributes:
    axis_name: the name of the mesh axis.
  """

  axis_name: str

  @property
  def num_devices(self) -> int:
    """P, the number of devices."""
    return jax.lax.axis_size(self.axis_name)

  @property
  def num_leaves(self) -> int:
    """L, the number of leaf slots on all devices."""
    return self.leaf_index.shape[-1] * self.num_devices

  @property
  def split_level(self) -> int:
    """k, the level whose nodes are the roots of the subtrees."""
    return tree_depth(self.num_devices, self.branch_factor)

  @property
  def own_tree(self) -> Tree:
    """This device's subtree, over its tokens in leaf order."""
    count = self.node_count(self.split_level)[jax.lax.axis_index(self.axis_name)]
    return Tree(
      leaf_index=jnp.arange(self.leaf_mask.shape[-1], dtype=jnp.int32),
      leaf_mask=self.leaf_mask,
      root_count=split_count(count, self.branch_factor),
    )

  @property
  def upper_tree(self) -> Tree:
    """The levels above the subtrees, whose leaves are the roots of the subtrees."""
    mask = self.node_count(self.split_level) > 0
    return Tree(
      leaf_index=jnp.arange(self.num_devices, dtype=jnp.int32),
      leaf_mask=mask,
      root_count=split_count(jnp.sum(mask, dtype=jnp.int32), self.branch_factor),
    )

  def gather(self, own: _T) -> _T:
    """Collects one row of each device, `[1, ...] -> [P, ...]`, in arrays of a pytree."""
    device = jax.lax.axis_index(self.axis_name)

    def gather(x: jax.Array) -> jax.Array:
      rows = jnp.zeros((self.num_devices, *x.shape[1:]), x.dtype).at[device].set(x[0])
      return jax.lax.psum(rows, self.axis_name)

    return jax.tree.map(gather, own)

  def locate(self, node: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the rows of inner nodes, numbered level by level from the root.

    Args:
      node: int32 of any shape.

    Returns:
      The device that has each node, 0 for a node above the subtrees, which all devices
      have; and the node's row there.
    """
    b, k = self.branch_factor, self.split_level
    starts = jnp.array([num_above(level, b) for level in range(self.depth + 1)])
    starts = starts.astype(jnp.int32)
    reached = node[..., None] >= jnp.expand_dims(starts, range(node.ndim))
    level = jnp.sum(reached, axis=-1, dtype=jnp.int32) - 1
    below = jnp.maximum(level - k, 0)
    widths = jnp.asarray(b ** np.arange(self.depth - k + 1), jnp.int32)
    index, width = node - starts[level], widths[below]
    in_subtree = level >= k
    device = jnp.where(in_subtree, index // width, 0)
    row = starts[k] + starts[below] + index % width
    return device, jnp.where(in_subtree, row, node)


def num_above(level: int, b: int) -> int:
  """The number of nodes above a level, whose numbers are smaller than its own."""
  return (b**level - 1) // (b - 1)


def level_sizes(tree: Tree) -> list[int]:
  """Returns the number of nodes of each level that one device has, from the root."""
  b = tree.branch_factor
  if not isinstance(tree, ShardedTree):
    return [b**level for level in range(tree.depth + 1)]
  k = tree.split_level
  own = [b**level for level in range(1, tree.depth - k + 1)]
  return [b**level for level in range(k + 1)] + own


def families(tree: Tree, levels: Sequence[_T]) -> list[tuple[_T, _T]]:
  """Pairs the levels of a tree with those below.

  Args:
    tree: the tree of one context.
    levels: depth + 1 pytrees of arrays with as many rows as `level_sizes`.

  Returns:
    depth pairs. All children in a pair have their parents in it.
  """
  parents = list(levels[:-1])
  if isinstance(tree, ShardedTree) and tree.split_level < tree.depth:
    device = jax.lax.axis_index(tree.axis_name)
    k = tree.split_level
    parents[k] = jax.tree.map(lambda x: x[device][None], parents[k])
  return list(zip(parents, levels[1:], strict=True))


def stored_row(tree: Tree, node: jax.Array) -> jax.Array:
  """Returns the rows of inner nodes in a memory.

  Args:
    tree: the tree of one context.
    node: int32 of any shape, inner nodes, numbered level by level from the root.

  Returns:
    int32. On a device that does not have the node, it is the row of another one.
  """
  return tree.locate(node)[1] if isinstance(tree, ShardedTree) else node


def stored_slot(tree: Tree, slot: jax.Array) -> jax.Array:
  """Returns the slots of nodes in a memory; see `stored_row`.

  Args:
    tree: the tree of one context.
    slot: int32 of any shape, the slots of an unsplit memory.
  """
  if not isinstance(tree, ShardedTree):
    return slot
  b = tree.branch_factor
  return stored_row(tree, slot // b) * b + slot % b


def keep_own(tree: Tree, node: jax.Array, x: _T) -> _T:
  """Sets to 0 what other devices compute.

  Args:
    tree: the tree of one context.
    node: int32 of any shape, nodes numbered level by level from the root.
    x: a pytree of arrays whose leading axes are those of node.

  Returns:
    The pytree. Each entry is left on exactly one device, one that has the node.
  """
  if not isinstance(tree, ShardedTree):
    return x
  own = tree.locate(node)[0] == jax.lax.axis_index(tree.axis_name)

  def keep(x: jax.Array) -> jax.Array:
    return jnp.where(
      jnp.expand_dims(own, range(own.ndim, x.ndim)), x, jnp.zeros((), x.dtype)
    )

  return jax.tree.map(keep, x)


def add_up(tree: Tree, x: _T) -> _T:
  """Sums arrays over the devices; of bool, whether one of them is True."""
  if not isinstance(tree, ShardedTree):
    return x

  def add(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
      return jax.lax.psum(x.astype(jnp.int32), tree.axis_name) > 0
    return jax.lax.psum(x, tree.axis_name)

  return jax.tree.map(add, x)


def from_owner(tree: Tree, node: jax.Array, x: _T) -> _T:
  """Gives all devices what the device that has a node has computed.

  Args:
    tree: the tree of one context.
    node: int32 of any shape, nodes numbered level by level from the root.
    x: a pytree of arrays whose leading axes are those of node.
  """
  return add_up(tree, keep_own(tree, node, x))


def check_whole(tree: Tree) -> None:
  """Raises ValueError if a tree is split over devices."""
  if isinstance(tree, ShardedTree):
    raise ValueError(
      "memory must be on one device to read all its leaves, got one that is split over"
      f" the mesh axis {tree.axis_name!r}"
    )
