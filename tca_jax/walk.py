"""The walk of the policy down a tree, without the attention over the nodes read.

These are the building blocks of `tca_jax.retrieval` and `tca_jax.relative`, which have
the entry points.
"""

from collections.abc import Sequence
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from tca_jax.checks import check_key
from tca_jax.checks import check_num_paths
from tca_jax.checks import check_sizes
from tca_jax.grown_tree import GrownTree
from tca_jax.masking import MASKED
from tca_jax.masking import masked_softmax
from tca_jax.memory import level_slots
from tca_jax.sharded_tree import stored_row
from tca_jax.tree import Tree
from tca_jax.tree import tree_depth
from tca_jax.varying import vary_like

__all__ = [
  "NodesRead",
  "Walk",
  "beam_widths",
  "child_logits",
  "drop_chosen",
  "gather_heads",
  "gather_rows",
  "locate_nodes",
  "logits_read",
  "num_read_slots",
  "path_to_leaf",
  "slot_logits",
  "split_beam",
  "walk_down",
]

_WIDE_LEVELS = 6  # the lowest levels, on which `beam_widths` has all paths


@chex.dataclass(frozen=True)
class NodesRead:
  """The nodes that one query read.

  S is the set of nodes read. It has a fixed number of slots, |S| = (b - 1) * depth + 1
  for one path; see `num_read_slots` for several paths.

  Attributes:
    level: `[|S|]` int32, the level of each node read, where the root is level 0.
    index: `[|S|]` int32, the node's index on its level.
    mask: `[|S|]` bool, True where the node has a valid token.
    path: `[depth]` int32, the child taken at each level, in [0, b); the best path if
      several were followed.
  """

  level: jax.Array
  index: jax.Array
  mask: jax.Array
  path: jax.Array

  @property
  def num_read(self) -> jax.Array:
    """`[]` int32, the number of nodes read, without masked slots."""
    return jnp.sum(self.mask, axis=-1, dtype=jnp.int32)


@chex.dataclass(frozen=True)
class Walk:
  """A path from the root to a leaf.

  Attributes:
    node: `[depth]` int32, the inner nodes visited, numbered level by level.
    path: `[depth]` int32, the child taken at each of them.
    valid: `[depth, b]` bool, whether each child has a valid token.
    counted: `[depth]` bool, see `TreeAttentionOutput`.
    slots: `[|S|]` int32, the slots of the nodes read.
    read_logits: `[|S|, H]` float32, the policy's logits of the nodes read; `MASKED`
      where the node has no valid token.
    leaf: `[]` int32, the leaf, numbered like the inner nodes.
    leaf_valid: `[]` bool, whether the leaf has a valid token.
  """

  node: jax.Array
  path: jax.Array
  valid: jax.Array
  counted: jax.Array
  slots: jax.Array
  read_logits: jax.Array
  leaf: jax.Array
  leaf_valid: jax.Array


def walk_down(
  query: jax.Array,
  keys: jax.Array,
  tree: Tree,
  rng: jax.Array | None = None,
) -> Walk:
  """Walks down a tree, greedily or with sampled choices.

  In a `ShardedTree`, the result is right on the device that has the leaf, because that
  has all nodes of the path.

  Args:
    query: `[H, Dh]`, the policy's query.
    keys: `[R, H, b, Dh]`, the policy's keys, as in `TreeMemory`.
    tree: the `Tree` of one context.
    rng: None for the greedy walk, else the key for sampling.

  Returns:
    A `Walk`.
  """
  b, depth = tree.branch_factor, tree.depth
  num_valid = tree.num_valid
  noise = None
  if rng is not None:
    check_key(rng)
    # The Gumbel-max trick; one draw serves all levels.
    noise = jax.random.gumbel(rng, (depth, b), jnp.float32)
  children = jnp.arange(b, dtype=jnp.int32)

  def step(carry, level):
    # Number the valid tokens such that a node of level l has every b**l-th of them,
    # starting with number `first`: its children start at first + b**l * child. A node
    # has a valid token if first < num_valid. `Tree.node_count` counts the same way.
    # A tree that has grown has counts instead.
    node, first, _ = carry
    stride, noise = level
    if isinstance(tree, GrownTree):
      count = gather_rows(tree.counts, node)
      valid, counted = count > 0, jnp.any(count > 1)
    else:
      valid = first + stride * children < num_valid
      counted = first + stride * b < num_valid
    logits = child_logits(query, gather_rows(keys, stored_row(tree, node)))
    choice = _choose(logits, valid, noise)
    logits = jnp.where(valid[None], logits, MASKED)
    taken = jnp.sum(jnp.where((children == choice)[None], logits, 0), axis=1)
    carry = (node * b + 1 + choice, first + stride * choice, taken)
    siblings = drop_chosen(node * b + children, choice)
    return carry, (
      node,
      choice,
      valid,
      counted,
      siblings,
      drop_chosen(logits, choice).T,
    )

  # If the root is the leaf, it is the only node read: any logit gives it weight 1.
  zeros = jnp.zeros(query.shape[0], jnp.float32)
  leaf_logits = jnp.where(num_valid > 0, zeros, MASKED)
  start = tuple(
    vary_like(x, query, keys, tree.root_count, *(() if noise is None else (noise,)))
    for x in (jnp.int32(0), jnp.int32(0), leaf_logits)
  )
  strides = b ** np.arange(depth, dtype=np.int32)
  carry, visited = jax.lax.scan(step, start, (strides, noise), length=depth)
  node, _, leaf_logits = carry
  node_visited, path, valid, counted, siblings, logits = visited
  return Walk(
    node=node_visited,
    path=path,
    valid=valid,
    counted=counted,
    slots=jnp.append(siblings.ravel(), jnp.maximum(node - 1, 0)),
    read_logits=jnp.concatenate(
      [logits.reshape(-1, query.shape[0]), leaf_logits[None]]
    ),
    leaf=node,
    leaf_valid=num_valid > 0,
  )


