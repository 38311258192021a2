"""Training of a model that reads functions of one to six inputs from a few of their values.

  python -m experiments.black_box --workdir=runs/black_box

This task is not in the paper. It trains one relative model on random functions, which are
observed as an optimiser observes a function that it minimises
(`data/random_functions.py`). `experiments.bayesopt` uses the model as the surrogate of
Bayesian optimisation: nothing is fitted to the function that is optimised. Predictions
follow any shift and scale of the values, so that they need no standardisation.
"""

from collections.abc import Iterator
import dataclasses
import functools
import typing

import jax

from experiments import window_task
from experiments.common import beam_search
from experiments.common import evaluate as evaluate_lib
from experiments.common import launch
from experiments.common import systems
from experiments.common.batch import Batch
from experiments.common.config import option
from experiments.common.errors import ConfigError
from experiments.data import random_functions

_NUM_TARGETS = 64  # of each function


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlackBoxConfig(window_task.WindowConfig):
  """Options of the training on random functions."""

  DEFAULTS: typing.ClassVar = dict(
    model="relative_tca",
    local_units=True,
    sees_scale=False,
    summary_width=0,
    batch_size=16,
    learning_rate=2e-3,
    full_context=0.2,
    num_steps=2_000,
  )

  UNUSED: typing.ClassVar = {
    **window_task.WindowConfig.UNUSED,
    **dict.fromkeys(
      ("whole_map", "densest", "num_targets"), "functions, which have no map"
    ),
  }

  num_inputs: int = option(
    "task", 6, "Largest number of inputs of a function.", at_least=1
  )

  def __post_init__(self):
    super().__post_init__()
    if not systems.SYSTEMS[self.model].is_relative:
      raise ConfigError(
        f"model must be relative_tca or relative_ca for functions, got {self.model!r}"
      )


class BlackBoxTask(window_task.WindowTask[BlackBoxConfig]):
  """Random functions of one to num_inputs inputs."""

  evaluators = (evaluate_lib.TestMetrics(), beam_search.BeamWidths())

  def __init__(self, config: BlackBoxConfig):
    self.config = config
    embedder = systems.build_point_embedder(config, num_frequencies=0)
    self._build_model(config.num_context, embedder, periods=(), num_outputs=1)
    sample = functools.partial(
      random_functions.sample,
      batch_size=config.batch_size,
      num_context=config.num_context,
      num_targets=_NUM_TARGETS,
      num_axes=config.num_inputs,
    )
    self._sample = jax.jit(sample, static_argnames=("full_context", "min_axes"))

  def train_batch(self, rng: jax.Array, step: int) -> Batch:
    return self._sample(rng, full_context=self.config.full_context)

  def eval_batches(self) -> Iterator[Batch]:
    for i in range(self.config.eval_batches):
      yield self._sample(self.eval_rng(i), full_context=0.0)

  @property
  def inputs(self) -> dict[str, typing.Any]:
    """As in `Task`; unused coordinates are 0, and values may have any unit."""
    axes = [f"x{i + 1}" for i in range(self.config.num_inputs)]
    return {
      "coords": {"axes": axes, "range": [[0, 1]] * len(axes), "unit": "none"},
      "values": {"channels": 1, "unit": "any"},
    }


PROGRAM = launch.Program(BlackBoxConfig, BlackBoxTask)
train, evaluate = PROGRAM.train, PROGRAM.evaluate

if __name__ == "__main__":
  PROGRAM.main()
