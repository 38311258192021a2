"""The sets of images by name: where they come from, and which train and test.

All are TFDS data sets, prepared on first use, kept as array_record files and read
without TensorFlow.
"""

from collections.abc import Callable
import dataclasses
import functools
import typing

from etils import epath
import numpy as np
import tensorflow_datasets as tfds

from experiments.data import celeba
from experiments.data import emnist
from experiments.data import mnist
from experiments.data import photos
from experiments.data import preparation
from experiments.data.errors import DataError

Split = typing.Literal["train", "test"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Registered:
  """TFDS's own builder of the same images.

  It needs TensorFlow to prepare them, but not to read them.

  Attributes:
    name: for `tfds.builder`.
    convert: turns one of its images into one of ours.
  """

  name: str
  convert: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet:
  """A set of images.

  Attributes:
    builder: prepares them from the files of a package, or from official ones.
    files: the official files that it reads, if any.
    registered: TFDS's own builder, if there is one.
    train: the splits to train on; "test" is what all are evaluated on.
    seen: the classes to train on; None if images have none.
    unseen: the classes that are kept for the evaluation.
  """

  builder: type[tfds.core.GeneratorBasedBuilder]
  files: tuple[str, ...] = ()
  registered: Registered | None = None
  train: str = "train"
  seen: range | None = None
  unseen: range | None = None


IMAGE_SETS = {
  "mnist": ImageSet(builder=mnist.MnistDigits, seen=range(5), unseen=range(5, 10)),
  "emnist": ImageSet(
    builder=emnist.EmnistBalanced,
    files=(emnist.ARCHIVE,),
    registered=Registered(name="emnist/balanced", convert=emnist.upright),
    seen=range(10),
    unseen=range(10, emnist.NUM_CLASSES),
  ),
  "celeba": ImageSet(
    builder=celeba.Celeba32,
    files=(celeba.ARCHIVE, celeba.PARTITIONS),
    registered=Registered(name="celeb_a", convert=celeba.shrink),
    train="train+validation",
  ),
  "photos": ImageSet(builder=photos.PhotoPatches),
}


@functools.cache  # tasks of one process come back for the same images
def load(
  name: str,
  split: Split,
  data_dir: epath.PathLike,
  manual_dir: epath.PathLike = "",
  labels: range | None = None,
) -> np.ndarray:
  """The images of a split, prepared on first use.

  Args:
    name: of `IMAGE_SETS`.
    split: "train" or "test".
    data_dir: where TFDS keeps prepared data sets.
    manual_dir: where the official files are that a data set is prepared from.
    labels: the classes to take; None: all.

  Returns:
    `[n, H, W, E]` uint8, read-only.

  Raises:
    DataError: if the data cannot be found or read.
  """
  image_set = IMAGE_SETS[name]
  builder, convert = _prepared(image_set, data_dir, manual_dir)
  source = builder.as_data_source(image_set.train if split == "train" else split)
  images = np.stack(
    [
      convert(record["image"])
      for record in source
      if labels is None or int(record["label"]) in labels
    ]
  )
  images.flags.writeable = False
  return images


def _prepared(
  image_set: ImageSet, data_dir: epath.PathLike, manual_dir: epath.PathLike
) -> tuple[tfds.core.DatasetBuilder, Callable[[np.ndarray], np.ndarray]]:
  """A builder whose images are there, and what makes ours of them."""
  own = image_set.builder(data_dir=data_dir, file_format="array_record")
  if preparation.is_prepared(own):
    return own, np.asarray
  other = ""
  if image_set.registered:
    registered = tfds.builder(image_set.registered.name, data_dir=data_dir)
    if preparation.is_prepared(registered):
      return registered, image_set.registered.convert
    other = f" (nor is TFDS's {image_set.registered.name}, as array_record)"
  missing = [
    name for name in image_set.files if not (epath.Path(manual_dir) / name).exists()
  ]
  if missing:
    raise DataError(
      f"{own.name} is not prepared in {data_dir}{other}, and {manual_dir}"
      f" (--manual_dir) lacks {' and '.join(missing)}: put"
      f" {own.MANUAL_DOWNLOAD_INSTRUCTIONS} there and run the same command again"
    )
  preparation.prepare(own, manual_dir)
  return own, np.asarray