def _choose(logits: jax.Array, valid: jax.Array, noise: jax.Array | None) -> jax.Array:
  """Returns the child of the highest policy for logits `[H, b]`, the first if equal."""
  if logits.shape[1] == 2:
    # For two children, pi(1) - pi(0) is the mean of tanh(difference / 2).
    leads = jnp.tanh((logits[:, 1] - logits[:, 0]) / 2)
    lead = functools.reduce(jnp.add, list(leads))
    if noise is not None:
      # log pi(1) + noise[1] > log pi(0) + noise[0], with pi = (1 +- lead) / 2.
      lead /= len(leads)
      lead = (1 + lead) * jnp.exp(noise[1] - noise[0]) - (1 - lead)
    return (valid[1] & (~valid[0] | (lead > 0))).astype(jnp.int32)
  policy = jnp.mean(masked_softmax(logits, valid[None]), axis=0)
  preference = policy if noise is None else jnp.log(policy) + noise
  return jnp.argmax(jnp.where(valid, preference, -jnp.inf)).astype(jnp.int32)


def logits_read(logits: jax.Array, walk: Walk) -> jax.Array:
  """Selects the logits of the nodes read from those of all children on the path.

  Args:
    logits: `[depth, H, b]`, of the children of the visited nodes.
    walk: the `Walk`.

  Returns:
    `[|S|, H]`; `MASKED` where the node has no valid token.
  """
  if not len(logits):
    return walk.read_logits  # the root is the only node
  logits = jnp.where(walk.valid[:, None], logits, MASKED)
  siblings = jnp.swapaxes(drop_chosen(logits, walk.path[:, None, None]), 1, 2)
  siblings = siblings.reshape(-1, logits.shape[1])
  taken = jnp.arange(logits.shape[2], dtype=jnp.int32) == walk.path[-1]
  leaf = jnp.sum(jnp.where(taken[None], logits[-1], 0), axis=1)
  return jnp.concatenate([siblings, leaf[None]])


def split_beam(score: jax.Array, num_paths: int) -> tuple[jax.Array, jax.Array]:
  """Splits candidates into those on the beam and the others.

  It compares all pairs, which is faster than sorting for a narrow beam.

  Args:
    score: `[n]`, without NaN. The highest stay on the beam, the first among equals.
    num_paths: the beam width.

  Returns:
    The positions of the min(num_paths, n) candidates on the beam, and of the others,
    both ascending, int32.

  >>> kept, others = split_beam(jnp.array([1.0, 5.0, 3.0, 5.0]), 2)
  >>> kept.tolist(), others.tolist()
  ([1, 3], [0, 2])
  """
  n = len(score)
  kept = min(num_paths, n)
  index = jnp.arange(n, dtype=jnp.int32)
  earlier = index[None] < index[:, None]
  better = (score[None] > score[:, None]) | ((score[None] == score[:, None]) & earlier)
  dropped = jnp.sum(better, axis=1, dtype=jnp.int32) >= kept
  # The others follow those on the beam; both groups keep their order.
  before = (~dropped[None] & dropped[:, None]) | (
    (dropped[None] == dropped[:, None]) & earlier
  )
  position = jnp.sum(before, axis=1, dtype=jnp.int32)
  order = jnp.sum(
    jnp.where(position[None] == index[:, None], index[None], 0), axis=1, dtype=jnp.int32
  )
  return order[:kept], order[kept:]


def beam_widths(
  depth: int, num_paths: int = 1, upper_paths: int | None = None
) -> list[int]:
  """Returns the widths of a beam on the levels 1 to depth.

  Args:
    depth: the depth of the tree.
    num_paths: the width on the lowest six levels, at least 1.
    upper_paths: the width on the levels above, at least 1; num_paths if that is smaller
      or if it is None.

  Raises:
    ValueError: if num_paths or upper_paths is below 1.

  >>> beam_widths(8, num_paths=8, upper_paths=4)
  [4, 4, 8, 8, 8, 8, 8, 8]
  """
  check_num_paths(num_paths)
  upper_paths = num_paths if upper_paths is None else upper_paths
  check_sizes(upper_paths=upper_paths)
  upper = max(depth - _WIDE_LEVELS, 0)
  return [min(num_paths, upper_paths)] * upper + [num_paths] * (depth - upper)


