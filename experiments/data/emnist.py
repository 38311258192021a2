"""EMNIST-balanced from its official archive: a TFDS builder."""

import gzip
import math
import zipfile
import zlib

from etils import epath
import numpy as np
import tensorflow_datasets as tfds

from experiments.common.errors import DataError

ARCHIVE = "gzip.zip"
NUM_CLASSES = 47
_UNSIGNED_BYTE = 0x08


class EmnistBalanced(tfds.core.GeneratorBasedBuilder):
  """EMNIST-balanced: handwritten digits and letters, 28x28 grey, upright."""

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"{ARCHIVE} (562 MB) from NIST's EMNIST page"

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Tensor(
            shape=(28, 28, 1), dtype=np.uint8, encoding="bytes"
          ),
          "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
    )

  def _split_generators(self, dl_manager):
    archive = dl_manager.manual_dir / ARCHIVE
    return {
      split: self._generate_examples(*read_split(archive, split))
      for split in ("train", "test")
    }

  def _generate_examples(self, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {"image": image, "label": int(label)}


def upright(images: np.ndarray) -> np.ndarray:
  """Transposes images `[..., 28, 28, 1]`: EMNIST stores them with swapped axes."""
  return np.swapaxes(images, -3, -2)


def read_split(archive: epath.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
  """Reads a split of the official archive.

  Args:
    archive: the path of gzip.zip.
    split: "train" or "test".

  Returns:
    Images `[n, 28, 28, 1]` uint8, upright, and labels `[n]` uint8.

  Raises:
    DataError: if the archive cannot be read or contains arrays of another shape.
  """
  member = f"gzip/emnist-balanced-{split}-{{}}-ubyte.gz"
  images = _read_idx(archive, member.format("images-idx3"), 3)
  labels = _read_idx(archive, member.format("labels-idx1"), 1)
  shape = (len(labels), 28, 28)
  if not len(labels):
    raise DataError(f"{archive}: the {split} split is empty; download {ARCHIVE} again")
  if images.shape != shape or labels.max(initial=0) >= NUM_CLASSES:
    raise DataError(
      f"{archive}: the {split} split must contain images of shape {shape} and labels"
      f" below {NUM_CLASSES}, got the shape {images.shape} and labels up to"
      f" {labels.max(initial=0)}"
    )
  return upright(images[..., None]), labels


def _read_idx(archive: epath.Path, member: str, rank: int) -> np.ndarray:
  """Reads an IDX file of bytes: 0, 0, type, rank, big-endian sizes, content."""
  try:
    with zipfile.ZipFile(archive) as files:
      content = gzip.decompress(files.read(member))
  except (  # a RuntimeError: the archive is encrypted
    KeyError, OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile
  ) as error:  # fmt: skip
    raise DataError(
      f"{archive}: {member} cannot be read ({error}); download {ARCHIVE} again"
    ) from error
  magic, start = bytes([0, 0, _UNSIGNED_BYTE, rank]), 4 + 4 * rank
  if content[:4] != magic or len(content) < start:
    raise DataError(
      f"{archive}: {member} must start with {magic.hex()} and {rank} sizes, got"
      f" {content[:start].hex()}"
    )
  shape = tuple(np.frombuffer(content, ">u4", rank, offset=4).tolist())
  size = math.prod(shape)  # NumPy's product would overflow
  if len(content) - start != size:
    raise DataError(
      f"{archive}: {member} must contain the {size} bytes of the shape {shape},"
      f" got {len(content) - start}"
    )
  return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
