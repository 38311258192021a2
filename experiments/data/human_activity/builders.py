"""TFDS builders of human activity data, and the functions that load them.

`PersonActivity` is the data of the paper's task: five persons, each wearing four tags,
from the file that UCI offers. `PersonActivityExcerpt` is a part of the recordings of
one of these persons, in a file with other columns. `WatchExercises` are exercises that
a smart watch recorded, from the package seglearn. All are stored as array_record files,
without TensorFlow, with one example per recording. Segments, splits and batches are
made from the recordings after loading.
"""

import abc
import dataclasses
import gzip
import pathlib
import typing
import zlib

from absl import logging
from etils import epath
import numpy as np
import tensorflow_datasets as tfds

from experiments.common.errors import DataError
from experiments.data import packages
from experiments.data import preparation
from experiments.data.human_activity import segments as segments_lib
from experiments.data.human_activity.recordings import CLASSES
from experiments.data.human_activity.recordings import read_recordings
from experiments.data.human_activity.recordings import Recording
from experiments.data.human_activity.recordings import TAGS
from experiments.data.human_activity.recordings import TICKS_PER_SECOND
from experiments.data.human_activity.segments import Segments

_TFDS_SPLIT = "recordings"  # all recordings; they are split into parts after loading


class RecordingsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Base class of TFDS builders with one example per recording.

  Attributes:
    HOMEPAGE: the web page of the data set.
    CLASSES: the names of the classes.
    NUM_CHANNELS: the number of channels of a row.
    WIDTH: E, the number of values of a row: the channels, which a mask of as many
      values may follow.
    UNIT: the units of the values of a row.
    SPLITS: the elements of `segments.SPLITS` that are meaningful for the data set.
  """

  VERSION = tfds.core.Version("1.0.0")
  HOMEPAGE: typing.ClassVar[str]
  CLASSES: typing.ClassVar[tuple[str, ...]]
  NUM_CHANNELS: typing.ClassVar[int]
  WIDTH: typing.ClassVar[int]
  UNIT: typing.ClassVar[str]
  SPLITS: typing.ClassVar[tuple[str, ...]]

  @classmethod
  @abc.abstractmethod
  def find_source(cls, manual_dir: epath.PathLike = "") -> pathlib.Path:
    """Finds the source file.

    Args:
      manual_dir: the folder of the files that are downloaded by hand.

    Raises:
      DataError: if the file is missing; the message states how to get it.
    """

  @classmethod
  def channels(cls, values: np.ndarray) -> np.ndarray:
    """Extracts the channels of rows.

    Args:
      values: `[n, E]`, rows of a recording.

    Returns:
      `[n, NUM_CHANNELS]`, NaN where the row contains a mask that is 0.
    """
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


class PersonActivity(RecordingsBuilder):
  """UCI's "Localization Data for Person Activity": 5 recordings of each of 5 persons.

  A row contains the 3 coordinates of each of 4 tags, in metres, and a mask of these 12
  values.
  """

  HOMEPAGE = (
    "https://archive.ics.uci.edu/dataset/196/localization+data+for+person+activity"
  )
  CLASSES = CLASSES
  NUM_CHANNELS = 3 * len(TAGS)
  WIDTH = 2 * NUM_CHANNELS
  UNIT = "12 coordinates in m, 12 masks"
  SPLITS = segments_lib.SPLITS
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
  NUM_LINES: int | None = 164_860
  _REPLACE = "replace it with the right file and run the same command again"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f"download 'Localization Data for Person Activity' from the UCI Machine Learning"
    f" Repository ({HOMEPAGE}), put its file {FILE} ({NUM_LINES:,} lines) there"
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
      # Some editors begin a file with a byte order mark.
      with opened(source, "rt", encoding="utf-8-sig") as file:
        lines = file.readlines()
      if self.NUM_LINES and 0 < len(lines) < self.NUM_LINES:
        text = "%s has %d lines, the official file has %d: it may be cut short"
        logging.warning(text, source, len(lines), self.NUM_LINES)
      return read_recordings(lines, self.COLUMNS, self.HAS_HEADER, str(source))
    except DataError as error:
      raise DataError(f"{error}; {self._REPLACE}") from error
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
      raise DataError(
        f"{source} cannot be read ({error}): it is truncated or a different file;"
        f" {self._REPLACE}"
      ) from error


class PersonActivityExcerpt(PersonActivity):
  """An excerpt of `PersonActivity`: a part of the recordings of the first person.

  Its file has a header and an additional first column, the id, but no dates.
  """

  SPLITS = ("random", "time")
  FILE = "person_activity_excerpt.csv.gz"
  COLUMNS = ("id", "sequence", "tag", "timestamp", "x", "y", "z", "label")
  HAS_HEADER = True
  NUM_LINES = None
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "it contains the first lines of UCI's 'Localization Data for Person Activity' as"
    f" gzipped CSV, with a header above the columns {', '.join(COLUMNS)}; put it there"
  )


class WatchExercises(RecordingsBuilder):
  """Seven shoulder exercises of ten persons, with a smart watch on either arm.

  Each of the 140 recordings contains 3 axes of acceleration (in g) and 3 of rotation
  (in rad/s), which have similar standard deviations. The rate of 50 Hz is reduced to
  10 Hz by averaging, so that a segment spans 5 seconds and several repetitions of one
  or two seconds each. The label is constant within a recording: all rows of a segment
  have the same class.
  """

  HOMEPAGE = "https://github.com/dmbee/seglearn"
  CLASSES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
  NUM_CHANNELS = WIDTH = 6
  UNIT = "3 accelerations in g, 3 rotations in rad/s"
  SPLITS = ("person",)
  RATE, EVERY = 50, 5  # rate in Hz; number of rows averaged to one

  @classmethod
  def find_source(cls, manual_dir: epath.PathLike = "") -> pathlib.Path:
    del manual_dir
    return packages.find_file("seglearn", "data/watch_dataset.npy", "seglearn==1.2.5")

  def _recordings(self, dl_manager) -> list[Recording]:
    del dl_manager
    # Loading a pickle can run code. This file comes from a package that was installed
    # deliberately, whose code is trusted already.
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


DATASETS: dict[str, type[RecordingsBuilder]] = {
  "watch": WatchExercises,
  "uci": PersonActivity,
  "uci_excerpt": PersonActivityExcerpt,
}


def load_recordings(
  dataset: str, data_dir: epath.PathLike, manual_dir: epath.PathLike
) -> list[Recording]:
  """Loads the recordings of a data set, and prepares it on first use.

  Args:
    dataset: one of `DATASETS`.
    data_dir: the folder of prepared TFDS data sets.
    manual_dir: the folder of the files that are downloaded by hand.

  Returns:
    The recordings, in the order of the source file.

  Raises:
    DataError: if the source file or the prepared file is missing or malformed.
  """
  kind = DATASETS[dataset]
  builder = preparation.build(
    lambda: kind(data_dir=data_dir, file_format="array_record"),
    epath.Path(data_dir) / kind.name,
  )
  if not preparation.is_prepared(builder):
    source = builder.find_source(manual_dir)  # its error is better than that of TFDS
    preparation.prepare(builder, manual_dir, str(source))
  return [Recording(**record) for record in preparation.records(builder, _TFDS_SPLIT)]


def load_segments(
  dataset: str, split: str, data_dir: epath.PathLike, manual_dir: epath.PathLike
) -> dict[str, Segments]:
  """Loads the segments of a data set.

  Args:
    dataset: one of `DATASETS`.
    split: one of the data set's `SPLITS`; see `segments.split_segments`.
    data_dir: the folder of prepared TFDS data sets.
    manual_dir: the folder of the files that are downloaded by hand.

  Returns:
    The segments of each of `PARTS`.

  Raises:
    DataError: if the source file is missing or malformed, or if a part has no
      segments.
  """
  recordings = load_recordings(dataset, data_dir, manual_dir)
  owner, start, part = segments_lib.split_segments(recordings, split)
  counts = np.bincount(part, minlength=len(segments_lib.PARTS))
  if not counts.all():
    sizes = dict(zip(segments_lib.PARTS, counts.tolist(), strict=True))
    raise DataError(
      f"{dataset} is too small for the split {split!r}: its {len(recordings)}"
      f" recordings give {sizes} segments"
    )
  return {
    name: segments_lib.cut(recordings, owner[part == i], start[part == i])
    for i, name in enumerate(segments_lib.PARTS)
  }
