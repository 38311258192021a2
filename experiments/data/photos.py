"""Patches of photographs from scikit-image and scikit-learn: a TFDS builder."""

import pathlib

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from experiments.data import packages

SIZE = 32

# Each photograph belongs to one split as a whole. The stereo pair motorcycle_left and
# motorcycle_right shows one scene, so that only one of the two is used.
PHOTOS = {
  "train": (
    "coffee.png",
    "flower.jpg",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
  ),
  "test": ("astronaut.png", "chelsea.png", "china.jpg"),
}


class PhotoPatches(tfds.core.GeneratorBasedBuilder):
  """Disjoint 32x32 RGB patches of ten photographs: 4,110 to train, 642 to test."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    names = sorted(name for split in PHOTOS.values() for name in split)
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Tensor(
            shape=(SIZE, SIZE, 3), dtype=np.uint8, encoding="bytes"
          ),
          "photo": tfds.features.ClassLabel(names=names),
        }
      ),
      homepage="https://scikit-image.org/docs/stable/api/skimage.data.html",
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    return {
      split: self._generate_examples({name: find_photo(name) for name in names})
      for split, names in PHOTOS.items()
    }

  def _generate_examples(self, paths):
    for name, path in paths.items():
      with Image.open(path) as photo:
        pixels = np.asarray(photo.convert("RGB"))
      for i, patch in enumerate(cut(pixels)):
        yield f"{name}-{i}", {"image": patch, "photo": name}


def find_photo(name: str) -> pathlib.Path:
  """Finds the file of a photograph.

  Args:
    name: one of the names in `PHOTOS`.

  Raises:
    DataError: if the package that ships it is not installed or lacks the file.
  """
  if name in ("china.jpg", "flower.jpg"):
    path = f"datasets/images/{name}"
    return packages.find_file("sklearn", path, "scikit-learn==1.9.1")
  return packages.find_file("skimage", f"data/{name}", "scikit-image==0.26.0")


def cut(pixels: np.ndarray) -> np.ndarray:
  """Cuts disjoint patches, row by row; the right and lower margins are left out.

  Args:
    pixels: `[H, W, E]`.

  Returns:
    `[n, 32, 32, E]`.

  >>> cut(np.zeros((70, 96, 3))).shape
  (6, 32, 32, 3)
  """
  rows, columns = pixels.shape[0] // SIZE, pixels.shape[1] // SIZE
  whole = pixels[: rows * SIZE, : columns * SIZE]
  grid = whole.reshape(rows, SIZE, columns, SIZE, -1).swapaxes(1, 2)
  return grid.reshape(rows * columns, SIZE, SIZE, -1)
