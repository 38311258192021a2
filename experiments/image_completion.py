"""Image completion (Sec. 4.2): predict pixels, with uncertainty, from a few others.

  python -m experiments.image_completion --workdir=runs/image --model=tca

trains on real MNIST digits 0-4 and evaluates on held-out digits of the same
classes (--dataset=mnist_seen) or of classes never seen (mnist_unseen). About 15
minutes on two free CPU cores; what it reached is in results/image_tca.json.
"""

from collections.abc import Iterator
import dataclasses
import types

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import launch
from experiments.common import task as task_lib
from experiments.common.config import Config
from experiments.common.config import ConfigError
from experiments.common.config import option
from experiments.data import images
import tca_jax
from tca_jax import objectives

# The classes that each data set evaluates; all train on the classes seen.
SEEN, UNSEEN = range(5), range(5, 10)
DATASETS = {"mnist_seen": SEEN, "mnist_unseen": UNSEEN}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
  """The options of image completion."""

  # 200 epochs of the 2,000 digits.
  PAPER = types.MappingProxyType(
    Config.PAPER
    | dict(num_steps=4000, batch_size=100, clip_norm=0.0, num_frequencies=0)
  )

  dataset: str = option(
    "mnist_seen",
    "Held-out digits of the classes trained on (0-4), or of the others (5-9).",
    choices=tuple(DATASETS),
    recipe=False,
  )
  data_dir: str = option("data", "Where TFDS keeps prepared data sets.", recipe=False)
  num_steps: int = option(2200, "Training steps.", at_least=1)
  batch_size: int = option(8, "Images a step, over all devices.", at_least=1)
  num_frequencies: int = option(
    3, "Fourier features of the coordinates; the paper has none.", at_least=0
  )
  num_layers: int = option(2, "Transformer layers of the encoder.", at_least=0)
  baseline: str = option("leaf", "Of REINFORCE.", choices=objectives.BASELINES)
  eval_batches: int = option(
    0, "Batches of the evaluation; 0: the whole test set.", at_least=0, recipe=False
  )

  def __post_init__(self):
    super().__post_init__()
    if self.tree_order == "given":
      raise ConfigError("tree_order 'given' has no meaning for pixels in random order")


class ImageTask(task_lib.Task[ImageConfig]):
  """Pixels drawn on the device, of images that are kept there."""

  metric = "log_likelihood"
  max_context = images.MAX_CONTEXT

  def __init__(self, config: ImageConfig):
    self.config = config
    dtype = jnp.dtype(config.dtype)
    train_images = images.load_digits("train", config.data_dir, SEEN)
    self._train_images = jnp.asarray(train_images)
    self.model = task_lib.build_model(
      config,
      self.max_context,
      tca_jax.PointEmbedder(num_frequencies=config.num_frequencies, dtype=dtype),
      tca_jax.GaussianHead(train_images.shape[-1], dtype=dtype),
    )
    self._sample = jax.jit(images.sample)

    def draw(key: jax.Array, data: jax.Array) -> task_lib.Batch:
      index_rng, pixel_rng = jax.random.split(key)
      index = jax.random.choice(
        index_rng, data.shape[0], (config.batch_size,), replace=False
      )
      return images.sample(pixel_rng, data[index])

    self._draw = jax.jit(draw)

  def train_batch(self, step: int) -> task_lib.Batch:
    key = jax.random.fold_in(self.key("train", step), 0)
    return self._draw(key, self._train_images)

  def eval_batches(self) -> Iterator[task_lib.Batch]:
    test = self.test_images()
    size = self.config.batch_size
    starts = range(0, len(test), size)
    for i, start in enumerate(starts[: self.config.eval_batches or None]):
      part = test[start : start + size]
      missing = size - len(part)
      padded = np.pad(part, [(0, missing)] + [(0, 0)] * 3)
      batch = self._sample(self.key("eval", i), padded)
      present = (np.arange(size) < len(part))[:, None]
      yield batch.replace(query_mask=batch.query_mask & present)

  def test_images(self) -> np.ndarray:
    """`[n, 28, 28, 1]` uint8, the held-out images of the data set."""
    classes = DATASETS[self.config.dataset]
    return images.load_digits("test", epath.Path(self.config.data_dir), classes)


if __name__ == "__main__":
  launch.start(ImageConfig, ImageTask)
