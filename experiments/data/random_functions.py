"""Random functions of several inputs, observed as an optimiser observes them.

A function is one of `random_surfaces.draw_surface` in the unit cube of some of the axes;
the coordinates of the other axes are 0. So one model of six axes can read functions of
one to six inputs.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from experiments.common import acquisition
from experiments.common.batch import Batch
from experiments.common.draws import chance
from experiments.common.draws import log_uniform
from experiments.common.draws import uniform
from experiments.data import random_surfaces

# Of a process on the cube of one axis; they grow with the cube's diagonal.
_LENGTHS = (0.1, 3.0)
_WEIGHTS = (0.2, 1.0)  # of the axes: some matter more than others
_NUM_SEARCHES = 3  # one after another
_NUM_BEST = 4  # points around which the next search looks


def sample(
  rng: jax.Array,
  batch_size: int,
  num_context: int,
  num_targets: int,
  full_context: float,
  num_axes: int,
  min_axes: int = 1,
) -> Batch:
  """Draws functions, and the context and target points of each.

  Some points are uniform in the cube. The others come from searches: each is near one of
  the best points of the search before, at a distance of random scale. The share of the
  searches differs between examples. An optimiser that minimises a function leaves such
  points. Half of the functions are observed with noise.

  Args:
    rng: a random key, consumed.
    batch_size: B, the number of functions.
    num_context: N, the largest number of context points, at least 8.
    num_targets: M.
    full_context: as in `random_surfaces.sample`.
    num_axes: C, the largest number of inputs of a function.
    min_axes: the smallest number of inputs of a function, at least 1.

  Returns:
    A `Batch` with E = 1. Coordinates are in [0, 1], and the values of an example have
    mean 0 and standard deviation 1. Targets are observations as those of the context.
  """
  draw = functools.partial(
    _draw,
    num_context=num_context,
    num_targets=num_targets,
    full_context=full_context,
    num_axes=num_axes,
    min_axes=min_axes,
  )
  return jax.vmap(draw)(jax.random.split(rng, batch_size))


def _draw(
  rng: jax.Array,
  num_context: int,
  num_targets: int,
  full_context: float,
  num_axes: int,
  min_axes: int,
) -> Batch:
  """Draws one function; as `sample`, without batch axes."""
  *count_rngs, rng = jax.random.split(rng, 3)
  count = random_surfaces.draw_count(count_rngs, num_context, full_context)
  axes_rng, weight_rng, place_rng, function_rng, sign_rng, noise_rng = jax.random.split(
    rng, 6
  )
  num_used = jax.random.randint(axes_rng, (), min_axes, num_axes + 1)
  used = jnp.arange(num_axes) < num_used
  weights = used * log_uniform(weight_rng, *_WEIGHTS, (num_axes,))
  weights /= jnp.sqrt(jnp.sum(used))  # the cube's diagonal has the length 1 or less
  sign = 2 * chance(sign_rng, 0.5) - 1  # valleys differ from hills

  def function(coords: jax.Array) -> jax.Array:
    surface = random_surfaces.draw_surface(function_rng, coords * weights, _LENGTHS)
    return sign * random_surfaces.standardised(surface)

  known = jnp.arange(num_targets + num_context) - num_targets
  known = (known >= 0) & (known < count)
  coords = _search(place_rng, function, known, used)
  values = function(coords)
  noise = random_surfaces.draw_noise(noise_rng, values)
  noise_only_rng = jax.random.fold_in(noise_rng, 1)
  values = random_surfaces.standardised(values + noise * chance(noise_only_rng, 0.5))
  return random_surfaces.to_batch(coords, values, count, num_targets)


def _search(
  rng: jax.Array,
  function: Callable[[jax.Array], jax.Array],
  known: jax.Array,
  used: jax.Array,
) -> jax.Array:
  """Draws the points of an optimiser in several searches.

  Args:
    rng: a random key, consumed.
    function: from `[n, C]` to `[n]`, which the optimiser minimises.
    known: `[n]` bool, False at targets, whose values guide no search.
    used: `[C]` bool, the inputs of the function.

  Returns:
    `[n, C]`, in a random order.
  """
  start_rng, share_rng, member_rng, turn_rng, *rngs = jax.random.split(
    rng, 4 + _NUM_SEARCHES
  )
  size = len(known)
  coords = uniform(start_rng, 0, 1, (size, len(used))) * used
  share = jnp.maximum(uniform(share_rng, -0.3, 0.9), 0)
  turn = jax.random.randint(turn_rng, (size,), 0, _NUM_SEARCHES)
  turn = jnp.where(chance(member_rng, share, (size,)), turn, -1)
  for i, search_rng in enumerate(rngs):
    rank_rng, near_rng = jax.random.split(search_rng)
    values = jnp.where(known & (turn < i), function(coords), jnp.inf)
    best = jax.lax.top_k(-values, min(_NUM_BEST, size))[1]
    rank = jax.random.randint(rank_rng, (size,), 0, len(best))
    found = acquisition.near(near_rng, coords[best[rank]], used)
    coords = jnp.where((turn == i)[:, None], found, coords)
  return coords
