"""Trees over the tokens of a context: construction and bottom-up aggregation.

A tree is a permutation of the tokens into the leaf slots of a perfect b-ary tree.
The shapes of its arrays depend only on the number of tokens N and the branch factor
b. One compilation therefore serves all contexts of one size, whatever their masks.

The number of valid tokens under each node follows from the total number of valid
tokens in closed form, see `Tree.node_count`. The permutation is a sort for the orders
along a line. For a k-d tree it is a sort along every axis, and then one stable
partition per level. Nothing here is learned and nothing is jitted: compose these
functions with `jax.jit` and `jax.vmap`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np

from tca_jax import kdtree_host
from tca_jax.checks import as_array
from tca_jax.checks import check_context
from tca_jax.checks import check_finite  # noqa: F401
from tca_jax.checks import check_floating
from tca_jax.checks import check_key
from tca_jax.checks import is_traced
from tca_jax.masking import merge_children
from tca_jax.node_counts import digit_reversal
from tca_jax.node_counts import even_counts
from tca_jax.node_counts import parents_of_several
from tca_jax.node_counts import split_count
from tca_jax.varying import vary_like

__all__ = [
  "ORDERS",
  "AggregateFn",
  "Order",
  "Tree",
  "aggregate",
  "build_tree",
  "make_finite",
  "subtree_mass",
  "tree_depth",
]

Order = typing.Literal["kd", "given", "axis", "random_projection", "random"]
ORDERS: tuple[str, ...] = typing.get_args(Order)

# Maps children `[..., b, D]` and their mask `[..., b]` to a summary `[..., D]`.
AggregateFn = Callable[..., jax.Array]

CHUNK = 2048  # the maximum number of nodes that are aggregated in one call


@chex.dataclass(frozen=True)
class Tree:
  """A perfect b-ary tree over N tokens, all arrays of fixed shape.

  Node i of a level has the children i * b, ..., i * b + b - 1 on the next level.
  There are no static fields: depth and branch factor follow from shapes. A batch of
  trees (`jax.vmap` of `build_tree`) has leading axes on every field.

  Attributes:
    leaf_index: `[L]` int32, the token in each leaf slot; N - 1 where `leaf_mask` is
      False. Its maximum is therefore N - 1, which tells the number of tokens.
    leaf_mask: `[L]` bool, True where the slot has a valid token.
    root_count: `[b]` int32, the number of valid tokens under each child of the root.
      A tree of depth 0 has the counts that the children would have. See `node_count`
      for other nodes.
  """

  leaf_index: jax.Array
  leaf_mask: jax.Array
  root_count: jax.Array

  @property
  def is_even(self) -> bool:
    """Whether the parts of every node differ by at most one valid token."""
    return True

  @property
  def num_leaves(self) -> int:
    """L = b**depth, the number of leaf slots, including padding."""
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
    return jnp.sum(self.root_count, axis=-1, dtype=jnp.int32)

  def node_count(self, level: int) -> jax.Array:
    """Counts the valid tokens under each node of a level.

    Args:
      level: the level, in [0, depth].

    Returns:
      `[..., b**level]` int32.

    >>> build_tree(jnp.ones((5, 1))).node_count(2).tolist()
    [2, 1, 1, 1]
    """
    return even_counts(self.num_valid, self.branch_factor, level)


def tree_depth(num_tokens: int, branch_factor: int = 2) -> int:
  """Returns the smallest depth with branch_factor**depth >= num_tokens.

  Args:
    num_tokens: N.
    branch_factor: b, at least 2.

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

  Every node is split into b parts whose numbers of valid tokens differ by at most
  one, with larger parts first. Ties of the sort key are broken by token index.

  Under a transformation, XLA builds the tree. Outside, NumPy builds a k-d tree of
  arrays on a CPU: the result is the same, but it is faster and needs no compilation.

  Args:
    coords: `[N, C]` floating point, the location of each token.
    mask: `[N]` bool, True at valid tokens; None means that all are valid. The
      coordinates of masked tokens are ignored.
    branch_factor: b >= 2.
    order: the order of the tokens in the leaves. "kd": a k-d tree; each node is split
      along the axis in which its tokens have the widest range (the first such axis).
      "given": the order of the arguments. "axis": sorted by the coordinate `axis`.
      "random_projection": sorted by the projection onto one random direction.
      "random": a random permutation (ablation).
    axis: the coordinate that order "axis" sorts by, in [-C, C).
    rng: the key of the random orders, which consume it.

  Returns:
    A `Tree` with L = b**depth leaf slots, depth = `tree_depth(N, b)`.

  Raises:
    ValueError: if a shape, a dtype or an option is wrong; outside a transformation
      also if a valid coordinate is not finite, or if no token is valid. Under a
      transformation, NaN is sorted as the largest coordinate.

  >>> tree = build_tree(jnp.array([[3.0], [1.0], [2.0]]))
  >>> tree.depth, tree.num_leaves, tree.leaf_index.tolist()
  (2, 4, [1, 2, 0, 2])
  >>> tree.leaf_mask.tolist()
  [True, True, True, False]
  """
  coords = as_array("coords", coords)
  mask = None if mask is None else as_array("mask", mask)
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
  # Without the barrier, XLA sorts a constant mask at compile time, which is slow.
  mask = jax.lax.optimization_barrier(mask)
  points = jnp.where(mask[:, None], coords, 0)
  if order == "axis":
    points = points[:, axis, None]
  elif order in ("random", "random_projection"):
    if rng is None:
      raise ValueError(f"order {order!r} needs rng, got None")
    check_key(rng)
    if order == "random":
      rank = jnp.maximum(jnp.cumsum(mask) - 1, 0)  # among valid tokens
      points = jax.random.uniform(rng, (num_tokens, 1), jnp.float32)[rank]
    else:
      direction = jax.random.normal(rng, (num_axes,), points.dtype)
      points = (points @ direction)[:, None]

  count = jnp.sum(mask, dtype=jnp.int32)
  leaf_mask = jnp.asarray(digit_reversal(b, depth)) < count
  if order == "given":
    ranking = jnp.argsort(~mask, stable=True)
  else:
    # Masked tokens are sorted as infinity, so valid ones must be finite.
    points = make_finite(points)
    ranking = jnp.stack([_sort_valid(x, mask) for x in points.T])
    ranking = _refine(ranking, points, leaf_mask, b)[0]
  rank = jnp.cumsum(leaf_mask, dtype=jnp.int32) - 1
  leaf_index = jnp.where(leaf_mask, ranking[jnp.maximum(rank, 0)], num_tokens - 1)
  return Tree(
    leaf_index=leaf_index.astype(jnp.int32),
    leaf_mask=leaf_mask,
    root_count=split_count(count, b),
  )


def make_finite(points: jax.Array) -> jax.Array:
  """Replaces NaN and infinite coordinates by the largest finite ones."""
  largest = jnp.finfo(points.dtype).max
  return jnp.nan_to_num(points, nan=largest, posinf=largest, neginf=-largest)


def _on_host(*arrays: jax.Array) -> bool:
  """Returns whether NumPy can read the arrays without a transfer or conversion."""
  return not is_traced(*arrays) and all(
    x.dtype in (jnp.float32, jnp.bool_)
    and all(device.platform == "cpu" for device in x.devices())
    for x in arrays
  )


def _build_on_host(coords: np.ndarray, mask: np.ndarray, b: int) -> Tree:
  """Builds a k-d tree in NumPy; equals `build_tree` with order "kd"."""
  depth = tree_depth(len(coords), b)
  count = int(mask.sum())
  leaf_mask = digit_reversal(b, depth) < count
  leaf_index = np.full(b**depth, len(coords) - 1, np.int32)
  leaf_index[leaf_mask] = kdtree_host.kd_permutation(coords, np.flatnonzero(mask), b)
  return Tree(
    leaf_index=jnp.asarray(leaf_index),
    leaf_mask=jnp.asarray(leaf_mask),
    root_count=jnp.asarray(split_count(count, b), jnp.int32),
  )


def _sort_valid(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Sorts tokens by x, then index, `[N]` int32; masked tokens come last."""
  return jnp.argsort(jnp.where(mask, x, jnp.inf), stable=True).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="b")
