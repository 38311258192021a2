"""Checks of inputs: shapes, dtypes, masks and values.

The checks run once, at the public entry points. Every error is a `ValueError` that
names the argument, the requirement and the actual value; a wrong type is a `TypeError`.
Arrays of NumPy and nested lists of numbers are accepted where arrays are meant. Shapes
and dtypes are always checked. Values are checked only where they are known, that is
outside `jax.jit`, `jax.vmap` and `jax.grad`.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
  "as_array",
  "check_context",
  "check_finite",
  "check_floating",
  "check_key",
  "check_mask",
  "check_num_paths",
  "check_rate",
  "check_sizes",
  "clean_context",
  "is_traced",
]


def is_traced(*arrays: jax.Array | None) -> bool:
  """Returns whether any of the arrays is traced, so that its values are unknown.

  >>> is_traced(jnp.ones(2), None)
  False
  """
  return any(isinstance(x, jax.core.Tracer) for x in arrays)


def as_array(name: str, x: typing.Any) -> jax.Array:
  """Converts an array of NumPy, a number or nested lists of numbers to a JAX array.

  Args:
    name: the name that the error gives.
    x: the array; one of JAX is returned as it is.

  Raises:
    TypeError: if x is something else, or if lists have different lengths.

  >>> as_array("coords", [[1.0, 2.0]]).shape
  (1, 2)
  """
  if isinstance(x, jax.Array):
    return x
  try:
    # NaN may be in masked tokens, and where it may not be, another check names it.
    with jax.debug_nans(False):
      return jnp.asarray(x)
  except (TypeError, ValueError) as error:
    raise TypeError(
      f"{name} must be an array or nested lists of numbers, got {type(x).__name__}:"
      f" {str(error).splitlines()[0]}"
    ) from None


def check_key(rng: typing.Any) -> None:
  """Raises an error unless an argument can be a key of `jax.random`.

  Args:
    rng: a key of `jax.random.key` or of `jax.random.PRNGKey`.

  Raises:
    TypeError: if it is neither.
  """
  dtype = getattr(rng, "dtype", None)
  if dtype is None or not (
    jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32
  ):
    raise TypeError(
      "rng must be a key, such as jax.random.key(0), got"
      f" {type(rng).__name__ if dtype is None else f'an array of {dtype}'}"
    )


def check_mask(
  mask: jax.Array, shape: tuple[int, ...] | None = None, name: str = "mask"
) -> None:
  """Raises an error unless a mask is bool; a mask of 0 and -inf is not.

  Args:
    mask: an array.
    shape: the shape that it must have; None means any.
    name: the name that the error gives.

  Raises:
    ValueError: if the dtype or the shape is wrong.
  """
  if mask.dtype != jnp.bool_:
    raise ValueError(f"{name} must be bool, got dtype {mask.dtype}")
  if shape is not None and mask.shape != shape:
    raise ValueError(f"{name} must be {shape}, got shape {mask.shape}")


def check_sizes(at_least: int = 1, **sizes: typing.Any) -> None:
  """Raises an error unless sizes are integers and large enough.

  Args:
    at_least: the smallest allowed number.
    **sizes: the sizes, by the names that the error gives.

  Raises:
    ValueError: if one is not.
  """
  for name, size in sizes.items():
    integer = isinstance(size, int | np.integer) and not isinstance(size, bool)
    if not integer or size < at_least:
      raise ValueError(
        f"{name} must be an integer of at least {at_least}, got {size!r}"
      )


def check_rate(**rates: float) -> None:
  """Raises an error unless rates are in [0, 1).

  Args:
    **rates: the rates, by the names that the error gives.

  Raises:
    ValueError: if one is not.
  """
  for name, rate in rates.items():
    if not 0 <= rate < 1:
      raise ValueError(f"{name} must be in [0, 1), got {rate}")


def check_floating(**arrays: jax.Array) -> None:
  """Raises an error unless all arrays are floating point.

  Args:
    **arrays: arrays of any shape, by the names that the error gives.

  Raises:
    ValueError: if the dtype of an array is not floating point.
  """
  for name, x in arrays.items():
    dtype = as_array(name, x).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
      raise ValueError(f"{name} must be floating point, got dtype {dtype}")


def check_finite(**arrays: jax.Array) -> None:
  """Raises an error unless all arrays are floating point and finite.

  Args:
    **arrays: arrays of any shape, by the names that the error gives.

  Raises:
    ValueError: if the dtype of an array is not floating point; outside a
      transformation also if a value is NaN or infinite.
  """
  check_floating(**arrays)
  for name, x in arrays.items():
    if not is_traced(x) and not np.isfinite(np.asarray(x, np.float32)).all():
      raise ValueError(f"{name} must be finite, but some values are NaN or infinite")


def check_num_paths(num_paths: int) -> None:
  """Raises an error if the number of paths (the beam width) is below 1.

  Args:
    num_paths: the number of paths.

  Raises:
    ValueError: if num_paths is below 1.
  """
  if num_paths < 1:
    raise ValueError(f"num_paths must be at least 1, got {num_paths}")


def check_context(
  coords: jax.Array, mask: jax.Array | None = None, **features: jax.Array
) -> None:
  """Raises an error if no model can read a context.

  Args:
    coords: `[..., N, C]` floating point.
    mask: `[..., N]` bool, True at valid tokens; None means that all are valid.
    **features: `[..., N, D]` floating point, by the names that the error gives.

  Raises:
    ValueError: if a shape or dtype is wrong, or if N or C is 0; outside a
      transformation also if a context has no valid token, or if a coordinate or a
      feature of a valid token is not finite.
  """
  coords = as_array("coords", coords)
  mask = None if mask is None else as_array("mask", mask)
  features = {name: as_array(name, x) for name, x in features.items()}
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
    check_mask(mask)
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
        f" {int(valid.sum())} are NaN or infinite, the first at index"
        f" {tuple(int(i) for i in np.argwhere(bad)[0])}"
      )


def clean_context(
  coords: jax.Array, mask: jax.Array | None = None, **features: jax.Array
) -> tuple[jax.Array, ...]:
  """Checks a context, makes its mask, and zeroes the masked entries.

  Args:
    coords: `[..., N, C]` floating point.
    mask: `[..., N]` bool, True at valid tokens; None means that all are valid.
    **features: `[..., N, D]` floating point, by the names that the error gives.

  Returns:
    coords, the mask, and the features in their order. Coordinates and features of
    masked tokens are 0.

  Raises:
    ValueError: see `check_context`.

  >>> x = np.array([[1.0], [np.nan]], np.float32)
  >>> [y.tolist() for y in clean_context(x, np.array([True, False]), values=x)]
  [[[1.0], [0.0]], [True, False], [[1.0], [0.0]]]
  """
  coords = as_array("coords", coords)
  features = {name: as_array(name, x) for name, x in features.items()}
  mask = None if mask is None else as_array("mask", mask)
  check_context(coords, mask, **features)
  if mask is None:
    mask = jnp.ones(coords.shape[:-1], bool)
  valid = mask[..., None]
  cleaned = [jnp.where(valid, x, 0) for x in (coords, *features.values())]
  return (cleaned[0], mask, *cleaned[1:])
