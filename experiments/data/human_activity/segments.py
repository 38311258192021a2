"""Segments of recordings, their split into parts, and the sampler (Sec. 4.3)."""

import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.batch import Batch
from experiments.data.human_activity.recordings import Recording

SEGMENT, STRIDE = 50, 25  # rows
PARTS = ("train", "validation", "test")
Split = typing.Literal["random", "person", "time"]
SPLITS: tuple[str, ...] = typing.get_args(Split)
_SPLIT_SEED = 0  # one random split for all runs: all are tested on the same segments


@chex.dataclass(frozen=True)
class Segments:
  """W segments of recordings, of 50 rows each.

  Attributes:
    time: `[W, 50]` int32, in ticks of 10 ms since the first row of the segment.
    values: `[W, 50, E]` float32.
    labels: `[W, 50]` int32, classes.
  """

  time: jax.Array | np.ndarray
  values: jax.Array | np.ndarray
  labels: jax.Array | np.ndarray


def segment_starts(length: int) -> np.ndarray:
  """Computes the first rows of a recording's segments.

  A segment starts every 25 rows, as long as start + 50 < length.

  Args:
    length: the number of rows of the recording.

  Returns:
    `[W]` row indices.

  >>> [segment_starts(length).tolist() for length in (50, 51, 75, 76)]
  [[], [0], [0], [0, 25]]
  """
  return np.arange(0, length - SEGMENT, STRIDE)


def part_of(index: np.typing.ArrayLike, total: np.typing.ArrayLike) -> np.ndarray:
  """Assigns items to a part by their position in an order.

  Args:
    index: the positions of the items in the order.
    total: the number of items in the order.

  Returns:
    Indices into `PARTS`: 0 for the first 64 %, 1 for the next 16 %, 2 for the rest.

  >>> part_of(np.arange(5), 5).tolist()
  [0, 0, 0, 1, 2]
  """
  index, total = np.asarray(index), np.asarray(total)
  return (index >= total * 64 // 100).astype(int) + (index >= total * 80 // 100)


def split_segments(
  recordings: list[Recording], split: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Assigns every segment of recordings to a part of the data set.

  Args:
    recordings: R recordings.
    split: one of `SPLITS`. "random", as published: each segment is assigned at
      random, so that half of the rows of a test segment may be in training segments.
      "person": each person is assigned, in ascending order. "time": each recording
      is cut in the order of time, and segments that span two parts are dropped, so
      that no row is in two parts.

  Returns:
    `[W]` each: the index of the recording, the first row, and the part as an index
    into `PARTS`.

  Raises:
    ValueError: if split is not one of `SPLITS`.
  """
  lengths = np.array([len(recording.time) for recording in recordings])
  starts = [segment_starts(length) for length in lengths]
  owner = np.repeat(np.arange(len(recordings)), list(map(len, starts)))
  start = np.concatenate(starts)
  if split == "random":
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(start))
    return owner, start, part_of(order, len(start))
  if split == "person":
    persons, person = np.unique(
      [recording.person for recording in recordings], return_inverse=True
    )
    return owner, start, part_of(person[owner], len(persons))
  if split == "time":
    first = part_of(start, lengths[owner])
    whole = first == part_of(start + SEGMENT - 1, lengths[owner])
    return owner[whole], start[whole], first[whole]
  raise ValueError(f"split must be one of {SPLITS}, got {split!r}")


def cut(recordings: list[Recording], owner: np.ndarray, start: np.ndarray) -> Segments:
  """Cuts segments out of recordings.

  Args:
    recordings: R recordings.
    owner: `[W]`, the index of the recording of each segment.
    start: `[W]`, the first row of each segment.

  Returns:
    The `Segments`; the time of each starts at 0.
  """

  def rows(name: str) -> np.ndarray:
    pairs = zip(owner, start, strict=True)
    return np.stack([getattr(recordings[i], name)[a : a + SEGMENT] for i, a in pairs])

  time = rows("time")
  return Segments(
    time=(time - time[:, :1]).astype(np.int32),
    values=rows("values"),
    labels=rows("labels").astype(np.int32),
  )


def take(segments: Segments, index: jax.typing.ArrayLike) -> Batch:
  """Makes a batch of segments: the rows are the context, their times the queries.

  Args:
    segments: W segments.
    index: `[B]`, the indices of the segments to take.

  Returns:
    A `Batch` with N = M = 50 and C = 1. The coordinate is the time, scaled to [-1, 1]
    in each segment.
  """
  time = jnp.asarray(segments.time)[index].astype(jnp.float32)
  coords = (2 * time / time[:, -1:] - 1)[..., None]
  valid = jnp.ones(time.shape, bool)
  return Batch(
    coords=coords,
    values=jnp.asarray(segments.values)[index],
    mask=valid,
    query_coords=coords,
    targets=jnp.asarray(segments.labels)[index],
    query_mask=valid,
  )


def sample(rng: jax.Array, segments: Segments, batch_size: int) -> Batch:
  """Draws a batch of distinct segments.

  Args:
    rng: a random key, consumed.
    segments: W segments.
    batch_size: B, at most W.

  Returns:
    A `Batch`; see `take`.
  """
  count = segments.time.shape[0]
  return take(segments, jax.random.choice(rng, count, (batch_size,), replace=False))
