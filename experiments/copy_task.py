"""Copy task (Sec. 4.1): recall a sequence of symbols in reverse.

  python -m experiments.copy_task --workdir=runs/copy --model=tca --num_steps=500

Trains on sequences of length T = 64 and evaluates on 3,200 new ones. This takes about
a minute on two CPU cores; results/demo_copy_tca.json has the result.

Longer sequences:

  --sequence_length=256 --num_steps=500
      A few minutes; a query reads 8 of 128 tokens. Result: results/copy_t256_tca.json.
  --sequence_length=1024 --batch_size=16 --num_steps=1000 --mixed_length_steps=500
      --eval_batches=200
      A quarter of an hour. Training starts with the middle parts of sequences. Result:
      results/copy_t1024_tca.json.
"""

from collections.abc import Iterator
import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp

from experiments.common import beam_search
from experiments.common import evaluate as evaluate_lib
from experiments.common import launch
from experiments.common import systems
from experiments.common import task as task_lib
from experiments.common.batch import Batch
from experiments.common.config import Config
from experiments.common.config import option
from experiments.common.errors import ConfigError
from experiments.data import copy
import tca_jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyConfig(Config):
  """Options of the copy task."""

  DEFAULTS: typing.ClassVar = dict(teacher_temperature=0.5, position_skip=True)
  PAPER: typing.ClassVar = dict(
    Config.PAPER, num_layers=0, batch_size=128, adam_b1=0.1, dropout=0.1
  )

  sequence_length: int = option(
    "task",
    64,
    "Sequence length T, even: T/2 tokens to read and T/2 symbols to recall.",
    at_least=4,
  )
  order: typing.Literal["given", "kd", "random"] = option(
    "model",
    "given",
    "Order of the tokens in the tree's leaves: the order of the sequence (given), a"
    " k-d tree (kd) or random.",
    models=("tca",),
  )
  mixed_length_steps: int = option(
    "training",
    0,
    "Number of initial training steps that show only middle parts of sequences, of"
    " random length.",
    at_least=0,
  )

  def __post_init__(self):
    super().__post_init__()
    if self.sequence_length % 2:
      raise ConfigError(f"sequence_length must be even, got {self.sequence_length}")
    if self.eval_batches == 0:
      raise ConfigError(
        "eval_batches must be at least 1, because new sequences never end; got 0"
      )


class CopyTask(task_lib.Task[CopyConfig]):
  """The copy task, with sequences drawn on the device."""

  metric = "accuracy"
  evaluators = (evaluate_lib.TestMetrics(), beam_search.BeamWidths())

  def __init__(self, config: CopyConfig):
    self.config = config
    self.max_context = config.sequence_length // 2
    dtype = jnp.dtype(config.dtype)
    self.model = systems.build_model(
      config,
      self.max_context,
      tca_jax.SequenceEmbedder(
        num_features=copy.NUM_CLASSES,
        position_skip=config.position_skip,
        dtype=dtype,
      ),
      tca_jax.ClassificationHead(copy.NUM_CLASSES, dtype=dtype),
    )
    self._sample = jax.jit(
      functools.partial(
        copy.sample,
        batch_size=config.batch_size,
        sequence_length=config.sequence_length,
      ),
      static_argnames="mixed_lengths",
    )

  def train_batch(self, rng: jax.Array, step: int) -> Batch:
    return self._sample(rng, mixed_lengths=step < self.config.mixed_length_steps)

  def eval_batches(self) -> Iterator[Batch]:
    for i in range(self.config.eval_batches):
      yield self._sample(self.eval_rng(i))

  @property
  def inputs(self) -> dict[str, typing.Any]:
    symbols = [f"symbol {i}" for i in range(copy.NUM_SYMBOLS)]
    return {
      "coords": {
        "axes": ["position"],
        "range": [[0, self.config.sequence_length - 1]],
        "unit": "symbol",
      },
      "values": {
        "channels": copy.NUM_CLASSES,
        "mean": 0.0,
        "std": 1.0,
        "unit": "one-hot class",
      },
      "classes": ["start", "end", *symbols],
    }


PROGRAM = launch.Program(CopyConfig, CopyTask)
train, evaluate = PROGRAM.train, PROGRAM.evaluate

if __name__ == "__main__":
  PROGRAM.main()
