"""Memories: what is cached of a context, for queries to read.

This is the only file that knows the packed layout of a `TreeMemory`. The other files
use the functions below.
"""

from collections.abc import Sequence
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from tca_jax import sharded_tree
from tca_jax import state
from tca_jax.checks import as_array
from tca_jax.checks import check_floating
from tca_jax.node_counts import leaves_of_tokens
from tca_jax.tree import Tree
from tca_jax.tree import tree_depth

__all__ = [
  "FlatMemory",
  "TrainingMemory",
  "TreeMemory",
  "for_training",
  "from_slots",
  "join_levels",
  "leaves",
  "level_slots",
  "num_slots",
  "pack",
  "spread_leaves",
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
class TrainingMemory(TreeMemory):
  """A `TreeMemory` for training, where queries also read all leaves.

  Attributes:
    tokens: the keys and values of the N leaf slots that can have a token, in leaf order.
      A tree has up to b times as many leaf slots.
  """

  tokens: FlatMemory = dataclasses.field(kw_only=True)


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
  start = max(sharded_tree.num_above(level, b) - 1, 0)
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


def for_training(
  memory: TreeMemory, keys: jax.Array, num_tokens: int
) -> TrainingMemory:
  """Prepares a memory, or a batch of them, for training.

  Args:
    memory: a `TreeMemory` whose nodes are split evenly.
    keys: `[..., R * b, H, Dh]`, its keys in slot order.
    num_tokens: N, the number of tokens of the context, valid or not.
  """
  tree = memory.tree
  leaf = np.flatnonzero(leaves_of_tokens(num_tokens, tree.branch_factor, tree.depth))
  slots = level_slots(tree, tree.depth).start + leaf
  return TrainingMemory(
    tree=tree,
    keys=memory.keys,
    values=memory.values,
    policy_keys=memory.policy_keys,
    tokens=FlatMemory(
      keys=keys[..., slots, :, :],
      values=memory.values[..., slots, :, :],
      mask=tree.leaf_mask[..., leaf],
    ),
  )


def spread_leaves(weights: jax.Array, num_leaves: int, branch_factor: int) -> jax.Array:
  """Returns the weights of all leaf slots from those in `TrainingMemory.tokens`.

  Args:
    weights: `[..., N]`.
    num_leaves: L, the number of leaf slots.
    branch_factor: b.

  Returns:
    `[..., L]`, 0 where no token can be.

  >>> spread_leaves(jnp.arange(1.0, 6.0), 8, 2).tolist()
  [1.0, 2.0, 3.0, 0.0, 4.0, 0.0, 5.0, 0.0]
  """
  depth = tree_depth(num_leaves, branch_factor)
  has_token = leaves_of_tokens(weights.shape[-1], branch_factor, depth)
  index = np.maximum(np.cumsum(has_token) - 1, 0)
  return jnp.where(has_token, jnp.take(weights, index, axis=-1), 0)


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


for _kind in (Tree, FlatMemory, TreeMemory):
  state.register(_kind)
