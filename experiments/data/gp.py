"""Functions drawn from Gaussian processes (Sec. 4.2), and their exact posterior."""

import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.batch import Batch

Kernel = typing.Literal["rbf", "matern52"]
KERNELS: tuple[str, ...] = typing.get_args(Kernel)
Sizes = typing.Literal["example", "batch"]
SIZES: tuple[str, ...] = typing.get_args(Sizes)
MAX_POINTS = 50  # context and targets together are fewer
MIN_POINTS = 3
MAX_CONTEXT = MAX_POINTS - MIN_POINTS - 1
NOISE = 0.02  # standard deviation of the observation noise

# The shapes (context slots, target slots) to which batches are padded. One shape would
# waste slots, as small contexts have most targets; few shapes keep compilation short.
SHAPES = tuple(
  (n, MAX_POINTS - 1 - first) for first, n in ((3, 16), (17, 32), (33, 46))
)


@chex.dataclass(frozen=True)
class Process:
  """Hyper-parameters of the processes from which a batch was drawn.

  Attributes:
    length_scale: `[B]`.
    scale: `[B]`, the standard deviation of function values.
  """

  length_scale: jax.Array | np.ndarray
  scale: jax.Array | np.ndarray


def smallest_context(shape: tuple[int, int]) -> int:
  """Returns the smallest number of context points that is padded to a shape."""
  return MAX_POINTS - 1 - shape[1]


def draw_shape(seed: tuple[int, ...]) -> tuple[int, int]:
  """Draws the shape of a batch, by a context size that is uniform on [3, 47).

  The shape is drawn by NumPy, because a compiled function needs it before it runs.

  Args:
    seed: integers that seed NumPy's generator.

  Returns:
    One of `SHAPES`.
  """
  num_context = np.random.default_rng(seed).integers(MIN_POINTS, MAX_CONTEXT + 1)
  return next(shape for shape in SHAPES if num_context <= shape[0])


def sample(
  rng: jax.Array,
  batch_size: int,
  shape: tuple[int, int],
  kernel: Kernel,
  sizes: Sizes,
) -> tuple[Batch, Process]:
  """Draws functions, and the context and target points of each.

  The number of context points, num_ctx, is uniform on the sizes that are padded to the
  shape. x is uniform on [-2, 2), the length scale on [0.1, 0.6) and the scale on
  [0.1, 1). Observations have noise of standard deviation 0.02. Context and targets are
  each sorted by x.

  Args:
    rng: a random key, consumed.
    batch_size: B.
    shape: one of `SHAPES`, (N, M).
    kernel: the kernel of the process.
    sizes: "batch": all examples share one num_ctx and one number of targets, which is
      uniform on [3, 50 - num_ctx), as published. "example": each example has its own
      num_ctx and 49 - num_ctx targets, the maximum, at the same cost.

  Returns:
    A `Batch` with C = 1 and E = 1, and the `Process` of the examples.

  Raises:
    ValueError: if kernel or sizes is unknown.
  """
  if sizes not in SIZES:
    raise ValueError(f"sizes must be one of {SIZES}, got {sizes!r}")
  context_rng, target_rng, x_rng, process_rng, y_rng = jax.random.split(rng, 5)
  draws = (1 if sizes == "batch" else batch_size,)
  num_context = jax.random.randint(
    context_rng, draws, smallest_context(shape), shape[0] + 1, jnp.int32
  )
  num_targets = MAX_POINTS - 1 - num_context
  if sizes == "batch":
    num_targets = jax.random.randint(
      target_rng, draws, MIN_POINTS, num_targets + 1, jnp.int32
    )
  x, masks = [], []
  for points_rng, slots, count in zip(
    jax.random.split(x_rng), shape, (num_context, num_targets), strict=True
  ):
    mask = jnp.broadcast_to(jnp.arange(slots) < count[:, None], (batch_size, slots))
    drawn = jax.random.uniform(
      points_rng, (batch_size, slots), jnp.float32, minval=-2, maxval=2
    )
    order = jnp.argsort(jnp.where(mask, drawn, jnp.inf))
    x.append(jnp.take_along_axis(drawn, order, axis=1))
    masks.append(mask)
  low = jnp.array([[0.1], [0.1]], jnp.float32)
  high = jnp.array([[0.6], [1.0]], jnp.float32)
  length_scale, scale = jax.random.uniform(
    process_rng, (2, batch_size), jnp.float32, minval=low, maxval=high
  )
  process = Process(length_scale=length_scale, scale=scale)
  points = jnp.concatenate(x, axis=1)
  covariance = covariances(points, points, process, kernel, jnp)
  covariance += NOISE**2 * jnp.eye(points.shape[1], dtype=jnp.float32)
  standard_normal = jax.random.normal(y_rng, points.shape, jnp.float32)
  y = jnp.einsum("bij,bj->bi", jnp.linalg.cholesky(covariance), standard_normal)
  y = jnp.split(y, [shape[0]], axis=1)
  return Batch(
    coords=x[0][..., None],
    values=y[0][..., None],
    mask=masks[0],
    query_coords=x[1][..., None],
    targets=y[1][..., None],
    query_mask=masks[1],
  ), process


