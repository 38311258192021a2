"""The parts of a memory that grows: its arrays, and the renewal of its nodes.

These are the building blocks of `tca_jax.growth`, which has the entry points.
"""

from collections.abc import Callable
import dataclasses
import functools
import typing

import chex
import jax
import jax.numpy as jnp

from tca_jax import memory as memory_lib
from tca_jax import node_memory
from tca_jax import relative
from tca_jax import state
from tca_jax.grown_tree import Cuts
from tca_jax.grown_tree import GrownTree
from tca_jax.masking import merge_children
from tca_jax.memory import TreeMemory
from tca_jax.node_memory import NodeMemory
from tca_jax.statistics import domain_of_root
from tca_jax.statistics import LevelStatistics
from tca_jax.statistics import merge_siblings
from tca_jax.statistics import single_tokens

__all__ = ["GrowingMemory", "NodeFunctions", "set_leaves", "set_rows"]


class NodeFunctions(typing.NamedTuple):
  """The learned parts of a memory, as functions.

  Attributes:
    aggregate: `(children [..., b, D], mask [..., b]) -> [..., D]`, see
      `tree.aggregate`. For a `NodeMemory` it has a third argument, `[..., b, G]`, the
      `relative.child_features` of the children.
    project: what the memory stores of node values `[..., D]`. For a `TreeMemory`: keys
      `[..., H, Dh]`, values `[..., H, Dv]`, and the policy's own keys or None. For a
      `NodeMemory`: summaries `[..., W]`.
    keep_border: whether a `NodeMemory` keeps the border of each node.
    noise: `[]`, the variance of the noise for which the evidence of a `NodeMemory` is
      measured when it is built; None means no evidence.
  """

  aggregate: Callable[..., jax.Array]
  project: Callable[[jax.Array], typing.Any]
  keep_border: bool = False
  noise: jax.Array | None = None


@chex.dataclass(frozen=True)
class GrowingMemory:
  """A memory with free leaf slots, and what is needed to change it.

  A token keeps its number from 0 to L - 1 until it is removed. The number of a removed
  token is given to a new one. A batch of memories has leading axes on every array.

  Attributes:
    memory: the `TreeMemory` or `NodeMemory` that queries read, over a `GrownTree`.
    cuts: the `Cuts` of the tree, as of the last build.
    nodes: `[R, b, D]`, the value of every node, one row per inner node.
    coords: `[L, C]`, the location of each token; 0 if there is no token of this number.
    values: `[L, E]`, the observed value of each token, for a `NodeMemory`; else E = 0.
    leaf: `[L]` int32, the leaf slot of each token; -1 if there is no such token.
    free: `[L]` int32, of which the first L - n are the numbers without token, the next
      one to be used last, if there are n tokens.
  """

  memory: TreeMemory | NodeMemory
  cuts: Cuts
  nodes: jax.Array
  coords: jax.Array
  values: jax.Array
  leaf: jax.Array
  free: jax.Array

  @property
  def tree(self) -> GrownTree:
    """The tree; `tree.num_valid` is the number of tokens."""
    return typing.cast(GrownTree, self.memory.tree)

  @property
  def capacity(self) -> int:
    """L, the number of leaf slots."""
    return self.leaf.shape[-1]

  @property
  def mask(self) -> jax.Array:
    """`[L]` bool, True at the numbers of tokens."""
    return self.leaf >= 0

  @property
  def tokens(self) -> jax.Array:
    """`[L, D]`, the tokens by number; 0 if there is no token of this number."""
    nodes = jnp.asarray(self.nodes)
    rows, b, width = nodes.shape[-3:]
    nodes = nodes.reshape(*nodes.shape[:-3], rows * b, width)
    leaves = nodes[..., memory_lib.level_slots(self.tree, self.tree.depth), :]
    index = jnp.maximum(self.leaf, 0)[..., None]
    tokens = jnp.take_along_axis(leaves, index, axis=-2)
    return jnp.where(self.mask[..., None], tokens, 0)


state.register(GrowingMemory)


