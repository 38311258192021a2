"""What tasks on scattered points share: training on windows of all sizes.

A window is a part of all points. A model that has seen windows of all sizes, each with a
few hundred context points, can also read all points together.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import typing

from flax import linen as nn
import jax
import jax.numpy as jnp

from experiments.common import systems
from experiments.common import task as task_lib
from experiments.common.batch import Batch
from experiments.common.config import Config
from experiments.common.config import option
from experiments.common.errors import ConfigError
from experiments.data import augmentation
from experiments.data import windows
import tca_jax

# Defaults of a relative model that is trained on windows of tables or surfaces.
RELATIVE_RECIPE = dict(
  model="relative_tca",
  local_units=True,
  summary_width=0,
  batch_size=8,
  learning_rate=2e-3,
  densest=0.5,
  whole_map=0.2,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowConfig(Config):
  """Options of a task on scattered points."""

  PAPER: typing.ClassVar = dict(Config.PAPER, num_layers=0)

  UNUSED: typing.ClassVar = {"reward": "a regression"}

  num_context: int = option(
    "task",
    512,
    "Largest number of context points in a window.",
    at_least=windows.MIN_CONTEXT,
  )
  whole_map: float = option(
    "training",
    0.1,
    "Fraction of windows that are the whole map at the end of training; it increases"
    " from 0.",
    at_least=0,
    below=1,
  )
  densest: float = option(
    "training",
    0.25,
    "Fraction of windows whose context can be as dense as the map.",
    at_least=0,
    below=1,
  )
  full_context: float = option(
    "training",
    0.5,
    "Fraction of contexts that have --num_context points; the others have fewer.",
    at_least=0,
    below=1,
  )
  num_components: int = option(
    "model",
    0,
    "Number of normal distributions in a predicted mixture; 0: 1, or 3 for a relative"
    " model.",
    at_least=0,
  )
  eval_batches: int = option(
    "evaluation", 100, "Number of evaluation batches, in windows.", at_least=1
  )
  num_targets: int = option(
    "evaluation",
    8192,
    "Number of held-out points to predict on the whole map; 0: all.",
    at_least=0,
    needs={"mode": ("train", "eval")},
  )

  def __post_init__(self):
    super().__post_init__()
    if self.order == "given":
      raise ConfigError(
        "order must not be 'given', because the points are in random order"
      )
    if self.num_layers:
      raise ConfigError(
        "num_layers must be 0, because an encoder needs time quadratic in the number of"
        f" points; got {self.num_layers}"
      )


ConfigType = typing.TypeVar("ConfigType", bound=WindowConfig)


class WindowTask(task_lib.Task[ConfigType]):
  """A regression of points, with windows drawn on the device from points kept there.

  Attributes:
    map: has the `windows.Points` train and held_out, both in random order.
  """

  metric = "log_likelihood"
  map: typing.Any

  def _prepare(
    self,
    num_context: int,
    embedder: nn.Module,
    periods: Sequence[float],
    num_targets: int = windows.NUM_TARGETS,
    swaps: bool = True,
  ) -> None:
    """Makes the model and the samplers for the attributes `config` and `map`.

    Args:
      num_context: largest number of context points in a window.
      embedder: module that embeds points.
      periods: period of each axis, 0 for an axis that is not periodic.
      num_targets: number of targets in a window.
      swaps: whether axes may be swapped in training.
    """
    self._build_model(num_context, embedder, periods, self.map.train.values.shape[-1])
    self._sizes = dict(
      batch_size=self.config.batch_size,
      num_context=num_context,
      num_targets=num_targets,
    )
    self._swaps = swaps
    self._train, self._held_out = (
      windows.with_blocks(points) for points in (self.map.train, self.map.held_out)
    )
    self._sample = jax.jit(
      windows.sample, static_argnames=(*self._sizes, "densest", "full_context")
    )
    self._move = jax.jit(augmentation.random_rigid_motion, static_argnames="swaps")

  def _build_model(
    self,
    num_context: int,
    embedder: nn.Module,
    periods: Sequence[float],
    num_outputs: int,
  ) -> None:
    """Sets the attributes `max_context` and `model`."""
    self.max_context = num_context
    self.model = systems.build_model(
      self.config, num_context, embedder, self._head(num_outputs), periods
    )

  def _head(self, num_outputs: int) -> nn.Module:
    """The head that predicts the values."""
    config, dtype = self.config, jnp.dtype(self.config.dtype)
    num_components = config.num_components or (3 if self.system.is_relative else 1)
    if num_components == 1:
      return tca_jax.GaussianHead(num_outputs, min_std=0.01, dtype=dtype)
    return tca_jax.MixtureHead(num_outputs, num_components, min_std=0.01, dtype=dtype)

  def train_batch(self, rng: jax.Array, step: int) -> Batch:
    draw_rng, move_rng = jax.random.split(rng)
    batch = self._draw(draw_rng, None, **self._shares(step))
    return self._move(move_rng, batch, swaps=self._swaps)

  def _shares(self, step: int) -> dict[str, float]:
    """The shares of special windows in the batch of a step, see `windows.sample`."""
    return dict(
      # Small windows first: attention learns there which points are near.
      whole_map=self.config.whole_map * step / self.config.num_steps,
      densest=self.config.densest,
      full_context=self.config.full_context,
    )

  def eval_batches(self) -> Iterator[Batch]:
    for i in range(self.config.eval_batches):
      yield self._draw(self.eval_rng(i), self._held_out)

  def _draw(
    self, rng: jax.Array, held_out: windows.Points | None, **shares: float
  ) -> Batch:
    return self._sample(rng, self._train, held_out, **self._sizes, **shares)
