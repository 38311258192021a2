"""Activities told from sensors (Sec. 4.3): TFDS builders, segments and their splits.

`PersonActivity` is the published task's data, four tags worn by five persons, from the
file that UCI offers; `PersonActivityExcerpt` is a part of one person's recordings, in
another layout of columns; `WatchExercises` are exercises that a smart watch recorded,
from the package seglearn. All write array_record files, without TensorFlow, with one
example a recording; segments, splits and batches are cut from those.
"""

import abc
from collections.abc import Iterable
import dataclasses
import gzip
import math
import pathlib
import re
import typing
import zlib

import chex
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from experiments.common.task import Batch
from experiments.data import packages
from experiments.data import preparation
from experiments.data.errors import DataError

SEGMENT, STRIDE = 50, 25  # rows
PARTS = ("train", "validation", "test")
SPLITS = ("random", "person", "time")
TICKS_PER_SECOND = 100  # the unit of time is a tick of 10 ms

TAGS = ("010-000-024-033", "010-000-030-096", "020-000-033-111", "020-000-032-221")
CLASSES = (
  "walking",
  "falling",
  "lying",
  "sitting",
  "standing up",
  "on all fours",
  "sitting on the ground",
)
# The labels as the data spells them.
LABELS = {
  "walking": "walking",
  "falling": "falling",
  "lying down": "lying",
  "lying": "lying",
  "sitting down": "sitting",
  "sitting": "sitting",
  "standing up from lying": "standing up",
  "standing up from sitting": "standing up",
  "standing up from sitting on the ground": "standing up",
  "on all fours": "on all fours",
  "sitting on the ground": "sitting on the ground",
}
_STAMPS_PER_TICK = 100_000
_TFDS_SPLIT = "recordings"  # all of them: they are split when they are read
_SPLIT_SEED = 0  # of the random split: all runs are tested on the same segments


@dataclasses.dataclass(frozen=True)
class Recording:
  """What sensors said of one person, and what the person was doing.

  Attributes:
    person: a number.
    time: `[n]` int64, ascending, in 10 ms.
    values: `[n, E]` float32.
    labels: `[n]` int64, classes.
  """

  person: int
  time: np.ndarray
  values: np.ndarray
  labels: np.ndarray


@chex.dataclass(frozen=True)
class Segments:
  """W pieces of recordings, of 50 rows each.

  Attributes:
    time: `[W, 50]` int32, in 10 ms since the segment's first row.
    values: `[W, 50, E]` float32.
    labels: `[W, 50]` int32, classes.
  """

  time: jax.Array | np.ndarray
  values: jax.Array | np.ndarray
  labels: jax.Array | np.ndarray


