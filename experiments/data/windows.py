"""Points of a map, of any number of axes, and the windows and points that training draws from them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.batch import Batch
import tca_jax

MIN_CONTEXT = 16
NUM_TARGETS = 128  # per window
# The size of a window is measured on the first points: on so many, or on this fraction.
_NUM_REFERENCE_POINTS = 2048
_REFERENCE_FRACTION = 1 / 256
_MANY_POINTS = 2**18  # above, points are drawn from candidates; see `with_blocks`
_BLOCK = 256  # leaves of a tree in one block
# The candidates of one window are the points of so many blocks, or of so many slots for
# each point to draw.
_NUM_BLOCKS = 256
_SLOTS_PER_POINT = 100


@chex.dataclass(frozen=True)
class Blocks:
  """The points of a large map, grouped by location.

  Attributes:
    index: `[blocks, slots]` int32, the points of each block; the number of points, which
      is no point's index, in empty slots.
    low: `[blocks, C]`, the smallest coordinates of each block's points.
    high: `[blocks, C]`, the largest.
  """

  index: jax.Array
  low: jax.Array
  high: jax.Array


@chex.dataclass(frozen=True)
class Points:
  """Points of a map.

  Attributes:
    coords: `[n, C]` float32; of a map, east and north.
    values: `[n, E]` float32, standardised values; see `elevation.ValueMap`.
    blocks: the points by location, from which windows of a large map are drawn fast;
      None: points are drawn from all of them.
  """

  coords: jax.Array
  values: jax.Array
  blocks: Blocks | None = None

  def take_first(self, count: int | None) -> "Points":
    """Returns the first `count` points, without blocks; None: all points."""
    return Points(coords=self.coords[:count], values=self.values[:count])


def with_blocks(points: Points) -> Points:
  """Groups points by location if they are many; returns few points as they are.

  The blocks are the nodes of one level of a k-d tree. From 1.6 million points, a batch
  of windows is drawn 20 times as fast as without blocks, and as fast as from `fault`.
  """
  num_points = len(points.coords)
  if num_points <= _MANY_POINTS:
    return points
  tree = tca_jax.build_tree(points.coords)
  index = np.where(tree.leaf_mask, tree.leaf_index, num_points).reshape(-1, _BLOCK)
  coords = np.asarray(points.coords)[np.minimum(index, num_points - 1)]
  empty = (index == num_points)[..., None]
  blocks = Blocks(
    index=jnp.asarray(index, jnp.int32),
    low=jnp.asarray(np.where(empty, np.inf, coords).min(axis=1), jnp.float32),
    high=jnp.asarray(np.where(empty, -np.inf, coords).max(axis=1), jnp.float32),
  )
  return Points(coords=points.coords, values=points.values, blocks=blocks)


def sample(
  rng: jax.Array,
  train: Points,
  held_out: Points | None,
  batch_size: int,
  num_context: int,
  whole_map: jax.typing.ArrayLike = 0.0,
  densest: float = 0.0,
  full_context: float = 0.0,
  num_targets: int = NUM_TARGETS,
) -> Batch:
  """Draws windows of a map, and the context and target points of each.

  A window is a square around a training point, or a cube; see `draw_windows`. Each has
  num_targets targets and a number of context points that is uniform on [16, num_context]. All points of a
  window are distinct.

  Args:
    rng: a random key, consumed.
    train: the `Points` from which contexts are drawn.
    held_out: the `Points` from which targets are drawn; None: train.
    batch_size: B.
    num_context: N, the maximum number of context points, at least 16.
    whole_map: the probability that a window is enlarged to the whole map.
    densest: the probability that a window is of the smallest size, whose context can
      be as dense as the map; see `draw_windows`.
    full_context: the probability that a context has num_context points.
    num_targets: M.

  Returns:
    A `Batch`.
  """
  window_rng, size_rng, context_rng, target_rng, whole_rng = jax.random.split(rng, 5)
  min_share = min((num_context + num_targets) / len(train.coords), 1)
  centre, half_width = draw_windows(
    window_rng, train.coords, batch_size, min_share, densest
  )
  whole = jax.random.bernoulli(whole_rng, jnp.float32(whole_map), (batch_size,))
  half_width = jnp.where(whole, jnp.inf, half_width)
  if held_out is None:
    chosen = draw_points(
      context_rng, train, centre, half_width, num_targets + num_context
    )
    target, context = jnp.split(chosen, [num_targets], axis=1)
    held_out = train
  else:
    target = draw_points(target_rng, held_out, centre, half_width, num_targets)
    context = draw_points(context_rng, train, centre, half_width, num_context)
  count = jax.random.randint(
    size_rng, (batch_size, 1), MIN_CONTEXT, num_context + 1, jnp.int32
  )
  full_rng = jax.random.fold_in(size_rng, 0)
  full = jax.random.bernoulli(full_rng, jnp.float32(full_context), (batch_size, 1))
  count = jnp.where(full, num_context, count)
  return Batch(
    coords=train.coords[context],
    values=train.values[context],
    mask=jnp.arange(num_context) < count,
    query_coords=held_out.coords[target],
    targets=held_out.values[target],
    query_mask=jnp.ones((batch_size, num_targets), bool),
  )


def draw_windows(
  rng: jax.Array,
  coords: jax.Array,
  batch_size: int,
  min_share: float,
  smallest: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Draws square windows around points, of all sizes.

  The share of points inside a window is log-uniform on (min_share, 1]. A context is
  therefore a sparse sample of a large window, and may contain every point of a small
  one. The share is measured on the first 2,048 points, or on the first 1/256 of the
  points if these are more.

  Args:
    rng: a random key, consumed.
    coords: `[n, C]` in random order.
    batch_size: B.
    min_share: the smallest share.
    smallest: the probability that a window has exactly the smallest share.

  Returns:
    The centres, `[B, C]`, and half the sides, `[B]`.
  """
  centre_rng, share_rng = jax.random.split(rng)
  centre = coords[
    jax.random.randint(centre_rng, (batch_size,), 0, len(coords), jnp.int32)
  ]
  power = jax.random.uniform(share_rng, (batch_size,), jnp.float32) / (1 - smallest)
  share = min_share ** jnp.minimum(power, 1)
  num_reference = max(_NUM_REFERENCE_POINTS, int(_REFERENCE_FRACTION * len(coords)))
  reference = coords[:num_reference]
  distances = jnp.sort(_distance(reference, reference, centre))
  count = distances.shape[1]
  rank = jnp.minimum(jnp.int32(share * count), count - 1)
  return centre, jnp.take_along_axis(distances, rank[:, None], axis=1)[:, 0]


