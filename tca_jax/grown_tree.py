"""Trees that tokens have joined and left: counts, cuts, and free leaf slots.

`build_tree` splits every node evenly, so that the number of tokens below a node follows
from the number of all tokens. In a tree that grows it does not, and is stored.

A new token goes down the cuts between children, as in a k-d tree, to a leaf slot that
is free. Nothing here is learned.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from tca_jax import state
from tca_jax.memory import join_levels
from tca_jax.memory import level_slots
from tca_jax.tree import Tree

__all__ = ["Cuts", "GrownTree", "as_grown", "find_cuts", "find_slots"]


@chex.dataclass(frozen=True)
class GrownTree(Tree):
  """A tree in which any leaf slots may be free.

  Slots are those of a `TreeMemory`: slot s is child s % b of the inner node s // b.

  Attributes:
    counts: `[R, b]` int32, the number of valid tokens below each child of each inner
      node.
  """

  counts: jax.Array

  def node_count(self, level: int) -> jax.Array:
    """Returns the number of valid tokens below each node of a level.

    Args:
      level: the level, in [0, depth].

    Returns:
      `[..., b**level]` int32.
    """
    if level == 0:
      return self.num_valid[..., None]
    counts = jnp.asarray(self.counts)
    return counts.reshape(*counts.shape[:-2], -1)[..., level_slots(self, level)]

  @property
  def is_even(self) -> bool:
    """False: tokens were inserted where they belong."""
    return False


@chex.dataclass(frozen=True)
class Cuts:
  """Where the inner nodes of a k-d tree are cut.

  A location belongs to child i of a node if i of the node's positions are below its
  coordinate on the node's axis.

  Attributes:
    axis: `[R]` int32, the axis across which each inner node is cut.
    position: `[R, b - 1]`, the ascending coordinates of its cuts.
  """

  axis: jax.Array
  position: jax.Array


state.register(GrownTree)
state.register(Cuts)


def as_grown(tree: Tree) -> GrownTree:
  """Returns the same tree with the counts of its nodes.

  Args:
    tree: a `Tree` of depth 1 or more, over one context.

  >>> from tca_jax.tree import build_tree
  >>> as_grown(build_tree(jnp.ones((3, 1)))).counts.tolist()
  [[2, 1], [1, 1], [1, 0]]
  """
  b = tree.branch_factor
  counts = [tree.node_count(level) for level in range(tree.depth + 1)]
  return GrownTree(
    leaf_index=tree.leaf_index,
    leaf_mask=tree.leaf_mask,
    root_count=tree.root_count,
    counts=join_levels(counts, b).reshape(-1, b),
  )


def find_cuts(tree: Tree, coords: jax.Array, axis: int | None = None) -> Cuts:
  """Computes the cuts of a k-d tree from the bounding boxes of its nodes.

  A node is cut halfway between its children. A child without token, and so without box, is taken to be at the upper
  end of the node's cell; if the node has no token, its cell is split evenly.

  Args:
    tree: a new `Tree` over the N tokens of one context, of depth 1 or more.
    coords: `[N, C]` floating point.
    axis: the axis of all cuts; None means the axis on which the children of a node are
      furthest apart.

  Returns:
    `Cuts` with the dtype of coords.

  >>> from tca_jax.tree import build_tree
  >>> x = jnp.array([[0.0], [2.0], [3.0], [9.0]])
  >>> find_cuts(build_tree(x), x).position.tolist()
  [[2.5], [1.0], [6.0]]
  """
  b, depth = tree.branch_factor, tree.depth
  points = coords[jnp.asarray(tree.leaf_index)]
  valid = jnp.asarray(tree.leaf_mask)[:, None]
  boxes = [(jnp.where(valid, points, jnp.inf), jnp.where(valid, points, -jnp.inf))]
  for _ in range(depth):
    low, high = (x.reshape(-1, b, x.shape[-1]) for x in boxes[-1])
    boxes.append((jnp.min(low, axis=1), jnp.max(high, axis=1)))
  boxes.reverse()
  occupied = jnp.any(valid)
  cell = tuple(jnp.where(occupied, x, 0) for x in boxes[0])
  axes, positions = [], []
  for level in range(depth):
    low, high = (x.reshape(-1, b, x.shape[-1]) for x in boxes[level + 1])
    count = tree.node_count(level + 1).reshape(-1, b)
    low, high = _place_empty(count > 0, low, high, boxes[level][1], cell)
    gaps = jnp.min(low[:, 1:] - high[:, :-1], axis=1)
    across = jnp.argmax(gaps, axis=-1) if axis is None else jnp.full(len(gaps), axis)
    before, after = (
      jnp.take_along_axis(x, across[:, None, None], axis=-1)[..., 0]
      for x in (high[:, :-1], low[:, 1:])
    )
    middle = before + (after - before) / 2
    # Rounding must not move the cut to the token after it.
    position = jnp.where(middle < after, middle, before)
    axes.append(across.astype(jnp.int32))
    positions.append(position)
    cell = _split_cells(cell, across, position)
  return Cuts(axis=jnp.concatenate(axes), position=jnp.concatenate(positions))


def _place_empty(
  occupied: jax.Array,
  low: jax.Array,
  high: jax.Array,
  node_high: jax.Array,
  cell: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array]:
  """Gives children without token a box, `[n, b, C]`; the occupied ones come first.

  Args:
    occupied: `[n, b]` bool.
    low: `[n, b, C]`, the boxes of the children.
    high: `[n, b, C]`.
    node_high: `[n, C]`, the upper end of the nodes' boxes.
    cell: the cells of the nodes, two arrays `[n, C]`.
  """
  b = occupied.shape[1]
  first = jnp.sum(occupied, axis=1, keepdims=True)  # the first child without token
  children = jnp.arange(b)[None]
  share = jnp.where(
    first > 0, (children - first + 1) / jnp.maximum(b - first, 1), children / (b - 1)
  )
  start = jnp.where(first > 0, node_high, cell[0])[:, None]
  end = jnp.maximum(cell[1][:, None], start)
  place = start + (end - start) * share[..., None].astype(start.dtype)
  occupied = occupied[..., None]
  return jnp.where(occupied, low, place), jnp.where(occupied, high, place)


def _split_cells(
  cell: tuple[jax.Array, ...], axis: jax.Array, position: jax.Array
) -> tuple[jax.Array, ...]:
  """The cells of the children, `[n * b, C]`, from those of the nodes, `[n, C]`."""
  num_axes, b = cell[0].shape[-1], position.shape[-1] + 1
  on_axis = jnp.arange(num_axes)[None] == axis[:, None]
  position = position[..., None]
  low, high = (jnp.repeat(x[:, None], b, axis=1) for x in cell)
  low = low.at[:, 1:].set(jnp.where(on_axis[:, None], position, low[:, 1:]))
  high = high.at[:, :-1].set(jnp.where(on_axis[:, None], position, high[:, :-1]))
  return low.reshape(-1, num_axes), high.reshape(-1, num_axes)


def find_slots(
  tree: GrownTree, cuts: Cuts, coords: jax.Array, mask: jax.Array, reach: int
) -> tuple[jax.Array, jax.Array]:
  """Finds a free leaf slot for each of several new tokens.

  A token follows the cuts to a subtree of b**reach leaf slots. Below, it follows them
  as long as there is room, and otherwise takes the child with room that is nearest in
  the order of the children. If the subtree has more new tokens than free slots, the
  last ones find none.

  Args:
    tree: the `GrownTree`.
    cuts: its `Cuts`.
    coords: `[K, C]`.
    mask: `[K]` bool, True where there is a token.
    reach: the depth of the subtrees in which a token may leave its cuts.

  Returns:
    The leaf slots, `[K]` int32 in [0, L), and `[K]` bool, whether one was found.
  """
  b, depth, counts = tree.branch_factor, tree.depth, jnp.asarray(tree.counts)
  reach = min(reach, depth)
  axis, position = jnp.asarray(cuts.axis), jnp.asarray(cuts.position)
  children = jnp.arange(b, dtype=jnp.int32)

  def own_child(node):
    x = jnp.take_along_axis(coords, axis[node][:, None], axis=1)
    return jnp.sum(x > position[node], axis=1, dtype=jnp.int32)

  def follow(node, _):
    return node * b + 1 + own_child(node), None

  node = jnp.zeros(len(coords), jnp.int32)
  node, _ = jax.lax.scan(follow, node, length=depth - reach)
  count = tree.num_valid[None] if reach == depth else counts.reshape(-1)[node - 1]
  found = mask & (_rank(node, mask) < b**reach - count)

  def follow_room(carry, child_size):
    node, found = carry
    room = child_size - counts[node]
    own = own_child(node)[:, None]
    order = jnp.argsort(jnp.abs(children[None] - own), axis=1, stable=True)
    order = order.astype(jnp.int32)
    turn = jnp.zeros_like(node)
    for attempt in range(b - 1):
      choice = jnp.take_along_axis(order, turn[:, None], axis=1)
      left = jnp.take_along_axis(room, choice, axis=1)[:, 0]
      fits = _rank(node * b + choice[:, 0], found, turn) < left
      # After the last attempt, the others fit into the remaining child.
      turn = jnp.where((turn == attempt) & ~fits, attempt + 1, turn)
    choice = jnp.take_along_axis(order, turn[:, None], axis=1)
    # Changes nothing, but makes `found` a result of the loop. Otherwise XLA computes it
    # again after the counts have changed, for which it keeps a copy of them.
    found &= jnp.take_along_axis(room, choice, axis=1)[:, 0] > 0
    return (node * b + 1 + choice[:, 0], found), None

  sizes = b ** np.arange(reach, dtype=np.int32)[::-1]
  (node, found), _ = jax.lax.scan(follow_room, (node, found), sizes)
  return node - 1 - level_slots(tree, depth).start, found


def _rank(
  group: jax.Array, active: jax.Array, turn: jax.Array | None = None
) -> jax.Array:
  """How many active tokens of its group are before each, by turn, then by index."""
  size = len(group)
  if size <= 1:
    return jnp.zeros(size, jnp.int32)
  group = jnp.where(active, group, jnp.iinfo(jnp.int32).max)
  turn = jnp.zeros_like(group) if turn is None else turn
  order = jnp.lexsort((turn, group))
  ordered = group[order]
  index = jnp.arange(size, dtype=jnp.int32)
  is_first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
  first = jax.lax.cummax(jnp.where(is_first, index, 0))
  return jnp.zeros_like(index).at[order].set(index - first, unique_indices=True)
