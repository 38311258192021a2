"""Trees over a context's tokens: construction and bottom-up aggregation.

A tree is data: a permutation of the tokens into the leaf slots of a perfect
b-ary tree, and how many valid tokens each node holds. Every array has a shape
that depends on the number of tokens N and the branch factor b alone, so that
one compilation serves all contexts of a size, whatever their masks.

How it is built (`build_tree`): how many tokens each node holds follows from
the number of valid tokens alone, in closed form. Which tokens those are is one
permutation: a sort, for the orders along a line; for a k-d tree a sort along
every axis, and then one stable partition a level. Nothing here is learned and
nothing is jitted: callers compose, `jax.jit` and `jax.vmap` these functions.
"""

from collections.abc import Callable
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np

Order = typing.Literal["kd", "given", "axis", "random_projection", "random"]
ORDERS: tuple[str, ...] = typing.get_args(Order)

# (children [..., b, D], mask [..., b]) -> [..., D]
AggregateFn = Callable[[jax.Array, jax.Array], jax.Array]

CHUNK = 2048  # the most nodes of a level that are aggregated at once


@chex.dataclass(frozen=True)
class Tree:
  """A perfect b-ary tree over N tokens, all arrays of fixed shape.

  Node i of a level has the children i * b, ..., i * b + b - 1 on the next one.
  There are no static fields: depth and branch factor are read from shapes. A
  batch of trees (`jax.vmap` of `build_tree`) has leading axes on every field.

  Attributes:
    leaf_index: `[L]` int32, the token in each leaf slot, always in [0, N);
      meaningless where `leaf_mask` is False.
    leaf_mask: `[L]` bool, whether the slot holds a valid token.
    root_count: `[b]` int32, the number of valid tokens under each child of the
      root (in a tree of depth 0, whose root is a leaf, under each it would have).
      `node_count` tells those of every other node.
  """

  leaf_index: jax.Array
  leaf_mask: jax.Array
  root_count: jax.Array

  @property
  def num_leaves(self) -> int:
    """L = b**depth, the number of leaf slots, padding included."""
    return self.leaf_index.shape[-1]

  @property
  def branch_factor(self) -> int:
    """b, the number of children of an inner node."""
    return self.root_count.shape[-1]

  @property
  def depth(self) -> int:
    """The number of levels below the root."""
    return tree_depth(self.num_leaves, self.branch_factor)

  @property
  def num_valid(self) -> jax.Array:
    """`[]` int32, the number of valid tokens."""
    return jnp.sum(self.root_count, axis=-1)

  def node_count(self, level: int) -> jax.Array:
    """`[..., b**level]` int32: the valid tokens under each node of a level.

    Halving n tokens evenly, larger half first, again and again, deals them out
    to the nodes like cards: token t goes to the node whose index, its base-b
    digits reversed, is t mod b**level. So n alone tells all counts.

    >>> build_tree(jnp.ones((5, 1))).node_count(2).tolist()
    [2, 1, 1, 1]
    """
    nodes = self.branch_factor**level
    reversal = jnp.asarray(_digit_reversal(self.branch_factor, level))
    return (self.num_valid[..., None] - reversal + nodes - 1) // nodes


def tree_depth(num_tokens: int, branch_factor: int = 2) -> int:
  """The smallest depth with branch_factor**depth >= num_tokens.

  Raises:
    ValueError: if branch_factor is below 2.

  >>> tree_depth(1), tree_depth(8), tree_depth(9), tree_depth(9, 3)
  (0, 3, 4, 2)
  """
  if branch_factor < 2:
    raise ValueError(f"branch_factor must be at least 2, got {branch_factor}")
  depth = 0
  while branch_factor**depth < num_tokens:
    depth += 1
  return depth


