"""Functions drawn from Gaussian processes (Sec. 4.2), and the best prediction of them."""

import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.task import Batch

Kernel = typing.Literal["rbf", "matern52"]
KERNELS: tuple[str, ...] = typing.get_args(Kernel)
Sizes = typing.Literal["example", "batch"]
SIZES: tuple[str, ...] = typing.get_args(Sizes)
MAX_POINTS = 50  # context and targets together are fewer
MIN_POINTS = 3
MAX_CONTEXT = MAX_POINTS - MIN_POINTS - 1
NOISE = 0.02  # standard deviation of an observation

# (slots for context, slots for targets): what a batch is padded to. Few shapes, so
# that little is compiled, yet more than one: most targets come with small contexts.
SHAPES = tuple(
  (n, MAX_POINTS - 1 - first) for first, n in ((3, 16), (17, 32), (33, 46))
)


@chex.dataclass(frozen=True)
class Process:
  """The hyper-parameters of the processes that a batch was drawn from, `[B]` each."""

  length_scale: jax.Array | np.ndarray
  scale: jax.Array | np.ndarray


def smallest_context(shape: tuple[int, int]) -> int:
  """The fewest context points that are padded to a shape."""
  return MAX_POINTS - 1 - shape[1]


def draw_shape(seed: tuple[int, ...]) -> tuple[int, int]:
  """The shape of a batch: the number of context points is uniform on [3, 47).

  Drawn by NumPy, as a shape is not data: no device is waited for.
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
  """Draws functions, and context and target points of each, by masks in one shape.

  num_ctx is uniform on what the shape is for, x on [-2, 2), the length scale on
  [0.1, 0.6) and the scale on [0.1, 1); observations have noise of sd 0.02. Context
  and targets are sorted by x, each on its own.

  Args:
    rng: consumed.
    batch_size: B.
    shape: one of `SHAPES`, (N, M).
    kernel: of the process.
    sizes: "batch": all examples have one num_ctx and one num_tar, uniform on
      [3, 50 - num_ctx), as published. "example": each draws its own num_ctx and has
      the largest num_tar, as a function costs the same with fewer.

  Returns:
    A `Batch` with C = 1 and E = 1, and the `Process` of each example.
  """
  if sizes not in SIZES:
    raise ValueError(f"sizes must be one of {SIZES}, got {sizes!r}")
  context_rng, target_rng, x_rng, process_rng, y_rng = jax.random.split(rng, 5)
  draws = (1 if sizes == "batch" else batch_size,)
  num_context = jax.random.randint(
    context_rng, draws, smallest_context(shape), shape[0] + 1
  )
  num_targets = MAX_POINTS - 1 - num_context
  if sizes == "batch":
    num_targets = jax.random.randint(target_rng, draws, MIN_POINTS, num_targets + 1)
  x, masks = [], []
  for key, slots, count in zip(
    jax.random.split(x_rng), shape, (num_context, num_targets), strict=True
  ):
    mask = jnp.broadcast_to(jnp.arange(slots) < count[:, None], (batch_size, slots))
    place = jax.random.uniform(key, (batch_size, slots), minval=-2, maxval=2)
    order = jnp.argsort(jnp.where(mask, place, jnp.inf))
    x.append(jnp.take_along_axis(place, order, axis=1))
    masks.append(mask)
  low, high = jnp.array([[0.1], [0.1]]), jnp.array([[0.6], [1.0]])
  length_scale, scale = jax.random.uniform(
    process_rng, (2, batch_size), minval=low, maxval=high
  )
  process = Process(length_scale=length_scale, scale=scale)
  points = jnp.concatenate(x, axis=1)
  covariance = covariances(points, points, process, kernel, jnp)
  covariance += NOISE**2 * jnp.eye(points.shape[1])
  white = jax.random.normal(y_rng, points.shape)
  y = jnp.einsum("bij,bj->bi", jnp.linalg.cholesky(covariance), white)
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
  """Of the function's values at `[B, n]` and `[B, m]`, noise apart: `[B, n, m]`.

  Args:
    a: x.
    b: x.
    process: the `Process`.
    kernel: "rbf" or "matern52".
    xp: `jax.numpy`, or NumPy with float64 arrays.
  """
  far = xp.abs(a[:, :, None] - b[:, None]) / process.length_scale[:, None, None]
  if kernel == "rbf":
    shape = xp.exp(-(far**2) / 2)
  elif kernel == "matern52":
    far = 5**0.5 * far
    shape = (1 + far + far**2 / 3) * xp.exp(-far)
  else:
    raise ValueError(f"kernel must be one of {KERNELS}, got {kernel!r}")
  return process.scale[:, None, None] ** 2 * shape


def predictive(
  batch: Batch, process: Process, kernel: Kernel
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and std of each target under the exact posterior, noise included.

  No system can predict better on average: it knows the hyper-parameters.

  Args:
    batch: as `sample` draws it.
    process: the `Process`.
    kernel: of the process.

  Returns:
    `[B, M]` float64 each.
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
  # A masked point is independent of all others, with the value 0.
  both = mask[:, :, None] * mask[:, None]
  identity = np.eye(x.shape[1])
  known = covariances(x, x, process, kernel, np) * both + NOISE**2 * identity
  known += (1 - mask)[:, :, None] * identity
  cross = covariances(x, query, process, kernel, np) * mask[:, :, None]
  factor = np.linalg.cholesky(known)
  cross = np.linalg.solve(factor, cross)
  white = np.linalg.solve(factor, (y * mask)[..., None])
  variance = process.scale[:, None] ** 2 + NOISE**2 - np.sum(cross**2, axis=1)
  return np.sum(cross * white, axis=1), np.sqrt(variance)
