r"""GP regression (Sec. 4.2): predict functions, with uncertainty, from a few points.

  python -m experiments.gp_regression --workdir=runs/gp --model=tca

Trains on functions drawn from a Gaussian process with an RBF kernel and evaluates on
48,000 new ones. This takes less than an hour on one CPU core; results/gp_tca.json has
the result. With --kernel=matern52, evaluation uses rougher functions. functions.png
shows two predictions and the nodes that TCA read.

Closest to the exact posterior, with a fifth of the steps, is

  python -m experiments.gp_regression --workdir=runs/relative --model=relative_tca \
    --beam_width=1 --border_tokens=2 --summary_width=32 --num_layers=0 \
    --fits_covariance --num_steps=20000
"""

from collections.abc import Iterator
import dataclasses
import functools
import typing

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import beam_search
from experiments.common import evaluate as evaluate_lib
from experiments.common import launch
from experiments.common import systems
from experiments.common import task as task_lib
from experiments.common.batch import Batch
from experiments.common.config import Config
from experiments.common.config import option
from experiments.data import gp
from experiments.figures import functions
import tca_jax
from tca_jax import objectives


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPConfig(Config):
  """Options of GP regression."""

  DEFAULTS: typing.ClassVar = dict(
    num_layers=6,
    num_steps=100_000,
    batch_size=8,
    learning_rate=1e-3,
    baseline="leaf",
  )
  PAPER: typing.ClassVar = dict(
    Config.PAPER, sizes="batch", num_frequencies=0, batch_size=16, eval_batches=3000
  )

  UNUSED: typing.ClassVar = {"reward": "a regression"}

  kernel: gp.Kernel = option(
    "evaluation", "rbf", "Kernel of the evaluation; training always uses rbf."
  )
  num_frequencies: int = option(
    "model",
    4,
    "Number of frequencies of the Fourier features of coordinates; 0, as in the paper:"
    " no Fourier features.",
    at_least=0,
  )
  sizes: gp.Sizes = option(
    "training",
    "example",
    "Random context sizes: one for each example, or one for a whole batch.",
  )
  eval_batches: int = option(
    "evaluation",
    6000,
    "Number of evaluation batches; each has one context size.",
    at_least=1,
  )


class FunctionFigure(task_lib.Evaluator["GPTask"]):
  """Two functions predicted by TCA, and the nodes read; draws functions.png."""

  file = "functions.png"
  needs_tree = True

  def evaluate(self, restored: task_lib.Restored["GPTask"], path: epath.Path) -> None:
    """Draws the figure."""
    fits = [_fit(restored.task, restored.params, n) for n in (8, 30)]
    functions.plot_functions(fits, path)


class GPTask(task_lib.Task[GPConfig]):
  """GP regression, with functions drawn on the device."""

  metric = "log_likelihood"
  max_context = gp.MAX_CONTEXT
  evaluators = (evaluate_lib.TestMetrics(), FunctionFigure(), beam_search.BeamWidths())

  def __init__(self, config: GPConfig):
    self.config = config
    dtype = jnp.dtype(config.dtype)
    self.model = systems.build_model(
      config,
      self.max_context,
      systems.build_point_embedder(config, config.num_frequencies),
      tca_jax.GaussianHead(1, min_std=None, dtype=dtype),
    )
    sample = functools.partial(gp.sample, batch_size=config.batch_size)
    self._sample = jax.jit(sample, static_argnames=("shape", "kernel", "sizes"))

  def train_batch(self, rng: jax.Array, step: int) -> Batch:
    shape = gp.draw_shape((self.config.seed, 0, step))
    return self.train_batch_of_shape(rng, shape)

  def train_batch_of_shape(self, rng: jax.Array, shape: tuple[int, int]) -> Batch:
    """A training batch of one of the padded shapes `gp.SHAPES`.

    Args:
      rng: consumed.
      shape: numbers of context and target slots.
    """
    return self._sample(rng, shape=shape, kernel="rbf", sizes=self.config.sizes)[0]

  def eval_batches(self) -> Iterator[Batch]:
    kernel = self.config.kernel
    for i in range(self.config.eval_batches):
      batch, process = self._sample(
        self.eval_rng(i),
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

  @property
  def inputs(self) -> dict[str, typing.Any]:
    return {
      "coords": {"axes": ["x"], "range": [[-2, 2]], "unit": "none"},
      "values": {"channels": 1, "mean": 0.0, "std": 1.0, "unit": "none"},
    }


def _fit(task: GPTask, params: typing.Any, num_context: int) -> functions.FunctionFit:
  """Predicts a function of the evaluation's kernel from a number of its points."""
  kernel = task.config.kernel
  rng = np.random.default_rng(num_context)
  process = gp.Process(length_scale=np.array([0.3]), scale=np.array([0.8]))
  x = np.linspace(-2, 2, 401)[None]
  covariance = gp.covariances(x, x, process, kernel, np)[0]
  truth = rng.multivariate_normal(np.zeros(x.size), covariance)
  chosen = np.sort(rng.choice(x.size, num_context, replace=False))
  noise = gp.NOISE * rng.normal(size=num_context)
  batch = Batch(
    coords=jnp.asarray(x[:, chosen, None], jnp.float32),
    values=jnp.asarray((truth[chosen] + noise)[None, :, None], jnp.float32),
    mask=jnp.ones((1, num_context), bool),
    query_coords=jnp.asarray(x[..., None], jnp.float32),
    targets=jnp.asarray(truth[None, :, None], jnp.float32),
    query_mask=jnp.ones((1, x.size), bool),
  )
  inspection = task.inspect(params, batch.coords, batch.values, batch.query_coords)
  exact_mean, exact_std = gp.predictive(batch, process, kernel)
  queries = {}
  for query in (60, 200, 340):
    nodes = inspection.nodes_read(0, query)
    queries[x[0, query]] = [(level, x[0, chosen[tokens]]) for level, tokens in nodes]
  output = inspection.prediction.output
  return functions.FunctionFit(
    x=x[0],
    truth=truth,
    mean=output.mean[0, :, 0],
    std=output.std[0, :, 0],
    exact_mean=exact_mean[0],
    exact_std=exact_std[0],
    context=np.stack([x[0, chosen], truth[chosen] + noise], axis=-1),
    queries=queries,
    depth=inspection.depth,
  )


PROGRAM = launch.Program(GPConfig, GPTask)
train, evaluate = PROGRAM.train, PROGRAM.evaluate

if __name__ == "__main__":
  PROGRAM.main()