def num_read_slots(
  num_tokens: int,
  branch_factor: int = 2,
  num_paths: int = 1,
  upper_paths: int | None = None,
) -> int:
  """Returns |S|, the maximum number of nodes that one query reads.

  It is (b - 1) * depth + 1 for one path.

  Args:
    num_tokens: N.
    branch_factor: b, at least 2.
    num_paths: the beam width, at least 1; see `retrieval.read`.
    upper_paths: see `beam_widths`.

  Raises:
    ValueError: if branch_factor is below 2, or num_paths or upper_paths below 1.

  >>> num_read_slots(128), num_read_slots(128, num_paths=4), num_read_slots(8, 2, 8)
  (8, 24, 8)
  """
  kept, slots = 1, 0
  depth = tree_depth(num_tokens, branch_factor)
  for width in beam_widths(depth, num_paths, upper_paths):
    children = kept * branch_factor
    kept = min(width, children)
    slots += children - kept
  return slots + kept


def locate_nodes(
  slots: jax.Array, levels: Sequence[int], tree: Tree
) -> dict[str, jax.Array]:
  """Returns the fields level and index of `NodesRead`.

  Args:
    slots: `[|S|]` int32, the slots of the nodes.
    levels: the level of each of them.
    tree: the `Tree`.
  """
  starts = [level_slots(tree, level).start for level in levels]
  return {
    "level": jnp.array(levels, jnp.int32),
    "index": slots - jnp.array(starts, jnp.int32),
  }


def path_to_leaf(leaf: jax.Array, tree: Tree) -> jax.Array:
  """Returns the child taken at each level on the path to a leaf, `[depth]` int32.

  Args:
    leaf: `[]` int32, the index of the leaf on its level.
    tree: the `Tree`.

  >>> from tca_jax.tree import build_tree
  >>> path_to_leaf(jnp.int32(6), build_tree(jnp.ones((8, 1)))).tolist()
  [1, 1, 0]
  """
  b, depth = tree.branch_factor, tree.depth
  digits = [leaf // b ** (depth - 1 - level) % b for level in range(depth)]
  return jnp.array(digits, jnp.int32)


def gather_rows(table: jax.Array, index: jax.Array) -> jax.Array:
  """Gathers rows of a table.

  Args:
    table: `[n, ...]`.
    index: int array; all entries must be in [0, n), which is not checked.

  Returns:
    The array of rows, `index.shape + table.shape[1:]`.
  """
  return jnp.asarray(table).at[index].get(mode="promise_in_bounds")


def gather_heads(table: jax.Array, slots: jax.Array) -> jax.Array:
  """Gathers the nodes in slots, a row for each head.

  A product over heads takes the rows in this order. If a row had all heads, a CPU would
  copy what it has read.

  Args:
    table: `[R, H, b, width]`, as the keys of `TreeMemory`.
    slots: `[n]` int32, all in [0, R * b), which is not checked.

  Returns:
    `[H, n, width]`.
  """
  _, num_heads, b, width = table.shape
  row, child = jnp.divmod(slots[None], b)
  head = jnp.arange(num_heads, dtype=jnp.int32)[:, None]
  index = (row * num_heads + head) * b + child
  return gather_rows(table.reshape(-1, width), index)


def child_logits(query: jax.Array, keys: jax.Array) -> jax.Array:
  """Computes scaled dot products, q . k / sqrt(Dh), in float32.

  Args:
    query: `[H, Dh]`.
    keys: `[..., H, b, Dh]`, one row of siblings per leading index.

  Returns:
    `[..., H, b]` float32.
  """
  scale = jnp.sqrt(jnp.float32(query.shape[-1]))
  return (
    jnp.einsum("hd,...hbd->...hb", query, keys, preferred_element_type=jnp.float32)
    / scale
  )


def slot_logits(query: jax.Array, keys: jax.Array, slots: jax.Array) -> jax.Array:
  """Computes scaled dot products with the nodes in slots, in float32.

  Args:
    query: `[H, Dh]`.
    keys: `[R, H, b, Dh]`, as in `TreeMemory`.
    slots: `[n]` int32, all in [0, R * b), which is not checked.

  Returns:
    `[n, H]` float32.
  """
  read = gather_heads(keys, slots)
  logits = jnp.einsum("hd,hnd->nh", query, read, preferred_element_type=jnp.float32)
  return logits / jnp.sqrt(jnp.float32(query.shape[-1]))


def drop_chosen(x: jax.Array, choice: jax.Array) -> jax.Array:
  """Removes the chosen entry from the last axis.

  Args:
    x: `[..., b]`.
    choice: int, the entry to remove, broadcastable to `[..., b - 1]`.

  Returns:
    `[..., b - 1]`.

  >>> drop_chosen(jnp.array([5, 6, 7]), jnp.array(1)).tolist()
  [5, 7]
  """
  entry = jnp.arange(x.shape[-1] - 1, dtype=jnp.int32)
  kept = jnp.expand_dims(entry, range(x.ndim - 1)) < choice
  return jnp.where(kept, x[..., :-1], x[..., 1:])
