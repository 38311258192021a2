"""The copy task (Sec. 4.1): recall a sequence of symbols in reverse.

  python -m experiments.copy_task --workdir=runs/copy --model=tca --num_steps=500

trains on sequences of T = 64 and evaluates on 3,200 fresh ones: about a minute on
two CPU cores. The demo does the same; what it reached is in results/demo.json. With
--sequence_length=256 it takes some minutes and reads 8 of 128 tokens:
results/copy_t256_tca.json. T = 1024, a quarter of an hour, begins with the middles of
sequences: --sequence_length=1024 --batch_size=16 --num_steps=1000
--mixed_length_steps=500 --eval_batches=200, results/copy_t1024_tca.json.
"""

from collections.abc import Iterator
import dataclasses
import functools
import types

import jax
import jax.numpy as jnp

from experiments.common import launch
from experiments.common import task as task_lib
from experiments.common.config import Config
from experiments.common.config import ConfigError
from experiments.common.config import option
from experiments.data import copy
import tca_jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyConfig(Config):
  """The options of the copy task."""

  PAPER = types.MappingProxyType(
    Config.PAPER | dict(num_layers=0, batch_size=128, adam_b1=0.1, dropout=0.1)
  )

  sequence_length: int = option(
    64, "T, even: half to read, half to recall.", at_least=4
  )
  teacher_temperature: float = option(
    0.5, "Of the leaf attention that the routing loss distils.", at_least=0.01
  )
  position_skip: bool = option(
    True, "Whether positions also go around the embedder's second MLP."
  )
  tree_order: str = option("given", "How the tree is built.", ("given", "kd", "random"))
  mixed_length_steps: int = option(
    0, "Steps at first that show the middles of sequences alone.", at_least=0
  )

  def __post_init__(self):
    super().__post_init__()
    if self.sequence_length % 2:
      raise ConfigError(f"sequence_length must be even, got {self.sequence_length}")
    if self.eval_batches == 0:
      raise ConfigError("eval_batches must be at least 1: fresh sequences never end")


class CopyTask(task_lib.Task[CopyConfig]):
  """Sequences drawn on the device."""

  metric = "accuracy"

  def __init__(self, config: CopyConfig):
    self.config = config
    self.max_context = config.sequence_length // 2
    dtype = jnp.dtype(config.dtype)
    self.model = task_lib.build_model(
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

  def train_batch(self, step: int) -> task_lib.Batch:
    key = jax.random.fold_in(self.key("train", step), 0)
    mixed_lengths = step < self.config.mixed_length_steps
    return self._sample(key, mixed_lengths=mixed_lengths)

  def eval_batches(self) -> Iterator[task_lib.Batch]:
    for i in range(self.config.eval_batches):
      yield self._sample(self.key("eval", i))


if __name__ == "__main__":
  launch.start(CopyConfig, CopyTask)