def num_read_slots(num_tokens: int, branch_factor: int = 2, num_paths: int = 1) -> int:
  """The most nodes that one query reads: |S| = (b - 1) * depth + 1 along one path.

  Raises:
    ValueError: if branch_factor is below 2, or num_paths below 1.

  >>> num_read_slots(128), num_read_slots(128, num_paths=4), num_read_slots(8, 2, 8)
  (8, 24, 8)
  """
  check_num_paths(num_paths)
  kept, slots = 1, 0
  for _ in range(tree_depth(num_tokens, branch_factor)):
    children = kept * branch_factor
    kept = min(num_paths, children)
    slots += children - kept
  return slots + kept


def check_num_paths(num_paths: int) -> None:
  """Raises ValueError on a number of paths below 1."""
  if num_paths < 1:
    raise ValueError(f"num_paths must be at least 1, got {num_paths}")


def is_traced(*arrays: jax.Array | None) -> bool:
  """Whether any of the arrays is abstract, so that its values are not known."""
  return any(isinstance(x, jax.core.Tracer) for x in arrays)


def check_context(
  coords: jax.Array, mask: jax.Array | None = None, **features: jax.Array
) -> None:
  """Raises on a context that no system can read.

  Shapes and dtypes are always checked; values only where they are known, that
  is outside `jax.jit`, `jax.vmap` and `jax.grad`.

  Args:
    coords: `[..., N, C]` floating point.
    mask: `[..., N]` bool or None, True at valid tokens.
    **features: `[..., N, D]` floating point, by the name that an error gives.

  Raises:
    ValueError: if a shape or dtype is wrong, if N or C is 0, if a context has
      no valid token, or if a valid coordinate or feature is not finite.
  """
  if coords.ndim < 2 or 0 in coords.shape[-2:]:
    raise ValueError(
      "coords must be [..., N, C] with N >= 1 tokens and C >= 1 axes, got"
      f" shape {coords.shape}"
    )
  named = {"coords": coords} | features
  check_floating(**named)
  for name, x in named.items():
    if x.ndim < 2 or x.shape[:-1] != coords.shape[:-1]:
      raise ValueError(
        f"{name} must be {coords.shape[:-1]} + (D,) to match coords {coords.shape},"
        f" got shape {x.shape}"
      )
  if mask is not None:
    if mask.dtype != jnp.bool_:
      raise ValueError(f"mask must be bool, got dtype {mask.dtype}")
    if mask.shape != coords.shape[:-1]:
      raise ValueError(
        f"mask must be {coords.shape[:-1]} to match coords {coords.shape},"
        f" got shape {mask.shape}"
      )
  if is_traced(coords, mask, *features.values()):
    return
  valid = np.ones(coords.shape[:-1], bool) if mask is None else np.asarray(mask)
  empty = ~valid.any(-1)
  if empty.any():
    raise ValueError(
      "every context needs at least one valid token, but the mask is all"
      f" False in {int(empty.sum())} of {empty.size} contexts"
    )
  for name, x in named.items():
    bad = valid & ~np.isfinite(np.asarray(x, np.float32)).all(-1)
    if bad.any():
      raise ValueError(
        f"{name} must be finite at valid tokens, but {int(bad.sum())} of"
        f" {int(valid.sum())} hold NaN or infinity, the first at index"
        f" {tuple(int(i) for i in np.argwhere(bad)[0])}"
      )


def check_floating(**arrays: jax.Array) -> None:
  """Raises ValueError on an array that is not floating point, which it names."""
  for name, x in arrays.items():
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(f"{name} must be floating point, got dtype {x.dtype}")


def check_finite(**arrays: jax.Array) -> None:
  """Raises ValueError on an array that is not floating point, or not finite.

  Values are looked at only where they are known, as in `check_context`.
  """
  check_floating(**arrays)
  for name, x in arrays.items():
    if not is_traced(x) and not np.isfinite(np.asarray(x, np.float32)).all():
      raise ValueError(f"{name} must be finite, but some hold NaN or infinity")


