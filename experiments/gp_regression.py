"""GP regression (Sec. 4.2): predict functions, with uncertainty, from a few points.

  python -m experiments.gp_regression --workdir=runs/gp --model=tca

trains on functions of an RBF process and evaluates on 48,000 fresh ones, of the same
process or, with --kernel=matern52, of a rougher one. Less than an hour on a CPU core;
what it reached is in results/gp_tca.json, and functions.png shows two predictions.
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
from experiments.common.config import option
from experiments.data import gp
import tca_jax
from tca_jax import objectives


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPConfig(Config):
  """The options of GP regression."""

  PAPER = types.MappingProxyType(
    Config.PAPER
    | dict(sizes="batch", num_frequencies=0, batch_size=16, eval_batches=3000)
  )

  kernel: str = option(
    "rbf", "Of the evaluation; training is always on rbf.", gp.KERNELS, recipe=False
  )
  sizes: str = option(
    "example", "Whether each example has its own size, or one a batch.", gp.SIZES
  )
  num_frequencies: int = option(
    4, "Fourier features of the coordinates; the paper has none.", at_least=0
  )
  num_steps: int = option(100_000, "Training steps.", at_least=1)
  learning_rate: float = option(1e-3, "The peak, after warm-up.", at_least=0)
  batch_size: int = option(8, "Functions a step, over all devices.", at_least=1)
  num_layers: int = option(6, "Transformer layers of the encoder.", at_least=0)
  baseline: str = option("leaf", "Of REINFORCE.", choices=objectives.BASELINES)
  eval_batches: int = option(
    6000, "Batches of the evaluation, of one size each.", at_least=1, recipe=False
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
      task_lib.build_point_embedder(config, config.num_frequencies),
      tca_jax.GaussianHead(1, min_std=None, dtype=dtype),
    )
    sample = functools.partial(gp.sample, batch_size=config.batch_size)
    self._sample = jax.jit(sample, static_argnames=("shape", "kernel", "sizes"))

  def train_batch(self, step: int) -> task_lib.Batch:
    batch, _ = self._sample(
      jax.random.fold_in(self.key("train", step), 0),
      shape=gp.draw_shape((self.config.seed, 0, step)),
      kernel="rbf",
      sizes=self.config.sizes,
    )
    return batch

  def eval_batches(self) -> Iterator[task_lib.Batch]:
    kernel = typing.cast(gp.Kernel, self.config.kernel)
    for i in range(self.config.eval_batches):
      batch, process = self._sample(
        self.key("eval", i),
        shape=gp.draw_shape((self.config.eval_seed, 1, i)),
        kernel=kernel,
        sizes="batch",
      )
      mean, std = gp.predictive(batch, process, kernel)
      ceiling = objectives.gaussian_log_likelihood(
        jnp.asarray(mean[..., None], jnp.float32),
        jnp.asarray(std[..., None], jnp.float32),
        batch.targets,
      )
      yield batch.replace(ceiling=ceiling)

  def draw(self, params: typing.Any, folder: epath.Path) -> None:
    """Draws functions.png: two functions completed, and what TCA read."""
    if self.config.model == "tca":
      fits = [self._fit(params, num_context) for num_context in (8, 30)]
      plots.plot_functions(fits, folder / "functions.png")

  def _fit(self, params: typing.Any, num_context: int) -> plots.FunctionFit:
    """Predicts a function of the evaluation's process from some of its points."""
    kernel = typing.cast(gp.Kernel, self.config.kernel)
    rng = np.random.default_rng(num_context)
    process = gp.Process(length_scale=np.array([0.3]), scale=np.array([0.8]))
    x = np.linspace(-2, 2, 401)[None]
    covariance = gp.covariances(x, x, process, kernel, np)[0]
    truth = rng.multivariate_normal(np.zeros(x.size), covariance)
    chosen = np.sort(rng.choice(x.size, num_context, replace=False))
    noise = gp.NOISE * rng.normal(size=num_context)
    batch = task_lib.Batch(
      coords=jnp.asarray(x[:, chosen, None], jnp.float32),
      values=jnp.asarray((truth[chosen] + noise)[None, :, None], jnp.float32),
      mask=jnp.ones((1, num_context), bool),
      query_coords=jnp.asarray(x[..., None], jnp.float32),
      targets=jnp.asarray(truth[None, :, None], jnp.float32),
      query_mask=jnp.ones((1, x.size), bool),
    )

    index, read = (task_lib.jitted(self, method) for method in ("index", "read"))
    memory = index(params, batch.coords, batch.values, batch.mask)
    prediction = read(params, memory, batch.query_coords)
    prediction, trees = jax.device_get((prediction, memory.tree))
    exact_mean, exact_std = gp.predictive(batch, process, kernel)
    queries = {}
    for query in (60, 200, 340):
      nodes = plots.nodes_read(prediction.reading.walk, trees, 0, query)
      queries[x[0, query]] = [(level, x[0, chosen[tokens]]) for level, tokens in nodes]
    return plots.FunctionFit(
      x=x[0],
      truth=truth,
      mean=prediction.output.mean[0, :, 0],
      std=prediction.output.std[0, :, 0],
      exact_mean=exact_mean[0],
      exact_std=exact_std[0],
      context=np.stack([x[0, chosen], truth[chosen] + noise], axis=-1),
      queries=queries,
      depth=trees.depth,
    )


if __name__ == "__main__":
  launch.start(GPConfig, GPTask)