def _refine(
  ranking: jax.Array, points: jax.Array, leaf_mask: jax.Array, b: int
) -> jax.Array:
  """Reorders sorted tokens into the leaf order of a k-d tree, level by level.

  The tokens of each node are kept sorted along every axis. At each level, the first
  and the last token of a node give its range along each axis. The order along the
  widest axis assigns every token to a part. A stable partition then makes the tokens
  of each part contiguous and keeps them sorted along every axis. All levels have the
  same shapes, so one scan serves them.

  Args:
    ranking: `[C, N]` int32, the tokens sorted along each axis, masked ones last.
    points: `[N, C]`, the coordinates.
    leaf_mask: `[L]` bool.
    b: the branch factor.

  Returns:
    `[C, N]` int32; in every row, entry p is the token of the p-th valid leaf.
  """
  num_axes, num_tokens = ranking.shape
  depth = tree_depth(leaf_mask.shape[0], b)
  if num_axes == 1 or depth == 0:
    return ranking
  position = jnp.arange(num_tokens, dtype=jnp.int32)
  parts = jnp.arange(b, dtype=jnp.int32)
  valid = position < jnp.sum(leaf_mask, dtype=jnp.int32)
  slot = jnp.argsort(~leaf_mask, stable=True)[:num_tokens].astype(jnp.int32)
  # The number of valid leaves before each slot.
  before = jnp.pad(jnp.cumsum(leaf_mask, dtype=jnp.int32), (1, 0))
  axes = jnp.arange(num_axes, dtype=jnp.int32)[:, None]
  part_dtype = jnp.int8 if b < 128 else jnp.int32  # int8 stays in cache

  def split(ranking, part_width):
    """Splits all nodes of a level into parts of `part_width` leaf slots."""
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
      # For each part but the last: how many earlier tokens of the node it takes.
      joins = (part[:, None] == parts[None, :-1]).astype(jnp.int32)
      total = jnp.pad(jax.lax.associative_scan(jnp.add, joins), ((1, 0), (0, 0)))
      earlier = total[:-1] - total[start]
      last = position - start - jnp.sum(earlier, axis=1, dtype=jnp.int32)
      earlier = jnp.concatenate([earlier, last[:, None]], axis=1)
      own = jnp.where(part[:, None] == parts[None], earlier, 0)
      rank = jnp.sum(own, axis=1, dtype=jnp.int32)
      target = before[(node * b + part) * part_width] + rank
      target = jnp.where(valid, target, position)
      return jnp.zeros_like(order).at[target].set(order, unique_indices=True)

    return jax.vmap(partition)(ranking), None

  part_widths = b ** np.arange(depth, dtype=np.int32)[::-1]
  ranking = vary_like(ranking, points, leaf_mask)
  return jax.lax.scan(split, ranking, part_widths)[0]


