"""Trees that are split over devices: distribution of tokens, and aggregation.

The functions are called inside `jax.shard_map`. At first, every device has an equal part
of a context's tokens, in their order. At the end it has those of its own subtree. No
device has more than its first tokens, its last tokens and one other device's tokens at
the same time.

The tree equals that of `build_tree`. Each of the upper levels is split as there: along
the axis in which a node's tokens have the widest range, into parts of equal size, where
ties are broken by token index. The token at a cut is found by bisection: all devices
count how many of their tokens come before a candidate. Only counts are sent.
"""

from collections.abc import Callable
from collections.abc import Sequence
import typing

import jax
import jax.numpy as jnp

from tca_jax import covariance_fit
from tca_jax import statistics as statistics_lib
from tca_jax import tree as tree_lib
from tca_jax.node_counts import even_counts
from tca_jax.node_counts import split_count
from tca_jax.sharded_tree import ShardedTree
from tca_jax.statistics import Domain
from tca_jax.statistics import NodeStatistics
from tca_jax.tree import Tree

__all__ = [
  "ORDERS",
  "aggregate",
  "build_sharded_tree",
  "log_likelihoods",
  "node_statistics",
]

# In a tree of these orders, the subtrees are trees of the same order.
ORDERS: tuple[tree_lib.Order, ...] = ("kd", "given", "axis")


def build_sharded_tree(
  coords: jax.Array,
  mask: jax.Array,
  arrays: Sequence[jax.Array],
  *,
  axis_name: str,
  branch_factor: int = 2,
  order: tree_lib.Order = "kd",
  axis: int = 0,
) -> tuple[ShardedTree, list[jax.Array]]:
  """Builds a tree over the tokens of all devices, and sends each token to its subtree.

  Args:
    coords: `[n, C]` floating point, the location of each of this device's n = N / P
      tokens.
    mask: `[n]` bool, True at valid tokens. The coordinates of others are ignored.
    arrays: `[n, ...]` each, more properties of the tokens.
    axis_name: the mesh axis over which the tokens are split. It must have b**k devices.
    branch_factor: b.
    order: see `build_tree`; one of `ORDERS`.
    axis: see `build_tree`.

  Returns:
    The tree, and coords and arrays of the tokens in this device's leaf slots, `[L / P,
    ...]`; they are 0 where the slot has no valid token.

  Raises:
    ValueError: if the number of devices is not a power of the branch factor, or if the
      order cannot be split.
  """
  b, num_devices = branch_factor, jax.lax.axis_size(axis_name)
  num_levels = tree_lib.tree_depth(num_devices, b)
  if b**num_levels != num_devices:
    raise ValueError(
      f"mesh axis {axis_name!r} must have a power of branch_factor={b} devices, got"
      f" {num_devices}"
    )
  if order not in ORDERS:
    raise ValueError(
      f"order must be one of {ORDERS} in a tree that is split over devices, got"
      f" {order!r}"
    )
  if jnp.finfo(coords.dtype).bits < 32:
    coords = coords.astype(jnp.float32)
  num_tokens = len(coords)
  first = jax.lax.axis_index(axis_name) * num_tokens
  number = first + jnp.arange(num_tokens, dtype=jnp.int32)
  count = jax.lax.psum(jnp.sum(mask, dtype=jnp.int32), axis_name)
  points = jax.lax.stop_gradient(jnp.where(mask[:, None], coords, 0))
  points = tree_lib.make_finite(points)
  if order == "given":
    points = jnp.zeros_like(points[:, :1])
  elif order == "axis":
    points = points[:, axis, None]

  owner = jnp.zeros(num_tokens, jnp.int32)
  root_count = split_count(count, b)
  for level in range(num_levels):
    sizes = even_counts(count, b, level + 1).reshape(-1, b)
    owner = owner * b + _part_of_token(points, number, mask, owner, sizes, axis_name)
  tokens = _send(jnp.where(mask, owner, -1), (number, coords, *arrays), axis_name)
  own_count = even_counts(count, b, num_levels)[jax.lax.axis_index(axis_name)]
  own_mask = jnp.arange(num_tokens, dtype=jnp.int32) < own_count
  own = tree_lib.build_tree(
    tokens[1], own_mask, branch_factor=b, order=order, axis=axis
  )

  def in_leaf_order(x: jax.Array) -> jax.Array:
    valid = jnp.expand_dims(own.leaf_mask, range(1, x.ndim))
    return jnp.where(valid, x[own.leaf_index], jnp.zeros((), x.dtype))

  number, *in_leaves = [in_leaf_order(x) for x in tokens]
  tree = ShardedTree(
    leaf_index=jnp.where(own.leaf_mask, number, num_devices * num_tokens - 1),
    leaf_mask=own.leaf_mask,
    root_count=root_count,
    axis_name=axis_name,
  )
  return tree, in_leaves