class _Recordings(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder with one example a recording, in the order recorded."""

  VERSION = tfds.core.Version("1.0.0")
  # Of each data set: its page, the classes, the channels (a mask of them may stand
  # behind them in a row), the width of a row and the splits that have a meaning.
  HOMEPAGE: typing.ClassVar[str]
  CLASSES: typing.ClassVar[tuple[str, ...]]
  NUM_CHANNELS: typing.ClassVar[int]
  WIDTH: typing.ClassVar[int]
  SPLITS: typing.ClassVar[tuple[str, ...]]

  @classmethod
  @abc.abstractmethod
  def find_source(cls, manual_dir: epath.PathLike = "") -> pathlib.Path:
    """The file that is read; DataError, which says how to get it, if it is missing."""

  @classmethod
  def channels(cls, values: np.ndarray) -> np.ndarray:
    """The channels of rows `[n, E]`; NaN where there is a mask, and it is 0."""
    channels, mask = np.split(values, [cls.NUM_CHANNELS], axis=1)
    return np.where(mask == 0, np.nan, channels) if mask.size else channels

  @abc.abstractmethod
  def _recordings(self, dl_manager) -> list[Recording]: ...

  def _info(self) -> tfds.core.DatasetInfo:
    def rows(dtype: type, *width: int) -> tfds.features.Tensor:
      return tfds.features.Tensor(shape=(None, *width), dtype=dtype)

    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "person": tfds.features.Scalar(np.int64),
          "time": rows(np.int64),
          "values": rows(np.float32, self.WIDTH),
          "labels": rows(np.int64),
        }
      ),
      homepage=self.HOMEPAGE,
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {_TFDS_SPLIT: self._generate_examples(self._recordings(dl_manager))}

  def _generate_examples(self, recordings):
    for i, recording in enumerate(recordings):
      yield i, dataclasses.asdict(recording)


class PersonActivity(_Recordings):
  """UCI's "Localization Data for Person Activity": five persons, five times each.

  A row has 3 coordinates of each of 4 tags, in metres, and a mask of those 12.
  """

  HOMEPAGE = (
    "https://archive.ics.uci.edu/dataset/196/localization+data+for+person+activity"
  )
  CLASSES = CLASSES
  NUM_CHANNELS = 3 * len(TAGS)
  WIDTH = 2 * NUM_CHANNELS
  SPLITS = SPLITS
  FILE = "ConfLongDemo_JSI.txt"
  COLUMNS: tuple[str, ...] = (
    "sequence",
    "tag",
    "timestamp",
    "date",
    "x",
    "y",
    "z",
    "label",
  )
  HAS_HEADER = False
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f"download 'Localization Data for Person Activity' from the UCI Machine Learning"
    f" Repository ({HOMEPAGE}), put its file {FILE} (164,860 lines) there"
  )

  @classmethod
  def find_source(cls, manual_dir: epath.PathLike = "") -> pathlib.Path:
    source = pathlib.Path(manual_dir) / cls.FILE
    if source.is_file():
      return source
    raise DataError(
      f"{cls.FILE} is not in the folder --manual_dir={manual_dir};"
      f" {cls.MANUAL_DOWNLOAD_INSTRUCTIONS} and run the same command again"
    )

  def _recordings(self, dl_manager) -> list[Recording]:
    source = self.find_source(dl_manager.manual_dir)
    opened = gzip.open if source.suffix == ".gz" else open
    try:
      with opened(source, "rt", encoding="utf-8") as lines:
        return read_recordings(lines, self.COLUMNS, self.HAS_HEADER, self.FILE)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
      raise DataError(
        f"{source} cannot be read ({error}): it is truncated or another file; put the"
        " right one there and run the same command again"
      ) from error


class PersonActivityExcerpt(PersonActivity):
  """A part of what the first of the five persons did: an excerpt, not the data set.

  Its file has an id before the columns, a header above them, and no dates.
  """

  SPLITS = ("random", "time")
  FILE = "person_activity_excerpt.csv.gz"
  COLUMNS = ("id", "sequence", "tag", "timestamp", "x", "y", "z", "label")
  HAS_HEADER = True
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "it holds the first lines of UCI's 'Localization Data for Person Activity' as"
    f" gzipped CSV, with a header above the columns {', '.join(COLUMNS)}; put it there"
  )


class WatchExercises(_Recordings):
  """Ten persons at seven shoulder exercises, with a smart watch on either arm.

  Its 140 recordings hold 3 axes each of acceleration (in g) and rotation (rad/s), whose
  spreads are alike. What was recorded at 50 Hz is averaged to 10 Hz, so that a segment
  spans 5 seconds and some repetitions, which take one or two. The label is constant
  within a recording: telling the class of every row is telling the class of a segment,
  seen from each of its rows.
  """

  HOMEPAGE = "https://github.com/dmbee/seglearn"
  CLASSES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
  NUM_CHANNELS = WIDTH = 6
  SPLITS = ("person",)
  RATE, EVERY = 50, 5  # Hz; rows averaged to one

  @classmethod
  def find_source(cls, manual_dir: epath.PathLike = "") -> pathlib.Path:
    del manual_dir
    return packages.find_file("seglearn", "data/watch_dataset.npy", "seglearn==1.2.5")

  def _recordings(self, dl_manager) -> list[Recording]:
    del dl_manager
    # A pickle runs code, but no other than the package's that was installed.
    data = np.load(self.find_source(), allow_pickle=True).item()
    recordings = []
    for values, label, person in zip(
      data["X"], data["y"], data["subject"], strict=True
    ):
      length = len(values) // self.EVERY
      rows = values[: length * self.EVERY].reshape(length, self.EVERY, -1).mean(axis=1)
      recordings.append(
        Recording(
          person=int(person),
          time=np.arange(length) * (self.EVERY * TICKS_PER_SECOND // self.RATE),
          values=rows.astype(np.float32),
          labels=np.full(length, int(label)),
        )
      )
    return recordings


DATASETS: dict[str, type[_Recordings]] = {
  "watch": WatchExercises,
  "uci": PersonActivity,
  "uci_excerpt": PersonActivityExcerpt,
}


class _Reading(typing.NamedTuple):
  """What one line says; tag and label are indices."""

  stamp: int
  tag: int
  place: tuple[float, ...]
  label: int


def read_recordings(
  lines: Iterable[str], columns: tuple[str, ...], has_header: bool, name: str
) -> list[Recording]:
  """Parses lines of localization data, and merges the readings of a time.

  Args:
    lines: of comma-separated values.
    columns: what the values are, in order; those read are "sequence", "tag",
      "timestamp", "x", "y", "z" and "label".
    has_header: whether the first line is to be skipped.
    name: of the file, for messages.

  Returns:
    A recording for each sequence, in the order in which they begin.

  Raises:
    DataError: with the number of the line, if one is malformed or holds a sequence,
      tag or label that the data set does not know.
  """
  sequences: dict[str, list[_Reading]] = {}
  for number, line in enumerate(lines, 1):
    if not line.strip() or (has_header and number == 1):
      continue
    try:
      sequence, reading = _parse(line, columns)
    except ValueError as error:
      raise DataError(f"{name}, line {number}: {error}") from error
    sequences.setdefault(sequence, []).append(reading)
  return [_merge(name, readings) for name, readings in sequences.items()]


def _parse(line: str, columns: tuple[str, ...]) -> tuple[str, _Reading]:
  """The sequence and the reading of a line; ValueError if it is malformed."""
  cells = [cell.strip() for cell in line.split(",")]
  if len(cells) != len(columns):
    raise ValueError(
      f"a line must hold {len(columns)} values ({', '.join(columns)}), got {len(cells)}"
    )
  row = dict(zip(columns, cells, strict=True))
  if not re.fullmatch("[A-E]0[1-5]", row["sequence"]):
    raise ValueError(f"sequence must be one of A01 ... E05, got {row['sequence']!r}")
  if row["tag"] not in TAGS:
    raise ValueError(f"tag must be one of {TAGS}, got {row['tag']!r}")
  if row["label"] not in LABELS:
    raise ValueError(f"label must be one of {tuple(LABELS)}, got {row['label']!r}")
  place = tuple(float(row[axis]) for axis in "xyz")
  if not all(map(math.isfinite, place)):
    raise ValueError(f"x, y and z must be finite, got {place}")
  return row["sequence"], _Reading(
    stamp=int(row["timestamp"]),
    tag=TAGS.index(row["tag"]),
    place=place,
    label=CLASSES.index(LABELS[row["label"]]),
  )


def _merge(sequence: str, readings: list[_Reading]) -> Recording:
  """Merges the readings of a time to one row: a tag's mean, the first one's label."""
  stamps, tags, places, labels = map(np.array, zip(*readings, strict=True))
  ticks = np.rint((stamps - stamps[0]) / _STAMPS_PER_TICK).astype(np.int64)
  time, first, row = np.unique(ticks, return_index=True, return_inverse=True)
  sums = np.zeros((len(time), len(TAGS), 3))
  counts = np.zeros((len(time), len(TAGS), 1))
  np.add.at(sums, (row, tags), places)
  np.add.at(counts, (row, tags), 1)
  means = sums / np.maximum(counts, 1)
  mask = np.broadcast_to(counts > 0, means.shape)
  return Recording(
    person="ABCDE".index(sequence[0]),
    time=time,
    values=np.concatenate([means, mask], axis=1)
    .reshape(len(time), -1)
    .astype(np.float32),
    labels=labels[first],
  )


def segment_starts(length: int) -> np.ndarray:
  """Where a recording's segments begin: every 25 rows, while offset + 50 < length.

  >>> [segment_starts(length).tolist() for length in (50, 51, 75, 76)]
  [[], [0], [0], [0, 25]]
  """
  return np.arange(0, length - SEGMENT, STRIDE)


def part_of(place: np.typing.ArrayLike, total: np.typing.ArrayLike) -> np.ndarray:
  """The part of things in a row: 0, 1, 2 for the first 64 %, the next 16 %, the rest.

  >>> part_of(np.arange(5), 5).tolist()
  [0, 0, 0, 1, 2]
  """
  place, total = np.asarray(place), np.asarray(total)
  return (place >= total * 64 // 100).astype(int) + (place >= total * 80 // 100)


def split_segments(
  recordings: list[Recording], split: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Tells every segment's part of the data set.

  Args:
    recordings: R of them.
    split: "random", as published: any segment may be in any part, so that half the
      rows of a segment to be tested may be in segments trained on. "person": the
      persons are split, in their order. "time": every recording is, in the order of
      time, and segments in two parts are dropped: so no row is in two parts.

  Returns:
    `[W]` each: the recording, the first row, and the part as an index into `PARTS`.

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
  """The segments of recordings that begin at rows; time restarts at 0 in each."""

  def rows(name: str) -> np.ndarray:
    pieces = zip(owner, start, strict=True)
    return np.stack([getattr(recordings[i], name)[a : a + SEGMENT] for i, a in pieces])

  time = rows("time")
  return Segments(
    time=(time - time[:, :1]).astype(np.int32),
    values=rows("values"),
    labels=rows("labels").astype(np.int32),
  )


def load_recordings(
  dataset: str, data_dir: epath.PathLike, manual_dir: epath.PathLike
) -> list[Recording]:
  """The recordings of a data set, which is prepared on first use.

  Args:
    dataset: one of `DATASETS`.
    data_dir: where TFDS keeps the prepared data set.
    manual_dir: holds the file of a data set that is downloaded by hand.

  Raises:
    DataError: if the data cannot be found or read.
  """
  builder = DATASETS[dataset](data_dir=data_dir, file_format="array_record")
  if not preparation.is_prepared(builder):
    builder.find_source(manual_dir)  # says more than TFDS would
    preparation.prepare(builder, manual_dir)
  source = builder.as_data_source(_TFDS_SPLIT)
  return [Recording(**source[i]) for i in range(len(source))]


def load_segments(
  dataset: str, split: str, data_dir: epath.PathLike, manual_dir: epath.PathLike
) -> dict[str, Segments]:
  """The segments of a data set, by part; arguments as `load_recordings`.

  Raises:
    DataError: if the data cannot be found or read, or if a part has no segment.
  """
  recordings = load_recordings(dataset, data_dir, manual_dir)
  owner, start, part = split_segments(recordings, split)
  counts = np.bincount(part, minlength=len(PARTS))
  if not counts.all():
    raise DataError(
      f"{dataset} is too small for the split {split!r}: its {len(recordings)}"
      f" recordings give {dict(zip(PARTS, counts.tolist(), strict=True))} segments"
    )
  return {
    name: cut(recordings, owner[part == i], start[part == i])
    for i, name in enumerate(PARTS)
  }


def take(segments: Segments, index: jax.typing.ArrayLike) -> Batch:
  """A batch of segments: their rows are the context, their times the queries.

  Args:
    segments: W of them.
    index: `[B]`, which.

  Returns:
    A `Batch` with N = M = 50 and C = 1: the time, scaled to [-1, 1] in each segment.
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
  """Draws a batch of B segments, none of them twice; rng is consumed."""
  count = segments.time.shape[0]
  return take(segments, jax.random.choice(rng, count, (batch_size,), replace=False))