def aggregate(
  aggregate_fn: AggregateFn,
  tree: Tree,
  tokens: jax.Array,
  *,
  node_features: Sequence[jax.Array] | None = None,
  in_chunks: bool = True,
) -> tuple[jax.Array, ...]:
  """Computes the value of every node from the leaves up (Sec. 3.1).

  value(node) = aggregate_fn(values of its children), with the same function at every
  node of every level. A node with one valid child takes the value of that child, so
  that padding a context does not change its tree. The function receives 0 for masked
  children and must be finite there. Levels of more than `CHUNK` nodes are aggregated
  in chunks by `jax.lax.map`.

  Args:
    aggregate_fn: `(children [..., b, D], mask [..., b]) -> [..., D]`.
    tree: a `Tree` over N tokens.
    tokens: `[N, D]` floating point.
    node_features: depth levels of `[b**l, G]` from the children of the root (l = 1) to
      the leaves; the function then receives those of the children, `[..., b, G]`, as
      a third argument.
    in_chunks: whether large levels are aggregated in chunks. Use False for a function
      that draws random numbers, such as dropout: all chunks would draw the same.

  Returns:
    depth + 1 arrays, `levels[l]` of shape `[b**l, D]`, from the root (l = 0) to the
    leaves in leaf order. Nodes without a valid token are 0.

  Raises:
    ValueError: if tokens is not `[N, D]`, if N does not fit the depth of the tree, or if
      tokens is not floating point; outside a transformation also if the tree has
      another number of tokens.

  >>> from tca_jax.masking import masked_mean
  >>> mean = lambda x, m: masked_mean(x, m[..., None], axis=-2)
  >>> tree = build_tree(jnp.array([[0.0], [1.0], [2.0]]))
  >>> [level[:, 0].tolist() for level in aggregate(mean, tree, jnp.eye(3)[:, :1])]
  [[0.25], [0.5, 0.0], [1.0, 0.0, 0.0, 0.0]]
  """
  tokens = as_array("tokens", tokens)
  b, depth = tree.branch_factor, tree.depth
  if tokens.ndim != 2 or tree_depth(tokens.shape[0], b) != depth:
    raise ValueError(
      f"tokens must be [N, D] with N of depth {depth} at branch factor {b},"
      f" got shape {tokens.shape}"
    )
  check_floating(tokens=tokens)
  if not is_traced(tree.leaf_index):
    num_tokens = int(np.max(np.asarray(tree.leaf_index))) + 1
    if num_tokens != len(tokens):
      raise ValueError(
        f"tokens must be those of the tree, [{num_tokens}, D], got shape {tokens.shape}"
      )

  def merge_all(inputs: list[jax.Array]) -> jax.Array:
    merge = functools.partial(merge_children, aggregate_fn)
    if in_chunks and len(inputs[0]) > CHUNK:
      return jax.lax.map(lambda node: merge(*node), inputs, batch_size=CHUNK)
    return merge(*inputs)

  leaf_index = jnp.asarray(tree.leaf_index)
  level = jnp.where(tree.leaf_mask[:, None], tokens[leaf_index], 0)
  levels = [level]
  for child_level in range(depth, 0, -1):
    mask = tree.node_count(child_level).reshape(-1, b) > 0
    inputs = [level.reshape(*mask.shape, tokens.shape[1]), mask]
    if node_features is not None:
      inputs.append(node_features[child_level - 1].reshape(*mask.shape, -1))
    if child_level < depth or not tree.is_even or len(tokens) == len(level):
      level = merge_all(inputs)
    else:  # many parents of leaves have one child
      several = parents_of_several(len(tokens), b, depth)
      merged = merge_all([x[several] for x in inputs])
      level = jnp.sum(inputs[0], axis=-2).at[several].set(merged, unique_indices=True)
    levels.append(level)
  return tuple(reversed(levels))


def subtree_mass(weights: jax.Array, branch_factor: int) -> tuple[jax.Array, ...]:
  """Sums weights of leaves under every node of every level.

  Args:
    weights: `[..., L]` in leaf order; L is a power of the branch factor.
    branch_factor: b.

  Returns:
    depth + 1 arrays, `[..., b**l]` from the root to the leaves.

  Raises:
    ValueError: if L is not a power of b, or b below 2.

  >>> [m.tolist() for m in subtree_mass(jnp.array([1.0, 2.0, 3.0, 4.0]), 2)]
  [[10.0], [3.0, 7.0], [1.0, 2.0, 3.0, 4.0]]
  """
  weights = as_array("weights", weights)
  num_leaves = weights.shape[-1]
  depth = tree_depth(num_leaves, branch_factor)
  if branch_factor**depth != num_leaves:
    raise ValueError(
      f"weights must be [..., L] with L a power of {branch_factor}, got shape"
      f" {weights.shape}"
    )
  levels = [weights]
  for _ in range(depth):
    # On a CPU, sums of slices are faster than sums along a short last axis.
    children = [levels[-1][..., i::branch_factor] for i in range(branch_factor)]
    levels.append(functools.reduce(jnp.add, children))
  return tuple(reversed(levels))
