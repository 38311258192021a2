"""Recordings of sensors worn by a person, and the parser of localization data."""

from collections.abc import Iterable
import dataclasses
import math
import re
import typing

import numpy as np

from experiments.common.errors import DataError

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
# The class of each label in the files.
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
_LARGEST = 1000  # metres; the tags were worn in one room
_TIMESTAMPS_PER_TICK = 100_000  # a timestamp counts units of 100 ns


@dataclasses.dataclass(frozen=True)
class Recording:
  """A series of sensor values of one person, and the person's activity.

  Attributes:
    person: the index of the person.
    time: `[n]` int64, ascending, in ticks of 10 ms.
    values: `[n, E]` float32.
    labels: `[n]` int64, classes.
  """

  person: int
  time: np.ndarray
  values: np.ndarray
  labels: np.ndarray


class _Measurement(typing.NamedTuple):
  """One line of a file; tag and label are indices."""

  timestamp: int
  tag: int
  location: tuple[float, ...]
  label: int


def read_recordings(
  lines: Iterable[str], columns: tuple[str, ...], has_header: bool, name: str
) -> list[Recording]:
  """Parses lines of localization data and merges the measurements of each tick.

  Args:
    lines: lines of comma-separated values.
    columns: the names of the values, in order. The parser uses "sequence", "tag",
      "timestamp", "x", "y", "z" and "label".
    has_header: whether the first line is a header, which is skipped.
    name: the name of the file, for error messages.

  Returns:
    A recording for each sequence, in the order of their first lines.

  Raises:
    DataError: if a line is malformed or contains an unknown sequence, tag or label.
      The message contains the number of the line.
  """
  sequences: dict[str, list[_Measurement]] = {}
  for number, line in enumerate(lines, 1):
    if not line.strip() or (has_header and number == 1):
      continue
    try:
      sequence, measurement = _parse(line, columns)
    except ValueError as error:
      raise DataError(f"{name}, line {number}: {error}") from error
    sequences.setdefault(sequence, []).append(measurement)
  if not sequences:
    raise DataError(f"{name} is empty: it has no line of data")
  return [_merge(name, measurements) for name, measurements in sequences.items()]


def _parse(line: str, columns: tuple[str, ...]) -> tuple[str, _Measurement]:
  """Parses a line to its sequence and measurement; ValueError if it is malformed."""
  cells = [cell.strip() for cell in line.split(",")]
  if len(cells) != len(columns):
    raise ValueError(
      f"a line must contain {len(columns)} values ({', '.join(columns)}), got"
      f" {len(cells)}"
    )
  row = dict(zip(columns, cells, strict=True))
  if not re.fullmatch("[A-E]0[1-5]", row["sequence"]):
    raise ValueError(f"sequence must be one of A01 ... E05, got {row['sequence']!r}")
  if row["tag"] not in TAGS:
    raise ValueError(f"tag must be one of {TAGS}, got {row['tag']!r}")
  if row["label"] not in LABELS:
    raise ValueError(f"label must be one of {tuple(LABELS)}, got {row['label']!r}")
  location = tuple(float(row[axis]) for axis in "xyz")
  if not all(map(math.isfinite, location)):
    raise ValueError(f"x, y and z must be finite, got {location}")
  if max(map(abs, location)) > _LARGEST:
    raise ValueError(f"x, y and z must be at most {_LARGEST} m, got {location}")
  timestamp = int(row["timestamp"])
  if not 0 <= timestamp < 2**63:
    raise ValueError(f"timestamp must be in [0, 2**63), got {timestamp}")
  return row["sequence"], _Measurement(
    timestamp=timestamp,
    tag=TAGS.index(row["tag"]),
    location=location,
    label=CLASSES.index(LABELS[row["label"]]),
  )


def _merge(sequence: str, measurements: list[_Measurement]) -> Recording:
  """Merges the measurements of each tick into one row.

  A tag that is measured twice in a tick gets the mean of its locations. The row gets
  the label of the tick's first measurement.
  """
  timestamps, tags, locations, labels = map(np.array, zip(*measurements, strict=True))
  ticks = np.rint((timestamps - timestamps[0]) / _TIMESTAMPS_PER_TICK).astype(np.int64)
  time, first, row = np.unique(ticks, return_index=True, return_inverse=True)
  sums = np.zeros((len(time), len(TAGS), 3))
  counts = np.zeros((len(time), len(TAGS), 1))
  np.add.at(sums, (row, tags), locations)
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
