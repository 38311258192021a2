"""Many contexts of unequal size in one compiled call.

Arrays have one shape, so contexts of unequal size are padded to the largest, and every
token of padding costs time. Buckets are groups of contexts of similar size, each padded
to its own largest context:

  buckets = bucketing.make_buckets([len(x) for x in coords], max_buckets=4)
  batches = bucketing.pad_contexts(buckets, coords, values, query_coords)

  @jax.jit
  def predict(params, batches):
    means = [model.apply(params, **batch).output.mean for batch in batches]
    return bucketing.in_order(buckets, means)

Grouping and padding are NumPy on the host. The padding changes no prediction, because
models ignore the tokens outside of a mask.
"""

from collections.abc import Sequence
import typing

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["in_order", "make_buckets", "pad_contexts", "padding_share"]

#: For each bucket the numbers of its contexts, `[n]` int.
Buckets = Sequence[np.ndarray]


def make_buckets(
  sizes: Sequence[int] | np.ndarray, max_buckets: int = 4
) -> list[np.ndarray]:
  """Groups contexts so that the smallest possible number of tokens is padding.

  The groups are exact: contexts in the order of their size are divided by dynamic
  programming over the U distinct sizes, in O(max_buckets U^2) time.

  Args:
    sizes: the number of tokens of each context, at least 1.
    max_buckets: the largest number of buckets. Each has its own shape to compile.

  Returns:
    For each bucket the numbers of its contexts in ascending order, `[n]` int. Buckets
    are in the order of their size.

  Raises:
    ValueError: if there is no context, if a size is not a positive integer, or if
      max_buckets is less than 1.

  >>> [x.tolist() for x in make_buckets([5, 100, 6, 90, 5], max_buckets=2)]
  [[0, 2, 4], [1, 3]]
  """
  sizes = _checked_sizes(sizes)
  if max_buckets < 1:
    raise ValueError(f"max_buckets must be at least 1, got {max_buckets}")
  distinct, group, counts = np.unique(sizes, return_inverse=True, return_counts=True)
  # total[j] is the number of padded tokens of the j smallest sizes in the best buckets,
  # and first[k][j] is where the last of k + 1 buckets starts.
  num_below = np.concatenate([[0], np.cumsum(counts)])
  total = np.full(len(distinct) + 1, np.inf)
  total[0] = 0
  first = []
  for _ in range(min(max_buckets, len(distinct))):
    new, start = np.full_like(total, np.inf), np.zeros(len(total), int)
    for j in range(1, len(total)):
      padded = total[:j] + distinct[j - 1] * (num_below[j] - num_below[:j])
      start[j] = np.argmin(padded)
      new[j] = padded[start[j]]
    total = new
    first.append(start)
  # More buckets never pad more, because each distinct size is a bucket at most.
  buckets, end = [], len(distinct)
  for start in reversed(first):
    buckets.append(np.flatnonzero((group >= start[end]) & (group < end)))
    end = start[end]
  return buckets[::-1]


def padding_share(sizes: Sequence[int] | np.ndarray, buckets: Buckets) -> float:
  """Returns the share of padding in all tokens of padded contexts.

  Args:
    sizes: the number of tokens of each context.
    buckets: the result of `make_buckets`.

  >>> padding_share([1, 3, 2], [np.array([0]), np.array([1, 2])]) == 1 - 6 / 7
  True
  """
  sizes = _checked_sizes(sizes)
  padded = sum(len(bucket) * int(sizes[bucket].max()) for bucket in buckets)
  return 1 - int(sizes.sum()) / padded