def draw_points(
  rng: jax.Array,
  points: Points,
  centre: jax.Array,
  half_width: jax.Array,
  count: int,
) -> jax.Array:
  """Draws distinct points of windows, in random order.

  If a window contains fewer than `count` points, all of them come first, followed by
  the nearest points outside of it.

  Args:
    rng: a random key, consumed.
    points: n points, in random order.
    centre: `[B, C]`, the centres of the windows.
    half_width: `[B]`, half the sides of the windows.
    count: the number of points to draw for each window.

  Returns:
    The indices of the points, `[B, count]` int32.
  """
  coords, candidates = points.coords, None
  if points.blocks is not None:
    candidates = _candidates(
      jax.random.fold_in(rng, 0),
      points.blocks,
      len(coords),
      centre,
      half_width,
      count,
    )
    coords = coords.at[candidates].get(mode="fill", fill_value=jnp.inf)
  distance = _distance(coords, coords, centre)
  noise = jax.random.uniform(rng, distance.shape, jnp.float32)
  rank = jnp.where(distance <= half_width[:, None], noise, 1 + distance)
  chosen = jax.lax.top_k(-rank, count)[1]
  if candidates is not None:
    chosen = jnp.take_along_axis(candidates, chosen, axis=1)
  # Without the barrier XLA sorts all points if a caller slices the result.
  return jax.lax.optimization_barrier(chosen)


def _candidates(
  rng: jax.Array,
  blocks: Blocks,
  num_points: int,
  centre: jax.Array,
  half_width: jax.Array,
  count: int,
) -> jax.Array:
  """Selects points from which those of a window are drawn, `[B, candidates]` int32.

  If a few blocks cover a window, their points are the candidates. Otherwise the window
  has so many points that a random part of all points has enough of them: a run of
  points, as points are in random order.
  """
  total, slots = blocks.index.shape
  num_blocks = min(max(_NUM_BLOCKS, _SLOTS_PER_POINT * count // slots), total)
  distance = _distance(blocks.low, blocks.high, centre)
  num_inside = jnp.sum(distance <= half_width[:, None], axis=1, keepdims=True)
  nearest = jax.lax.top_k(-distance, num_blocks)[1]
  near = blocks.index[nearest].reshape(len(centre), -1)
  start = jax.random.randint(rng, (len(centre), 1), 0, num_points, jnp.int32)
  step = jnp.arange(near.shape[1])
  run = jnp.where(step < num_points, (start + step) % num_points, num_points)
  return jnp.where(num_inside <= num_blocks, near, run)


def _distance(low: jax.Array, high: jax.Array, centre: jax.Array) -> jax.Array:
  """Computes distances of boxes in the maximum norm, whose balls are squares.

  Args:
    low: `[n, C]`, the smallest coordinates of the boxes, or `[B, n, C]` for other boxes
      for each centre.
    high: the largest, of the same shape. A point is a box with low = high.
    centre: `[B, C]`.

  Returns:
    `[B, n]`, below 0 inside a box.
  """
  # One array per axis: a CPU is slow at trailing axes of size two.
  by_axis = (
    jnp.maximum(low[..., i] - centre[:, i, None], centre[:, i, None] - high[..., i])
    for i in range(centre.shape[-1])
  )
  return functools.reduce(jnp.maximum, by_axis)
