"""GP regression (Sec. 4.2): predict functions, with uncertainty, from a few points.

  python -m experiments.gp_regression --workdir=runs/gp --model=tca

trains on functions of an RBF process and evaluates on 48,000 fresh ones, of the same
process or, with --kernel=matern52, of a rougher one.
"""

from collections.abc import Iterator
import dataclasses
import functools
import types
import typing

import jax
import jax.numpy as jnp

from experiments.common import launch
from experiments.common import task as task_lib
from experiments.common.config import Config
from experiments.common.config import option
from experiments.data import gp
import tca_jax
from tca_jax import objectives


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPConfig(Config):
  """The options of GP regression."""

  PAPER = types.MappingProxyType(Config.PAPER | dict(one_size=True))

  kernel: str = option(
    "rbf", "Of the evaluation; training is always on rbf.", gp.KERNELS, recipe=False
  )
  one_size: bool = option(
    False, "Whether a training batch has one size, or every example its own."
  )
  num_frequencies: int = option(
    0, "Fourier features of the coordinates; the paper has none.", at_least=0
  )
  num_steps: int = option(20_000, "Training steps.", at_least=1)
  batch_size: int = option(16, "Functions a step, over all devices.", at_least=1)
  num_layers: int = option(6, "Transformer layers of the encoder.", at_least=0)
  baseline: str = option("leaf", "Of REINFORCE.", choices=objectives.BASELINES)
  eval_batches: int = option(
    3000, "Batches of the evaluation, of one size each.", at_least=1, recipe=False
  )


class GPTask(task_lib.Task[GPConfig]):
  """Functions drawn on the device."""

  metric = "log_likelihood"
  max_context = gp.MAX_CONTEXT

  def __init__(self, config: GPConfig):
    self.config = config
    dtype = jnp.dtype(config.dtype)
    self.model = task_lib.build_model(
      config,
      self.max_context,
      tca_jax.PointEmbedder(num_frequencies=config.num_frequencies, dtype=dtype),
      tca_jax.GaussianHead(1, min_std=None, dtype=dtype),
    )
    sample = functools.partial(gp.sample, batch_size=config.batch_size)
    self._sample = jax.jit(sample, static_argnames=("shape", "kernel", "one_size"))

  def train_batch(self, step: int) -> task_lib.Batch:
    batch, _ = self._sample(
      jax.random.fold_in(self.key("train", step), 0),
      shape=gp.draw_shape((self.config.seed, 0, step)),
      kernel="rbf",
      one_size=self.config.one_size,
    )
    return batch

  def eval_batches(self) -> Iterator[task_lib.Batch]:
    kernel = typing.cast(gp.Kernel, self.config.kernel)
    for i in range(self.config.eval_batches):
      batch, process = self._sample(
        self.key("eval", i),
        shape=gp.draw_shape((self.config.eval_seed, 1, i)),
        kernel=kernel,
        one_size=True,
      )
      mean, std = gp.predictive(batch, process, kernel)
      ceiling = objectives.gaussian_log_likelihood(
        jnp.asarray(mean[..., None], jnp.float32),
        jnp.asarray(std[..., None], jnp.float32),
        batch.targets,
      )
      yield batch.replace(ceiling=ceiling)


if __name__ == "__main__":
  launch.start(GPConfig, GPTask)