def pad_contexts(
  buckets: Buckets,
  coords: Sequence[np.ndarray],
  values: Sequence[np.ndarray],
  query_coords: Sequence[np.ndarray],
) -> list[dict[str, np.ndarray]]:
  """Stacks the contexts of each bucket, with zeros as padding.

  Args:
    buckets: the result of `make_buckets`.
    coords: for each context `[N, C]`, the locations of its tokens.
    values: for each context `[N, E]`, the values there.
    query_coords: for each context `[M, C]`, the locations of its queries.

  Returns:
    For each bucket of n contexts the inputs of `ReTreever` by name: "coords"
    `[n, N, C]`, "values" `[n, N, E]`, "query_coords" `[n, M, C]` and "mask" `[n, N]`
    bool, where N and M are the largest numbers in the bucket. A query of padding is a
    query at 0, whose prediction has no meaning.

  Raises:
    ValueError: if the numbers of contexts, of their tokens or of their axes differ.
  """
  count = sum(map(len, buckets))
  for name, arrays in (("coords", coords), ("values", values)):
    if len(arrays) != count or len(query_coords) != count:
      raise ValueError(
        f"the buckets have {count} contexts, got {len(arrays)} {name} and"
        f" {len(query_coords)} query_coords"
      )
  for i, (x, y) in enumerate(zip(coords, values, strict=True)):
    if len(x) != len(y):
      raise ValueError(f"context {i} has {len(x)} coords and {len(y)} values")
  batches = []
  for bucket in buckets:
    padded, mask = _pad([coords[i] for i in bucket], "coords")
    batches.append(
      {
        "coords": padded,
        "values": _pad([values[i] for i in bucket], "values")[0],
        "query_coords": _pad([query_coords[i] for i in bucket], "query_coords")[0],
        "mask": mask,
      }
    )
  return batches


def in_order(buckets: Buckets, outputs: Sequence[typing.Any]) -> typing.Any:
  """Joins the results of all buckets, in the order of the contexts; to be jitted.

  Args:
    buckets: the result of `make_buckets`.
    outputs: for each bucket of n contexts an array `[n, M, ...]`, or a pytree of such
      arrays. M may differ between buckets.

  Returns:
    One array `[contexts, M, ...]`, or a pytree of such arrays, with the largest M.
    Zeros are added at the end of the second axis.

  Raises:
    ValueError: if an array does not fit its bucket, or if arrays of several buckets
      differ in a third or later axis.
  """
  order = np.argsort(np.concatenate(buckets))

  def join(*parts: jax.Array) -> jax.Array:
    for bucket, x in zip(buckets, parts, strict=True):
      if x.ndim < 2 or len(x) != len(bucket) or x.shape[2:] != parts[0].shape[2:]:
        raise ValueError(
          f"an output of {len(bucket)} contexts must be"
          f" {['n', 'M', *parts[0].shape[2:]]} with n = {len(bucket)}, got shape"
          f" {x.shape}"
        )
    longest = max(x.shape[1] for x in parts)
    padded = [
      jnp.pad(x, [(0, 0), (0, longest - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
      for x in parts
    ]
    return jnp.concatenate(padded)[order]

  if len(outputs) != len(buckets):
    raise ValueError(f"there are {len(buckets)} buckets, got {len(outputs)} outputs")
  return jax.tree.map(join, *outputs)


def _checked_sizes(sizes: Sequence[int] | np.ndarray) -> np.ndarray:
  array = np.asarray(sizes)
  if array.ndim != 1 or not len(array) or array.dtype.kind not in "iu":
    raise ValueError(f"sizes must be a list of integers, got {sizes!r:.100}")
  if array.min() < 1:
    i = int(np.argmin(array))
    raise ValueError(f"sizes must be at least 1, got {array[i]} for context {i}")
  return array.astype(np.int64)


def _pad(arrays: Sequence[np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
  """Stacks `[N, F]` arrays as `[n, N, F]`, and the mask `[n, N]` of what is valid."""
  shapes = {np.shape(x)[1:] for x in arrays}
  if len(shapes) > 1 or len(next(iter(shapes))) != 1:
    raise ValueError(
      f"{name} of each context must be two-dimensional with the same second axis, got"
      f" {sorted({np.shape(x) for x in arrays})[:3]}"
    )
  lengths = np.array([len(x) for x in arrays])
  mask = np.arange(lengths.max()) < lengths[:, None]
  rows = np.concatenate(arrays)
  padded = np.zeros((*mask.shape, *rows.shape[1:]), rows.dtype)
  padded[mask] = rows
  return padded, mask