def build_tree(
  coords: jax.Array,
  mask: jax.Array | None = None,
  *,
  branch_factor: int = 2,
  order: Order = "kd",
  axis: int = 0,
  rng: jax.Array | None = None,
) -> Tree:
  """Builds a balanced tree over the valid tokens of one context (Sec. 3.1).

  Every node is split into b parts whose numbers of valid tokens differ by at
  most one, the larger parts first; where a part begins depends on the counts
  alone. Ties in the sort key go by token index.

  Under a transformation a k-d tree is built by XLA. Outside, if the arrays are a
  CPU's, NumPy builds the same tree, faster and without compiling.

  Args:
    coords: `[N, C]` floating point, where each token lies.
    mask: `[N]` bool, True at valid tokens; None means all. What a masked token
      holds never matters.
    branch_factor: b >= 2.
    order: the heuristic. "kd": a true k-d tree, each node is cut across the
      axis along which its own tokens spread widest (the lowest such axis).
      "given": the order of the tokens. "axis": sorted by `axis`.
      "random_projection": sorted by the projection on one random direction.
      "random": shuffled, to see what an order is worth.
    axis: for order "axis", which coordinate, in [-C, C).
    rng: for the random orders, their key; consumed.

  Returns:
    A `Tree` with L = b**depth leaf slots, depth = `tree_depth(N, b)`.

  Raises:
    ValueError: if a shape, dtype or option is not as above; outside a
      transformation also if a valid coordinate is not finite, or if no token is
      valid. Under one, NaN counts as the largest coordinate.

  >>> tree = build_tree(jnp.array([[3.0], [1.0], [2.0]]))
  >>> tree.depth, tree.num_leaves, tree.leaf_index.tolist()
  (2, 4, [1, 2, 0, 0])
  >>> tree.leaf_mask.tolist()
  [True, True, True, False]
  """
  coords = jnp.asarray(coords)
  mask = None if mask is None else jnp.asarray(mask)
  if coords.ndim != 2:
    raise ValueError(
      f"coords must be [N, C], got shape {coords.shape}; batch with jax.vmap"
    )
  check_context(coords, mask)
  num_tokens, num_axes = coords.shape
  if not isinstance(branch_factor, int) or branch_factor < 2:
    raise ValueError(f"branch_factor must be an int >= 2, got {branch_factor!r}")
  if order not in ORDERS:
    raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
  if order == "axis" and not -num_axes <= axis < num_axes:
    raise ValueError(f"axis must be in [{-num_axes}, {num_axes}), got {axis}")

  b, depth = branch_factor, tree_depth(num_tokens, branch_factor)
  if jnp.finfo(coords.dtype).bits < 32:
    coords = coords.astype(jnp.float32)
  if mask is None:
    mask = jnp.ones(num_tokens, bool)
  if order == "kd" and num_axes > 1 and _on_host(coords, mask):
    return _build_on_host(np.asarray(coords), np.asarray(mask), b)
  mask = jax.lax.optimization_barrier(mask)  # else XLA sorts constants, compiling
  points = jnp.where(mask[:, None], coords, 0)
  if order == "axis":
    points = points[:, axis, None]
  elif order in ("random", "random_projection"):
    if rng is None:
      raise ValueError(f"order {order!r} needs rng, got None")
    if order == "random":
      place = jnp.maximum(jnp.cumsum(mask) - 1, 0)  # among the valid tokens alone
      points = jax.random.uniform(rng, (num_tokens, 1))[place]
    else:
      direction = jax.random.normal(rng, (num_axes,), points.dtype)
      points = (points @ direction)[:, None]

  count = jnp.sum(mask, dtype=jnp.int32)
  leaf_mask = jnp.asarray(_digit_reversal(b, depth)) < count
  if order == "given":
    ranking = jnp.argsort(~mask, stable=True)
  else:
    # Masked tokens are sorted as infinity: no valid one may be.
    largest = jnp.finfo(points.dtype).max
    points = jnp.nan_to_num(points, nan=largest, posinf=largest, neginf=-largest)
    ranking = jnp.stack([_sort_valid(x, mask) for x in points.T])
    ranking = _refine(ranking, points, leaf_mask, b)[0]
  rank = jnp.cumsum(leaf_mask, dtype=jnp.int32) - 1
  leaf_index = jnp.where(leaf_mask, ranking[jnp.maximum(rank, 0)], 0)
  return Tree(
    leaf_index=leaf_index.astype(jnp.int32),
    leaf_mask=leaf_mask,
    root_count=_root_count(count, b),
  )