def covariances(
  a: typing.Any, b: typing.Any, process: Process, kernel: Kernel, xp: typing.Any
) -> typing.Any:
  """Computes the covariances of function values, without observation noise.

  With r = |a - b| / length_scale, the covariance is scale^2 * k(r), where k(r) is
  exp(-r^2 / 2) for "rbf", and (1 + s + s^2 / 3) * exp(-s) with s = sqrt(5) * r for
  "matern52".

  Args:
    a: `[B, n]`, values of x.
    b: `[B, m]`, values of x.
    process: the `Process`.
    kernel: "rbf" or "matern52".
    xp: `jax.numpy`, or NumPy for float64 arrays.

  Returns:
    `[B, n, m]`.

  Raises:
    ValueError: if kernel is unknown.
  """
  distance = xp.abs(a[:, :, None] - b[:, None])
  scaled_distance = distance / process.length_scale[:, None, None]
  if kernel == "rbf":
    correlation = xp.exp(-(scaled_distance**2) / 2)
  elif kernel == "matern52":
    scaled_distance = 5**0.5 * scaled_distance
    correlation = 1 + scaled_distance + scaled_distance**2 / 3
    correlation = correlation * xp.exp(-scaled_distance)
  else:
    raise ValueError(f"kernel must be one of {KERNELS}, got {kernel!r}")
  return process.scale[:, None, None] ** 2 * correlation


def predictive(
  batch: Batch, process: Process, kernel: Kernel
) -> tuple[np.ndarray, np.ndarray]:
  """Computes the exact posterior of each target, observation noise included.

  The posterior knows the hyper-parameters: no model predicts better on average.

  Args:
    batch: a `Batch` of `sample`.
    process: the `Process` of its examples.
    kernel: the kernel of the process.

  Returns:
    The mean and the standard deviation, `[B, M]` float64 each.
  """
  x, y, mask, query = (
    np.asarray(array, np.float64)
    for array in (
      batch.coords[..., 0],
      batch.values[..., 0],
      batch.mask,
      batch.query_coords[..., 0],
    )
  )
  process = jax.tree.map(lambda array: np.asarray(array, np.float64), process)
  # A masked point is modelled as 0 and independent of all other points.
  both_valid = mask[:, :, None] * mask[:, None]
  identity = np.eye(x.shape[1])
  covariance = covariances(x, x, process, kernel, np) * both_valid
  covariance += NOISE**2 * identity
  covariance += (1 - mask)[:, :, None] * identity
  cross = covariances(x, query, process, kernel, np) * mask[:, :, None]
  factor = np.linalg.cholesky(covariance)
  cross = np.linalg.solve(factor, cross)
  standard_normal = np.linalg.solve(factor, (y * mask)[..., None])
  variance = process.scale[:, None] ** 2 + NOISE**2 - np.sum(cross**2, axis=1)
  return np.sum(cross * standard_normal, axis=1), np.sqrt(variance)
