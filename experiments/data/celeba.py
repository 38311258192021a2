"""CelebA from its official files, resized to 32x32: a TFDS builder."""

import io
import zipfile
import zlib

from etils import epath
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from experiments.common.errors import DataError

SIZE = 32
ARCHIVE, PARTITIONS = "img_align_celeba.zip", "list_eval_partition.txt"
FULL_SIZE = (178, 218)  # width and height of the aligned and cropped images
_SPLITS = {"0": "train", "1": "validation", "2": "test"}


class Celeba32(tfds.core.GeneratorBasedBuilder):
  """CelebA: aligned and cropped images, resized as a whole to 32x32 RGB."""

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f"{ARCHIVE} (1.4 GB; Align&Cropped Images) and {PARTITIONS} (2.8 MB; Eval) from the"
    " CelebA page"
  )

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Tensor(
            shape=(SIZE, SIZE, 3), dtype=np.uint8, encoding="bytes"
          )
        }
      ),
      homepage="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    )

  def _split_generators(self, dl_manager):
    archive = dl_manager.manual_dir / ARCHIVE
    names = read_partitions(dl_manager.manual_dir / PARTITIONS, archive)
    return {
      split: self._generate_examples(archive, split_names)
      for split, split_names in names.items()
    }

  def _generate_examples(self, archive, names):
    with zipfile.ZipFile(archive) as files:
      for name in names:
        yield name, {"image": shrink(_read_image(files, name))}


def shrink(image: np.ndarray) -> np.ndarray:
  """Resizes a whole image with antialiasing: `[H, W, 3]` to `[32, 32, 3]` uint8."""
  resized = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
  return np.asarray(resized)


def read_partitions(
  partitions: epath.Path, archive: epath.Path
) -> dict[str, list[str]]:
  """Reads the names of the images of each split.

  Args:
    partitions: the file with an image name and a partition per line.
    archive: the archive of the images.

  Returns:
    The image names of "train", "validation" and "test"; the archive contains them all.

  Raises:
    DataError: if a file cannot be read, if a line is not an image name and a
      partition, if a name is repeated, if the archive lacks an image or has others, or
      if a split is empty.
  """
  try:
    with zipfile.ZipFile(archive) as files:
      members = set(files.namelist())
  except (OSError, zipfile.BadZipFile) as error:
    raise DataError(f"{archive} cannot be read ({error}); download it again") from error
  names: dict[str, list[str]] = {split: [] for split in _SPLITS.values()}
  listed = set()
  try:
    # Some editors begin a file with a byte order mark.
    lines = partitions.read_bytes().decode("utf-8-sig").rstrip().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(
      f"{partitions} cannot be read ({error}); download it again"
    ) from error
  for i, line in enumerate(lines, start=1):
    fields = line.split()
    if len(fields) != 2 or fields[1] not in _SPLITS or fields[0] in listed:
      raise DataError(
        f"{partitions}, line {i}: must be the name of an image not listed before and a"
        f" partition of {', '.join(_SPLITS)}, got {line!r}"
      )
    name, partition = fields
    if _member(name) not in members:
      raise DataError(
        f"{partitions}, line {i}: {_member(name)} is not in {archive}; download both again"
      )
    listed.add(name)
    names[_SPLITS[partition]].append(name)
  images = [name for name in members if not name.endswith("/")]
  if len(listed) < len(images):
    raise DataError(
      f"{partitions} lists {len(listed):,} of the {len(images):,} images in {archive};"
      " download it again"
    )
  if not all(names.values()):
    raise DataError(
      f"{partitions} lists no images of a partition, only"
      f" {', '.join(f'{len(x)} of {split}' for split, x in names.items())}; download it"
      " again"
    )
  return names


def _member(name: str) -> str:
  return f"img_align_celeba/{name}"


def _read_image(files: zipfile.ZipFile, name: str) -> np.ndarray:
  """Reads an image of the archive at its full size, `[218, 178, 3]` uint8."""
  try:
    with Image.open(io.BytesIO(files.read(_member(name)))) as image:
      pixels = np.asarray(image.convert("RGB"))
  except (OSError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
    raise DataError(
      f"{files.filename}: {name} cannot be read ({error}); download {ARCHIVE} again"
    ) from error
  if pixels.shape[1::-1] != FULL_SIZE:
    raise DataError(
      f"{files.filename}: {name} must be {FULL_SIZE} pixels, got {pixels.shape[1::-1]};"
      " use the aligned and cropped images"
    )
  return pixels