def _digit_reversal(b: int, level: int) -> np.ndarray:
  """`[b**level]`: each node's index with its base-b digits reversed."""
  reversal = np.zeros(1, np.int32)
  for l in range(level):
    reversal = np.add.outer(reversal, b**l * np.arange(b, dtype=np.int32)).ravel()
  return reversal


def _root_count(count: typing.Any, b: int) -> typing.Any:
  """`[b]`: the valid tokens under each child of the root, the larger parts first."""
  return (count + np.arange(b, dtype=np.int32)[::-1]) // b


def _on_host(*arrays: jax.Array) -> bool:
  """Whether NumPy can read the arrays without a transfer, and knows their dtypes."""
  return not is_traced(*arrays) and all(
    x.dtype in (jnp.float32, jnp.bool_)
    and all(device.platform == "cpu" for device in x.devices())
    for x in arrays
  )


def _build_on_host(coords: np.ndarray, mask: np.ndarray, b: int) -> Tree:
  """`build_tree` of order "kd" in NumPy."""
  depth = tree_depth(len(coords), b)
  count = int(mask.sum())
  leaf_mask = _digit_reversal(b, depth) < count
  leaf_index = np.zeros(b**depth, np.int32)
  leaf_index[leaf_mask] = _split_on_host(coords, np.flatnonzero(mask), b)
  return Tree(
    leaf_index=jnp.asarray(leaf_index),
    leaf_mask=jnp.asarray(leaf_mask),
    root_count=jnp.asarray(_root_count(count, b), jnp.int32),
  )