def _part_of_token(
  points: jax.Array,
  number: jax.Array,
  mask: jax.Array,
  node: jax.Array,
  sizes: jax.Array,
  axis_name: str,
) -> jax.Array:
  """Splits the nodes of a level.

  Args:
    points: `[n, C]`, finite.
    number: `[n]` int32, the index of each token in the whole context.
    mask: `[n]` bool.
    node: `[n]` int32, the node of each token, in [0, G).
    sizes: `[G, b]` int32, the sizes of the parts of each node.
    axis_name: the mesh axis.

  Returns:
    `[n]` int32, the part of each token, in [0, b).
  """
  num_nodes = len(sizes)
  segment = jnp.where(mask, node, num_nodes)  # masked tokens are left out

  def reduce(segments: Callable, x: jax.Array) -> jax.Array:
    return segments(x, segment, num_segments=num_nodes + 1)[:num_nodes]

  low = jax.lax.pmin(reduce(jax.ops.segment_min, points), axis_name)
  high = jax.lax.pmax(reduce(jax.ops.segment_max, points), axis_name)
  widest = jnp.argmax(high - low, axis=1)
  key = _sortable(jnp.take_along_axis(points, widest[node][:, None], axis=1))
  number = number[:, None]

  # How many tokens of the node come before each cut; the last of them is sought.
  before = jnp.cumsum(sizes, axis=1, dtype=jnp.int32)[:, :-1]

  def last_before(
    comes_before: Callable[[jax.Array], jax.Array], low: int, high: int, dtype
  ) -> jax.Array:
    """The smallest limits such that enough tokens come before, `[G, b - 1]`."""

    def halve(_, bounds):
      low, high = bounds
      middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
      chosen = comes_before(middle[node]).astype(jnp.int32)
      enough = jax.lax.psum(reduce(jax.ops.segment_sum, chosen), axis_name) >= before
      return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    bounds = (jnp.full(before.shape, x, dtype) for x in (low, high))
    return jax.lax.fori_loop(0, (high - low).bit_length(), halve, tuple(bounds))[1]

  limits = jnp.iinfo(key.dtype)
  cut = last_before(lambda x: key <= x, int(limits.min), int(limits.max), key.dtype)
  cut = cut[node]

  def joins(last: jax.Array) -> jax.Array:
    return (key < cut) | ((key == cut) & (number <= last))

  last_number = len(node) * jax.lax.axis_size(axis_name) - 1
  last = last_before(joins, 0, last_number, jnp.int32)[node]
  return jnp.sum(~joins(last), axis=1, dtype=jnp.int32)


def _sortable(x: jax.Array) -> jax.Array:
  """Maps floating point numbers to integers of the same order; -0.0 as 0.0."""
  x = jnp.where(x == 0, jnp.zeros((), x.dtype), x)
  integer = jnp.int32 if x.dtype.itemsize == 4 else jnp.int64
  bits = jax.lax.bitcast_convert_type(x, integer)
  return jnp.where(bits < 0, bits ^ jnp.iinfo(integer).max, bits)


def _send(owner: jax.Array, arrays: typing.Any, axis_name: str) -> list[jax.Array]:
  """Sends each token to its owner; the tokens keep their order.

  The tokens of every device go once around all devices, and each device takes its own.

  Args:
    owner: `[n]` int32, the device of each token; -1 if it is not sent.
    arrays: `[n, ...]` each. No device may own more than n tokens.
    axis_name: the mesh axis.

  Returns:
    `[n, ...]` each; 0 at the end, where a device owns less than n tokens.
  """
  num_devices, num_tokens = jax.lax.axis_size(axis_name), len(owner)
  device = jax.lax.axis_index(axis_name)
  sent = jnp.zeros(num_devices, jnp.int32)
  sent = sent.at[jnp.where(owner < 0, num_devices, owner)].add(1, mode="drop")
  counts = jax.lax.all_to_all(sent, axis_name, 0, 0, tiled=True)  # from each device
  starts = jnp.cumsum(counts, dtype=jnp.int32) - counts

  def take(taken, travelling, source):
    owner, arrays = travelling
    own = owner == device
    position = starts[source] + jnp.cumsum(own, dtype=jnp.int32) - 1
    position = jnp.where(own, position, num_tokens)
    return [
      x.at[position].set(new, mode="drop") for x, new in zip(taken, arrays, strict=True)
    ]

  def step(carry, distance):
    taken, travelling = carry
    ring = [(i, (i + 1) % num_devices) for i in range(num_devices)]
    travelling = jax.lax.ppermute(travelling, axis_name, ring)
    return (
      take(taken, travelling, (device - distance) % num_devices),
      travelling,
    ), None

  travelling = (owner, list(arrays))
  taken = take([jnp.zeros_like(x) for x in arrays], travelling, device)
  distances = jnp.arange(1, num_devices, dtype=jnp.int32)
  return jax.lax.scan(step, (taken, travelling), distances)[0][0]


