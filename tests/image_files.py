"""Small archives with the layout of the official files of EMNIST and CelebA."""

import gzip
import io
import zipfile

import numpy as np
from PIL import Image

from experiments.data import celeba

CELEBA = {"0": (1, 2, 5), "1": (3,), "2": (4, 6)}  # numbers of images, by partition


def glyph(label, split):
  """An upright L; two pixels in the upper right corner encode split and label."""
  image = np.zeros((28, 28), np.uint8)
  image[4:24, 6] = image[23, 6:14] = 255
  image[0, 26:] = ("train", "test").index(split), label
  return image


def idx(array, magic=None):
  """An IDX file of bytes."""
  start = magic or bytes([0, 0, 8, array.ndim])
  return start + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def emnist_members(per_class=2):
  """The files of the archive, by name."""
  members = {}
  for split in ("train", "test"):
    labels = np.repeat(np.arange(47, dtype=np.uint8), per_class)
    stored = np.stack([glyph(label, split).T for label in labels])
    members[f"gzip/emnist-balanced-{split}-images-idx3-ubyte.gz"] = idx(stored)
    members[f"gzip/emnist-balanced-{split}-labels-idx1-ubyte.gz"] = idx(labels)
  return members


def write_emnist(folder, members):
  """Writes the archive."""
  with zipfile.ZipFile(folder / "gzip.zip", "w") as files:
    for name, content in members.items():
      files.writestr(name, gzip.compress(content))


def face(i, size=celeba.FULL_SIZE):
  """A JPEG file of one colour, which depends on i, with a dark upper half."""
  width, height = size
  pixels = np.full((height, width, 3), (40 * i, 255 - 40 * i, 128), np.uint8)
  pixels[: height // 2] //= 4
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "JPEG")
  return file.getvalue()


def write_celeba(folder, change=None, partitions=None):
  """Writes the archive and the list, with other images or other lines."""
  numbers = [i for group in CELEBA.values() for i in group]
  faces = {f"{i:06}.jpg": face(i) for i in numbers} | (change or {})
  with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as files:
    for name, content in faces.items():
      if content is not None:
        files.writestr(f"img_align_celeba/{name}", content)
  rows = {i: partition for partition, group in CELEBA.items() for i in group}
  lines = [f"{i:06}.jpg {rows[i]}" for i in sorted(rows)]
  text = "\n".join(partitions or lines) + "\n"
  (folder / "list_eval_partition.txt").write_text(text)