def _split_on_host(coords: np.ndarray, tokens: np.ndarray, b: int) -> np.ndarray:
  """The tokens in the order of a k-d tree's leaves.

  A level is a table of its nodes' tokens, at most one of a row missing, at its
  end. A row is partitioned by a 64-bit key: the coordinate above, the token below.

  Args:
    coords: `[N, C]` float32.
    tokens: `[n]`, the valid ones.
    b: the branch factor.

  Returns:
    `[n]`.
  """
  missing = np.uint64(2**64 - 1)
  axes = [_sortable(x) for x in coords.T]
  rows = tokens.astype(np.uint32)[None]
  count = np.array([len(tokens)])
  while (width := rows.shape[1]) > 1:
    short = np.flatnonzero(count < width)
    best, widest = np.zeros_like(rows), np.full(len(rows), -np.inf, np.float32)
    for axis in axes:
      x = axis.take(rows, mode="clip")
      x[short, -1] = x[short, 0]
      columns = np.ascontiguousarray(x.T) if width < 32 else x.T  # NumPy's fast way
      with np.errstate(over="ignore"):
        spread = _unsortable(columns.max(axis=0)) - _unsortable(columns.min(axis=0))
      wider = spread > widest
      best = np.where(wider[:, None], x, best)
      widest = np.where(wider, spread, widest)
    keys = best.astype(np.uint64) << np.uint64(32) | rows
    child_width = -(-width // b)
    children = np.full((len(rows), b, child_width), missing)
    child_count = np.empty((len(rows), b), np.int64)
    for size in (width, width - 1):
      chosen = slice(None) if np.all(count == size) else count == size
      sizes = [-(-(size - part) // b) for part in range(b)]
      starts = np.cumsum([0, *sizes])
      part_keys = keys[chosen, :size]
      end = size
      for start in starts[-2:0:-1]:  # from the right, each within the rest
        if start < end:
          part_keys[:, :end].partition(start, axis=1)
          end = start
      for part, (start, n) in enumerate(zip(starts, sizes, strict=False)):
        children[chosen, part, :n] = part_keys[:, start : start + n]
      child_count[chosen] = sizes
    rows = children.reshape(-1, child_width).astype(np.uint32)
    count = child_count.ravel()
  return rows[count > 0, 0]


def _sortable(x: np.ndarray) -> np.ndarray:
  """uint32 in the order of the float32, -0.0 being 0.0."""
  bits = (x + np.float32(0)).view(np.uint32)
  return np.where(bits >> 31, ~bits, bits | np.uint32(2**31))


def _unsortable(bits: np.ndarray) -> np.ndarray:
  """The float32 that `_sortable` made the bits of."""
  return np.where(bits >> 31, bits & np.uint32(2**31 - 1), ~bits).view(np.float32)


def _sort_valid(x: jax.Array, mask: jax.Array) -> jax.Array:
  """`[N]` int32: the tokens by ascending x, ties by index, masked ones last."""
  return jnp.argsort(jnp.where(mask, x, jnp.inf), stable=True).astype(jnp.int32)


def _refine(
  ranking: jax.Array, points: jax.Array, leaf_mask: jax.Array, b: int
) -> jax.Array:
  """Orders the tokens as a k-d tree does, level by level.

  A level looks at each node's tokens in the order of every axis, finds the
  axis of the widest spread from the first and the last of them, and moves the
  tokens of each part together, keeping their order within it (a stable
  partition). All levels have the same shapes, so one scan serves them.

  Args:
    ranking: `[C, N]` int32, the tokens sorted along each axis, masked ones last.
    points: `[N, C]`, the axes.
    leaf_mask: `[L]` bool.
    b: the branch factor.

  Returns:
    `[C, N]` int32: in every row, position p holds the token of the p-th valid
    leaf.
  """
  num_axes, num_tokens = ranking.shape
  depth = tree_depth(leaf_mask.shape[0], b)
  if num_axes == 1 or depth == 0:
    return ranking
  position = jnp.arange(num_tokens)
  valid = position < jnp.sum(leaf_mask)
  slot = jnp.argsort(~leaf_mask, stable=True)[:num_tokens]
  before = jnp.pad(jnp.cumsum(leaf_mask), (1, 0))  # valid leaves before a slot
  axes = jnp.arange(num_axes)[:, None]
  part_dtype = jnp.int8 if b < 128 else jnp.int32  # small ones stay in cache

  def split(ranking, part_width):
    """Splits all nodes of a level, whose children are `part_width` leaves wide."""
    child = slot // part_width
    node = child // b
    start, end = before[node * (b * part_width)], before[(node + 1) * (b * part_width)]
    low = points[ranking[:, start], axes]
    high = points[ranking[:, jnp.maximum(end - 1, 0)], axes]
    widest = jnp.argmax(high - low, axis=0)
    part_of_token = jnp.zeros(num_tokens, part_dtype)
    part_of_token = part_of_token.at[ranking[widest, position]].set(
      (child - node * b).astype(part_dtype), unique_indices=True
    )

    def partition(order):
      part = part_of_token[order].astype(jnp.int32)
      # How many of the node's tokens, up to here, go to each part but the last.
      joins = (part[:, None] == jnp.arange(b - 1)).astype(jnp.int32)
      total = jnp.pad(jax.lax.associative_scan(jnp.add, joins), ((1, 0), (0, 0)))
      earlier = total[:-1] - total[start]
      last = position - start - jnp.sum(earlier, axis=1)
      earlier = jnp.concatenate([earlier, last[:, None]], axis=1)
      rank = jnp.sum(jnp.where(part[:, None] == jnp.arange(b), earlier, 0), axis=1)
      target = before[(node * b + part) * part_width] + rank
      target = jnp.where(valid, target, position)
      return jnp.zeros_like(order).at[target].set(order, unique_indices=True)

    return jax.vmap(partition)(ranking), None

  part_widths = jnp.asarray([b**level for level in range(depth)][::-1])
  return jax.lax.scan(split, ranking, part_widths)[0]


def aggregate(
  aggregate_fn: AggregateFn, tree: Tree, tokens: jax.Array, *, in_chunks: bool = True
) -> tuple[jax.Array, ...]:
  """Summarises every subtree in its inner node, from the leaves up (Sec. 3.1).

  value(node) = aggregate_fn(values of its children), with the same function
  at every node of every level. A node with one valid child takes that child's
  value unchanged, so that padding a context does not change its tree. The
  function sees zeros in place of masked children and must be finite there. Levels
  of more than `CHUNK` nodes are aggregated by `jax.lax.map` over chunks of them.

  Args:
    aggregate_fn: `(children [..., b, D], mask [..., b]) -> [..., D]`.
    tree: a `Tree` over N tokens.
    tokens: `[N, D]` floating point.
    in_chunks: whether large levels are taken in chunks. A function that draws random
      numbers, as dropout does, would draw the same for all nodes of such a level.

  Returns:
    depth + 1 arrays, `levels[l]` of shape `[b**l, D]`, from the root (l = 0)
    to the leaves in leaf order. Nodes without a valid token hold zeros.

  Raises:
    ValueError: if tokens is not `[N, D]` with N that fits the tree, or not floating
      point.

  >>> mean = lambda x, m: x.sum(-2) / jnp.maximum(m.sum(-1), 1)[..., None]
  >>> tree = build_tree(jnp.array([[0.0], [1.0], [2.0]]))
  >>> [level[:, 0].tolist() for level in aggregate(mean, tree, jnp.eye(3)[:, :1])]
  [[0.25], [0.5, 0.0], [1.0, 0.0, 0.0, 0.0]]
  """
  tokens = jnp.asarray(tokens)
  b, depth = tree.branch_factor, tree.depth
  if tokens.ndim != 2 or tree_depth(tokens.shape[0], b) != depth:
    raise ValueError(
      f"tokens must be [N, D] with N of depth {depth} at branch factor {b},"
      f" got shape {tokens.shape}"
    )
  check_floating(tokens=tokens)

  def aggregate_or_pass(children, mask):
    summary = aggregate_fn(children, mask)
    only_child = jnp.sum(children, axis=-2)  # masked children are zeros
    several = jnp.sum(mask, axis=-1, keepdims=True) > 1
    return jnp.where(several, summary, only_child).astype(children.dtype)

  leaf_index = jnp.asarray(tree.leaf_index)
  level = jnp.where(tree.leaf_mask[:, None], tokens[leaf_index], 0)
  levels = [level]
  for child_level in range(depth, 0, -1):
    mask = tree.node_count(child_level).reshape(-1, b) > 0
    children = level.reshape(*mask.shape, -1)
    if in_chunks and len(mask) > CHUNK:
      level = jax.lax.map(
        lambda node: aggregate_or_pass(*node), (children, mask), batch_size=CHUNK
      )
    else:
      level = aggregate_or_pass(children, mask)
    levels.append(level)
  return tuple(reversed(levels))


def subtree_mass(weights: jax.Array, branch_factor: int) -> tuple[jax.Array, ...]:
  """Sums a weight over leaves under every node of every level.

  Args:
    weights: `[..., L]` with L a power of the branch factor, in leaf order.
    branch_factor: b.

  Returns:
    depth + 1 arrays, `[..., b**l]` from the root to the leaves.

  Raises:
    ValueError: if L is not a power of b, or b below 2.

  >>> [m.tolist() for m in subtree_mass(jnp.array([1.0, 2.0, 3.0, 4.0]), 2)]
  [[10.0], [3.0, 7.0], [1.0, 2.0, 3.0, 4.0]]
  """
  num_leaves = weights.shape[-1]
  depth = tree_depth(num_leaves, branch_factor)
  if branch_factor**depth != num_leaves:
    raise ValueError(
      f"weights must be [..., L] with L a power of {branch_factor}, got shape"
      f" {weights.shape}"
    )
  levels = [weights]
  for _ in range(depth):
    folded = levels[-1].reshape(*weights.shape[:-1], -1, branch_factor)
    levels.append(jnp.sum(folded, axis=-1))
  return tuple(reversed(levels))