def aggregate(
  aggregate_fn: tree_lib.AggregateFn,
  tree: Tree,
  tokens: jax.Array,
  *,
  node_features: Sequence[jax.Array] | None = None,
  in_chunks: bool = True,
) -> tuple[jax.Array, ...]:
  """Computes the value of every node that this device has; see `tree.aggregate`.

  Args:
    aggregate_fn: see `tree.aggregate`.
    tree: any tree.
    tokens: `[N, D]`; for a `ShardedTree` the tokens in this device's leaf slots.
    node_features: see `tree.aggregate`, for the nodes that this device has.
    in_chunks: see `tree.aggregate`.

  Returns:
    depth + 1 arrays with as many rows as `sharded_tree.level_sizes`.
  """

  def part(tree, tokens, features):
    return tree_lib.aggregate(
      aggregate_fn, tree, tokens, node_features=features, in_chunks=in_chunks
    )

  if not isinstance(tree, ShardedTree):
    return part(tree, tokens, node_features)
  upper_features = own_features = None
  if node_features is not None:
    k = tree.split_level
    upper_features, own_features = node_features[:k], node_features[k:]
  own = part(tree.own_tree, tokens, own_features)
  upper = part(tree.upper_tree, tree.gather(own[0]), upper_features)
  return *upper, *own[1:]


def node_statistics(
  tree: Tree, coords: jax.Array, values: jax.Array, *, keep_border: bool = False
) -> NodeStatistics:
  """Computes the statistics of all nodes that this device has.

  Args:
    tree: any tree.
    coords: `[N, C]`; for a `ShardedTree` those in this device's leaf slots.
    values: `[N, E]`, likewise.
    keep_border: see `statistics.node_statistics`.

  Returns:
    `NodeStatistics`, see `statistics.node_statistics`.
  """
  if not isinstance(tree, ShardedTree):
    return statistics_lib.node_statistics(tree, coords, values, keep_border=keep_border)
  domain = _measure_domain(tree, coords, values)
  own = statistics_lib.node_statistics(
    tree.own_tree, coords, values, domain, keep_border=keep_border
  ).levels
  upper = [tree.gather(own[0])]
  for _ in range(tree.split_level):
    upper.append(statistics_lib.merge_siblings(upper[-1], tree.branch_factor))
  domain = statistics_lib.domain_of_root(domain, upper[-1])
  return NodeStatistics(domain=domain, levels=(*reversed(upper), *own[1:]))


def log_likelihoods(
  tree: Tree, statistics: NodeStatistics, noise: jax.Array | None
) -> jax.Array | None:
  """Computes how well covariance functions fit the tokens of all devices.

  Args:
    tree: any tree.
    statistics: the `NodeStatistics` that this device has.
    noise: `[]` float32, positive, the variance of the noise; None means no evidence.

  Returns:
    `[K]`, see `covariance_fit.log_likelihoods`; None without noise.
  """
  if noise is None:
    return None
  leaves, domain = statistics.levels[-1], statistics.domain
  value = leaves.mean + domain.value_origin[None]
  tokens = leaves.centroid, value, leaves.count > 0
  if not isinstance(tree, ShardedTree):
    return covariance_fit.log_likelihoods(*tokens, noise)
  # The first tokens of a device come after the last ones of the device before.
  ends = [(i, i + 1) for i in range(tree.num_devices - 1)]
  before = jax.tree.map(
    lambda x: jax.lax.ppermute(x, tree.axis_name, ends),
    covariance_fit.last_tokens(*tokens),
  )
  own = covariance_fit.log_likelihoods(*tokens, noise, before)
  return jax.lax.psum(own, tree.axis_name)


def _measure_domain(tree: ShardedTree, coords: jax.Array, values: jax.Array) -> Domain:
  """The domain of the tokens of all devices, from the ends of their ranges."""
  valid, some = tree.leaf_mask[:, None], jnp.any(tree.leaf_mask)

  def ends(x: jax.Array) -> jax.Array:
    """`[2 P, width]`; with `jax.lax.psum`, which unlike `pmin` has a gradient."""
    x = x.astype(jnp.float32)
    low = jnp.min(jnp.where(valid, x, jnp.inf), axis=0)
    high = jnp.max(jnp.where(valid, x, -jnp.inf), axis=0)
    own = jnp.where(some, jnp.stack([low, high]), 0)
    return tree.gather(own[None]).reshape(-1, x.shape[-1])

  found = jnp.repeat(tree.upper_tree.leaf_mask, 2)
  return statistics_lib.measure_domain(ends(coords), ends(values), found)