def set_rows(
  x: jax.Array, index: jax.Array, chosen: jax.Array, new: typing.Any
) -> jax.Array:
  """Sets the rows of an array at different indices, where chosen.

  Args:
    x: `[n, ...]`.
    index: `[K]` int32, different where chosen.
    chosen: `[K]` bool.
    new: `[K, ...]`, or one row.

  Returns:
    `[n, ...]`.

  >>> chosen = jnp.array([True, False])
  >>> set_rows(jnp.zeros(3), jnp.array([2, 1]), chosen, 5.0).tolist()
  [0.0, 0.0, 5.0]
  """
  x = jnp.asarray(x)
  outside = len(x) + jnp.arange(len(index), dtype=jnp.int32)  # all different
  index = jnp.where(chosen, index, outside)
  return x.at[index].set(new, mode="drop", unique_indices=True)


def set_leaves(
  functions: NodeFunctions,
  growing: GrowingMemory,
  leaf: jax.Array,
  found: jax.Array,
  number: jax.Array | None,
  tokens: jax.Array,
  arrays: dict[str, jax.Array] | None,
) -> GrowingMemory:
  """Fills or frees leaf slots, and renews the nodes above.

  Args:
    functions: the `NodeFunctions`.
    growing: the memory, with the new `coords`, `values` and so on.
    leaf: `[K]` int32, different leaf slots.
    found: `[K]` bool, where to do so.
    number: `[K]` int32, the numbers of the new tokens; None to free the slots.
    tokens: `[K, D]`; 0 to free the slots.
    arrays: coords and values of the new tokens; None to free the slots.
  """
  tree = growing.tree
  b, depth = tree.branch_factor, tree.depth
  slot = leaf + memory_lib.level_slots(tree, depth).start
  # In the order of the slots, slots with one ancestor are next to each other.
  order = jnp.argsort(jnp.where(found, slot, jnp.iinfo(jnp.int32).max), stable=True)
  slot, found, leaf, tokens = (x[order] for x in (slot, found, leaf, tokens))

  # --- The tree.
  ancestors = [slot]
  for _ in range(depth - 1):
    ancestors.append(ancestors[-1] // b - 1)
  change = jnp.where(found, 1 if number is not None else -1, 0)
  counts = jnp.asarray(tree.counts).ravel()
  changes = jnp.tile(change.astype(counts.dtype), depth)
  counts = counts.at[jnp.concatenate(ancestors)].add(changes).reshape(-1, b)
  new = growing.capacity - 1 if number is None else number[order]
  tree = dataclasses.replace(
    tree,
    leaf_index=set_rows(tree.leaf_index, leaf, found, new),
    leaf_mask=set_rows(tree.leaf_mask, leaf, found, number is not None),
    root_count=counts[0],
    counts=counts,
  )
  memory = dataclasses.replace(growing.memory, tree=tree)
  growing = dataclasses.replace(growing, memory=memory)

  # --- The leaves.
  statistics = None
  if isinstance(memory, NodeMemory):
    domain = memory.domain
    location = jnp.zeros((len(slot), domain.origin.shape[-1]), jnp.float32)
    value = jnp.zeros((len(slot), domain.value_origin.shape[-1]), jnp.float32)
    if arrays is not None:
      location, value = domain.centre(
        arrays["coords"][order], arrays["values"][order], found
      )
    valid = jnp.full(len(slot), number is not None)
    statistics = single_tokens(location, value, valid, functions.keep_border)
  growing = _set_nodes(functions, growing, slot, found, tokens, statistics)
  return _renew_ancestors(functions, growing, slot, found)


def _set_nodes(
  functions: NodeFunctions,
  growing: GrowingMemory,
  slot: jax.Array,
  chosen: jax.Array,
  nodes: jax.Array,
  statistics: LevelStatistics | None,
) -> GrowingMemory:
  """Stores nodes `[n, D]` in different slots `[n]`, where chosen."""
  memory = growing.memory
  put = functools.partial(_put, slot, chosen, growing.tree.branch_factor)
  packed = functions.project(nodes)
  if isinstance(memory, NodeMemory):
    statistics = typing.cast(LevelStatistics, statistics)
    rows = node_memory.pack_rows(statistics, packed)
    memory = dataclasses.replace(memory, rows=put(memory.rows, rows))
    if statistics.border is not None:
      borders = put(memory.borders, statistics.border)
      memory = dataclasses.replace(memory, borders=borders)
  else:
    keys, values, policy_keys = packed
    changed = {
      "keys": put(memory.keys, keys, heads=True),
      "values": set_rows(memory.values, slot, chosen, values),
    }
    if policy_keys is not None:
      changed["policy_keys"] = put(memory.policy_keys, policy_keys, heads=True)
    memory = dataclasses.replace(memory, **changed)
  return dataclasses.replace(growing, memory=memory, nodes=put(growing.nodes, nodes))


def _put(
  slot: jax.Array,
  chosen: jax.Array,
  b: int,
  x: typing.Any,
  new: typing.Any,
  heads: bool = False,
) -> jax.Array:
  """Stores entries `[n, ...]` in different slots `[n]` of rows of b, where chosen."""
  x = jnp.asarray(x)
  row, child = slot // b, slot % b
  row = jnp.where(chosen, row, len(x) + jnp.arange(len(slot), dtype=jnp.int32))
  at = x.at[row, :, child] if heads else x.at[row, child]
  return at.set(new.astype(x.dtype), mode="drop", unique_indices=True)


def _renew_ancestors(
  functions: NodeFunctions, growing: GrowingMemory, slot: jax.Array, found: jax.Array
) -> GrowingMemory:
  """Computes anew all nodes above sorted leaf slots `[K]`, where found."""
  b, depth = growing.tree.branch_factor, growing.tree.depth

  # Functions that renew inner nodes `[n]`, numbered level by level from the root.
  def renew_border(growing, node, chosen):
    _, statistics = _merge(functions, growing, node, values=False)
    memory, border = growing.memory, typing.cast(LevelStatistics, statistics).border
    borders = _put(node - 1, chosen, b, memory.borders, border)
    return dataclasses.replace(
      growing, memory=dataclasses.replace(memory, borders=borders)
    )

  def renew(growing, node, chosen):
    value, statistics = _merge(functions, growing, node)
    if statistics is not None:
      statistics = dataclasses.replace(statistics, border=None)
    return _set_nodes(functions, growing, node - 1, chosen, value, statistics)

  def renew_all(renew_nodes, growing):
    def renew_parents(carry, _):
      growing, slot = carry
      node = jnp.where(found, slot // b, 0)
      # One of the slots with the same parent.
      first = jnp.concatenate([jnp.ones(1, bool), node[1:] != node[:-1]])
      return (renew_nodes(growing, node, found & first), node - 1), None

    # The levels with fewer nodes than new tokens are renewed as a whole.
    whole = 1
    while whole < depth and b**whole <= len(slot):
      whole += 1
    steps = depth - whole
    (growing, _), _ = jax.lax.scan(renew_parents, (growing, slot), length=steps)
    for level in range(whole - 1, 0, -1):
      slots = memory_lib.level_slots(growing.tree, level)
      node = jnp.arange(slots.start + 1, slots.stop + 1, dtype=jnp.int32)
      growing = renew_nodes(growing, node, jnp.ones(len(node), bool))
    return growing

  if len(slot):
    # Borders have a loop of their own, before that of the nodes. In a common loop, XLA
    # would copy the borders of the whole memory in each step.
    if functions.keep_border:
      growing = renew_all(renew_border, growing)
    growing = renew_all(renew, growing)
  memory = growing.memory
  if not isinstance(memory, NodeMemory):
    return growing
  _, root = _merge(functions, growing, jnp.zeros(1, jnp.int32), values=False)
  domain = domain_of_root(memory.domain, typing.cast(LevelStatistics, root))
  memory = dataclasses.replace(memory, domain=domain)
  return dataclasses.replace(growing, memory=memory)


def _merge(
  functions: NodeFunctions,
  growing: GrowingMemory,
  node: jax.Array,
  values: bool = True,
) -> tuple[typing.Any, LevelStatistics | None]:
  """The values `[n, D]` and the statistics of inner nodes `[n]` from their children."""
  memory, b = growing.memory, growing.tree.branch_factor
  count = jnp.asarray(growing.tree.counts)[node]
  features, merged = [], None
  if isinstance(memory, NodeMemory):
    rows = node_memory.sibling_nodes(memory, node)
    children = LevelStatistics(
      count=count,
      centroid=rows.centroid,
      low=rows.low,
      high=rows.high,
      mean=rows.mean,
      variance=rows.variance,
      border=rows.border,
    )
    children = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), children)
    merged = merge_siblings(children, b)
    described = relative.child_features(merged, children)
    features = [described.reshape(*count.shape, -1)]
  if not values:
    return None, merged
  children = jnp.asarray(growing.nodes)[node]
  value = merge_children(functions.aggregate, children, count > 0, *features)
  return value, merged
