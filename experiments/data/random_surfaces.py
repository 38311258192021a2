"""Random surfaces of many kinds, and scattered observations of them.

A surface is a function of two coordinates. Its kinds are chosen so that a model that has
learned to interpolate them can interpolate a table that it has never seen: smooth and
rough, with ridges, jumps, plateaus and trends, with noise of any size, and observed at
places that are scattered, clustered, along lines or on a grid.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp

from experiments.common.batch import Batch
from experiments.common.draws import chance
from experiments.common.draws import log_uniform
from experiments.common.draws import uniform

MIN_CONTEXT = 8
_NUM_WAVES = 256  # in the sum that approximates a Gaussian process
_LENGTHS = (0.02, 3.0)  # of a process, where the extent of the points is 1
_SMOOTHNESS = (0.3, 8.0)  # nu of the Matern covariance; a large one is close to smooth
_NOISE = (1e-3, 0.5)  # standard deviation, relative to that of the surface
_LARGEST_PHASE = 1e4  # of a wave; float32 knows larger ones badly
_NUM_CENTRES = 12  # of clusters, or of lines


def sample(
  rng: jax.Array,
  batch_size: int,
  num_context: int,
  num_targets: int,
  full_context: float,
) -> Batch:
  """Draws surfaces, and the context and target points of each.

  Args:
    rng: a random key, consumed.
    batch_size: B, the number of surfaces.
    num_context: N, the largest number of context points, at least 8.
    num_targets: M.
    full_context: the probability that a context has num_context points; the number is
      otherwise log-uniform on [8, num_context].

  Returns:
    A `Batch` with C = 2 and E = 1. Coordinates are within [-1/2, 1/2], and the values of
    an example have mean 0 and standard deviation 1. Targets are observations as those of
    the context, with noise.
  """
  draw = functools.partial(
    _draw,
    num_context=num_context,
    num_targets=num_targets,
    full_context=full_context,
  )
  return jax.vmap(draw)(jax.random.split(rng, batch_size))


def _draw(
  rng: jax.Array, num_context: int, num_targets: int, full_context: float
) -> Batch:
  """Draws one surface; as `sample`, without batch axes."""
  *count_rngs, place_rng, surface_rng, noise_rng = jax.random.split(rng, 5)
  count = draw_count(count_rngs, num_context, full_context)
  coords = _places(place_rng, count, num_context, num_targets)
  values = standardised(draw_surface(surface_rng, coords))
  values = standardised(values + draw_noise(noise_rng, values))
  return to_batch(coords, values, count, num_targets)


def draw_count(
  rngs: Sequence[jax.Array], num_context: int, full_context: float
) -> jax.Array:
  """Draws the number of valid context points, `[]` int32, see `sample`, by two keys."""
  count_rng, full_rng = rngs
  count = jnp.exp(uniform(count_rng, jnp.log(MIN_CONTEXT), jnp.log(num_context + 1)))
  return jnp.where(chance(full_rng, full_context), num_context, jnp.int32(count))


def to_batch(
  coords: jax.Array, values: jax.Array, count: jax.Array, num_targets: int
) -> Batch:
  """Makes an example, without batch axis, from targets followed by a context.

  Args:
    coords: `[M + N, C]`.
    values: `[M + N]`.
    count: `[]` int32, the number of context points that are valid, the first ones.
    num_targets: M.
  """
  targets, context = jnp.split(values[:, None], [num_targets])
  query_coords, coords = jnp.split(coords, [num_targets])
  return Batch(
    coords=coords,
    values=context,
    mask=jnp.arange(len(coords)) < count,
    query_coords=query_coords,
    targets=targets,
    query_mask=jnp.ones(num_targets, bool),
  )


# --- Values.


def draw_process(
  rng: jax.Array, coords: jax.Array, length: jax.Array, smoothness: jax.Array
) -> jax.Array:
  """Draws a Gaussian process with a Matern covariance and variance 1.

  The process is a sum of 256 cosine waves of random amplitude, phase and frequency
  (random Fourier features). Frequencies have the spectral density of the covariance: a
  multivariate Student distribution with 2 * smoothness degrees of freedom.

  Args:
    rng: a random key, consumed.
    coords: `[n, C]`.
    length: `[]`, the length scale.
    smoothness: `[]`, nu of the covariance; 1/2 is rough, and a large one smooth.

  Returns:
    `[n]`.
  """
  frequency_rng, tail_rng, phase_rng, amplitude_rng = jax.random.split(rng, 4)
  frequency = jax.random.normal(frequency_rng, (coords.shape[-1], _NUM_WAVES))
  tail = jax.random.gamma(tail_rng, smoothness, (_NUM_WAVES,)) / smoothness
  frequency /= length * jnp.sqrt(tail + 1e-12)
  phase = uniform(phase_rng, 0, 2 * jnp.pi, (_NUM_WAVES,))
  for x, along_axis in zip(coords.T, frequency, strict=True):
    # No matrix product: a GPU would round its factors.
    turns = jnp.clip(along_axis, -_LARGEST_PHASE, _LARGEST_PHASE)
    phase = phase + x[:, None] * turns
  amplitude = jax.random.normal(amplitude_rng, (_NUM_WAVES,))
  return jnp.sum(jnp.cos(phase) * amplitude, axis=-1) * (2 / _NUM_WAVES) ** 0.5


def draw_surface(
  rng: jax.Array, coords: jax.Array, lengths: tuple[float, float] = _LENGTHS
) -> jax.Array:
  """Draws the values of a surface of a random kind, without noise.

  The same key draws the same surface at other coordinates, up to the standardisation of
  its values before a trend is added.

  Args:
    rng: a random key, consumed.
    coords: `[n, C]`.
    lengths: the smallest and the largest length scale of its processes.

  Returns:
    `[n]`.
  """
  process_rng, kind_rng, size_rng, trend_rng, slope_rng = jax.random.split(rng, 5)

  def process(rng: jax.Array) -> jax.Array:
    length_rng, smoothness_rng, rng = jax.random.split(rng, 3)
    length = log_uniform(length_rng, *lengths)
    return draw_process(rng, coords, length, log_uniform(smoothness_rng, *_SMOOTHNESS))

  f, g = jax.vmap(process)(jax.random.split(process_rng))
  size = uniform(size_rng, 0, 1)
  kinds = [
    f,  # one process
    f,
    f + size * g,  # two processes
    f + size * g,
    f * jnp.exp((0.5 + size) * g),  # calm and wild regions
    jnp.exp((0.3 + size) * f),  # positive and skewed
    jnp.tanh((1 + 4 * size) * f),  # two levels, with slopes between them
    jnp.maximum(f, g),  # ridges and valleys
    f + (0.5 + 3 * size) * jnp.sign(g),  # jumps
    jnp.round(f * (1 + 2 * size)) + 0.1 * g,  # plateaus
  ]
  kind = jax.random.randint(kind_rng, (), 0, len(kinds))
  values = jnp.stack(kinds)[kind]
  slope = 3 * jax.random.normal(slope_rng, coords.shape[1:]) * chance(trend_rng, 0.3)
  return standardised(values) + jnp.sum(coords * slope, axis=-1)


def draw_noise(rng: jax.Array, values: jax.Array) -> jax.Array:
  """Draws the errors of observations, `[n]`, of values with a standard deviation of 1."""
  size_rng, none_rng, tail_rng, error_rng, round_rng, step_rng = jax.random.split(
    rng, 6
  )
  size = log_uniform(size_rng, *_NOISE) * chance(none_rng, 0.85)
  normal_rng, square_rng = jax.random.split(error_rng)
  error = jax.random.normal(normal_rng, values.shape)
  # With heavy tails: a Student distribution with 4 degrees of freedom.
  square = -jnp.log(uniform(square_rng, 1e-6, 1, (2, *values.shape)))
  tails = jnp.sqrt(2 / jnp.sum(square, axis=0))
  error = size * error * jnp.where(chance(tail_rng, 0.2), tails, 1)
  # Values of tables are often rounded.
  step = log_uniform(step_rng, 1e-3, 0.3)
  rounded = step * jnp.round((values + error) / step) - values
  return jnp.where(chance(round_rng, 0.15), rounded, error)


def standardised(values: jax.Array) -> jax.Array:
  """Shifts and scales values to mean 0 and standard deviation 1."""
  return (values - jnp.mean(values)) / jnp.maximum(jnp.std(values), 1e-6)


# --- Places.


def _places(
  rng: jax.Array, count: jax.Array, num_context: int, num_targets: int
) -> jax.Array:
  """Draws the places of targets, and then of the context.

  Args:
    rng: a random key, consumed.
    count: `[]` int32, the number of valid context points.
    num_context: N.
    num_targets: M.

  Returns:
    `[M + N, 2]`; the valid ones, M + count, are within [-1/2, 1/2].
  """
  kind_rng, aside_rng, aside_place_rng, *rngs = jax.random.split(rng, 8)
  total = num_targets + num_context
  is_target = jnp.arange(total) < num_targets
  used = jnp.arange(total) < num_targets + count
  aside = chance(aside_rng, 0.3)  # targets are uniform, wherever the context is
  layouts = jnp.stack(
    [
      uniform(rngs[0], 0, 1, (total, 2)),
      _dense_corner(rngs[1], total),
      _clusters(rngs[2], total),
      _lines(rngs[3], total),
      _grid(rngs[4], total, count + jnp.where(aside, 0, num_targets), is_target, aside),
    ]
  )
  kind = jax.random.randint(kind_rng, (), 0, len(layouts))
  places = layouts[kind]
  # The extent becomes 1, as that of a table.
  settled = (used & ~(is_target & aside))[:, None]
  low = jnp.min(jnp.where(settled, places, jnp.inf), axis=0)
  high = jnp.max(jnp.where(settled, places, -jnp.inf), axis=0)
  extent = jnp.maximum(jnp.max(high - low), 1e-6)
  places = (places - (low + high) / 2) / extent
  sides = (high - low) / extent
  anywhere = sides * uniform(aside_place_rng, -0.5, 0.5, (total, 2))
  places = jnp.where((is_target & aside)[:, None], anywhere, places)
  return jnp.clip(places, -0.5, 0.5)


def _dense_corner(rng: jax.Array, total: int) -> jax.Array:
  """Places that are denser towards one corner, `[n, 2]`."""
  power_rng, rng = jax.random.split(rng)
  power = uniform(power_rng, 1, 3, (2,))
  return uniform(rng, 0, 1, (total, 2)) ** power


def _clusters(rng: jax.Array, total: int) -> jax.Array:
  """Places in clusters of different sizes, and some between them, `[n, 2]`."""
  centre_rng, size_rng, chosen_rng, rng, stray_rng, place_rng = jax.random.split(rng, 6)
  centres = uniform(centre_rng, 0, 1, (_NUM_CENTRES, 2))
  sizes = log_uniform(size_rng, 0.01, 0.3, (_NUM_CENTRES, 1))
  chosen = _choose_centres(chosen_rng, total)
  places = centres[chosen] + sizes[chosen] * jax.random.normal(rng, (total, 2))
  stray = jax.random.bernoulli(stray_rng, 0.15, (total, 1))
  return jnp.where(stray, uniform(place_rng, 0, 1, (total, 2)), places)


def _lines(rng: jax.Array, total: int) -> jax.Array:
  """Places along lines, such as roads or the tracks of ships, `[n, 2]`."""
  end_rng, chosen_rng, along_rng, width_rng, rng = jax.random.split(rng, 5)
  ends = uniform(end_rng, 0, 1, (2, _NUM_CENTRES, 2))
  chosen = _choose_centres(chosen_rng, total)
  along = uniform(along_rng, 0, 1, (total, 1))
  width = log_uniform(width_rng, 1e-3, 0.05)
  middle = (1 - along) * ends[0, chosen] + along * ends[1, chosen]
  return middle + width * jax.random.normal(rng, (total, 2))


def _choose_centres(rng: jax.Array, total: int) -> jax.Array:
  """For each place one of a random number of centres, `[n]` int32."""
  number_rng, rng = jax.random.split(rng)
  number = jax.random.randint(number_rng, (), 1, _NUM_CENTRES + 1)
  return jax.random.randint(rng, (total,), 0, number)


def _grid(
  rng: jax.Array,
  total: int,
  count: jax.Array,
  is_target: jax.Array,
  aside: jax.Array,
) -> jax.Array:
  """Places on a square grid that just has room for them, some of it with jitter.

  Args:
    rng: a random key, consumed.
    total: n.
    count: `[]` int32, the number of places that the grid needs.
    is_target: `[n]` bool, the places of targets.
    aside: `[]` bool, whether targets need no place.

  Returns:
    `[n, 2]`, in a random order.
  """
  order_rng, jitter_rng, size_rng, rng = jax.random.split(rng, 4)
  cells = int((total**0.5) + 2) ** 2
  side = jnp.ceil(jnp.sqrt(jnp.float32(count)))
  order = uniform(order_rng, 0, 1, (cells,))
  order = jnp.argsort(jnp.where(jnp.arange(cells) < side**2, order, 2))
  # With targets aside, the first cells are those of the context.
  first = jnp.where(aside, jnp.sum(is_target), 0)
  cell = order[jnp.maximum(jnp.arange(total) - first, 0)].astype(jnp.float32)
  row = jnp.floor(cell / side)
  places = jnp.stack([cell - side * row, row], axis=-1) / side
  jitter = uniform(size_rng, 0, 1) * chance(jitter_rng, 0.5)
  return places + jitter / side * uniform(rng, 0, 1, (total, 2))
