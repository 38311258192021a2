"""Elevation of a real map, with uncertainty, from 16 to 100,000 of its points.

  python -m experiments.terrain --workdir=runs/terrain --model=tca

trains on windows of the map of all sizes, with up to 512 context points each; each is
moved at random, so that the map cannot be learnt by heart. It evaluates on points never
trained on: in windows where they truly lie (eval.json), and on the whole map against the
number of context points (scaling.json), where TCA also predicts a million places from the
largest context and completes the map from 1 % of its points (terrain.png). Coordinates
have the scale of the whole map throughout: a window as dense as 100,000 points are shows
the model what it meets there. No system has an encoder, as one would attend from every
token to every other. About an hour on a CPU core; what it reached is in
results/terrain_tca.json.

--dataset=airports is a map of irregular points, most of them in America, whose elevations
are on a scale that is logarithmic above 100 m. Its results are of --whole_map=0.5, as few
windows would be as wide and as sparse as the world is, with --teacher_temperature=1 and
--num_steps=12000.
"""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import functools
import math
import time
import types
import typing

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from scipy import interpolate

from experiments.common import config as config_lib
from experiments.common import evaluate
from experiments.common import launch
from experiments.common import measure
from experiments.common import plots
from experiments.common import task as task_lib
from experiments.common.config import Config
from experiments.common.config import ConfigError
from experiments.common.config import option
from experiments.data import motion
from experiments.data import terrain
import tca_jax
from tca_jax import objectives
from tca_jax import serving

SCALING_FILE = "scaling.json"
_MAX_QUERIES = 4096  # that are read at once
_MAX_LOGITS = 2**24  # of a head at once, where every token is read
_PATHS = (2, 4)  # of TCA, beside the one that it was trained on
_PICTURE_SHARE = 0.01  # of the map's points, from which the picture completes it


@dataclasses.dataclass(frozen=True, kw_only=True)
class TerrainConfig(Config):
  """The options of the elevation task."""

  PAPER = types.MappingProxyType(Config.PAPER | dict(num_layers=0, num_frequencies=0))

  dataset: str = option("fault", "The map.", choices=terrain.DATASETS)
  num_context: int = option(
    512, "The most context points of a window.", at_least=terrain.MIN_CONTEXT
  )
  whole_map: float = option(
    0.1,
    "The share of windows that are the whole map at the end of training; it grows from 0.",
    at_least=0,
    below=1,
  )
  num_frequencies: int = option(
    9, "Fourier features of the coordinates; the paper has none.", at_least=0
  )
  position_skip: bool = option(
    True, "Whether positions also go around the embedder's MLP."
  )
  num_steps: int = option(20_000, "Training steps.", at_least=1)
  batch_size: int = option(8, "Windows a step, over all devices.", at_least=1)
  learning_rate: float = option(3e-3, "The peak, after warm-up.", at_least=0)
  teacher_temperature: float = option(
    0.5, "Of the leaf attention that the routing loss distils.", at_least=0.01
  )
  baseline: str = option("leaf", "Of REINFORCE.", choices=objectives.BASELINES)
  eval_batches: int = option(
    100, "Batches of the evaluation in windows.", at_least=1, recipe=False
  )
  context_sizes: str = option(
    "1000,10000,100000",
    "Context points of the evaluation on the whole map; all there are at most.",
    recipe=False,
  )
  num_targets: int = option(
    8192, "Held-out points of that; 0: all.", at_least=0, recipe=False
  )
  map_side: int = option(
    1000,
    "TCA predicts a grid of as many places squared from the largest context.",
    at_least=1,
    recipe=False,
  )

  def __post_init__(self):
    super().__post_init__()
    if self.tree_order == "given":
      raise ConfigError("tree_order 'given' has no meaning for points in random order")
    if self.num_layers:
      raise ConfigError(
        "num_layers must be 0, as an encoder attends from every token to every other;"
        f" got {self.num_layers}"
      )
    if self.sizes[0] < terrain.MIN_CONTEXT:
      raise ConfigError(
        f"context_sizes must be integers of at least {terrain.MIN_CONTEXT} with commas"
        f" between them, got {self.context_sizes!r}"
      )

  @property
  def sizes(self) -> list[int]:
    """What `context_sizes` lists, ascending; 0 for what is not a number."""
    sizes = self.context_sizes.split(",")
    return sorted({int(size) if size.isdecimal() else 0 for size in sizes})


class TerrainTask(task_lib.Task[TerrainConfig]):
  """Windows drawn on the device, of a map that is kept there."""

  metric = "log_likelihood"

  def __init__(self, config: TerrainConfig):
    self.config = config
    self.max_context = config.num_context
    self.terrain = terrain.load(config.dataset)
    most = len(self.terrain.train.coords) - terrain.NUM_TARGETS
    if config.num_context > most:
      raise ConfigError(
        f"num_context must be at most {most:,}, as {terrain.NUM_TARGETS} of the points"
        f" to train on are targets; got {config.num_context:,}"
      )
    dtype = jnp.dtype(config.dtype)
    self.model = task_lib.build_model(
      config,
      self.max_context,
      task_lib.build_point_embedder(config, config.num_frequencies),
      tca_jax.GaussianHead(1, min_std=0.01, dtype=dtype),
    )
    apply = functools.partial(self.model.apply, method="read")
    self._reads: dict[str, Callable[..., typing.Any]] = {config.model: apply}
    if config.model == "tca":
      for num_paths in _PATHS:
        read_out = self.model.read_out.clone(num_paths=num_paths)
        model = self.model.clone(read_out=read_out)
        self._reads[f"tca_{num_paths}"] = functools.partial(model.apply, method="read")
      self._reads["tca_full"] = functools.partial(
        self.model.apply, method="read_leaves"
      )
    self._sample = jax.jit(
      terrain.sample, static_argnames=("batch_size", "num_context")
    )
    self._move = jax.jit(motion.move)

  def train_batch(self, step: int) -> task_lib.Batch:
    key = jax.random.fold_in(self.key("train", step), 0)
    draw_rng, move_rng = jax.random.split(key)
    # Small windows first: what is near can be learnt there soonest.
    whole_map = self.config.whole_map * step / self.config.num_steps
    return self._move(move_rng, self._draw(draw_rng, None, whole_map))

  def eval_batches(self) -> Iterator[task_lib.Batch]:
    for i in range(self.config.eval_batches):
      yield self._draw(self.key("eval", i), self.terrain.held_out)

  def _draw(
    self, key: jax.Array, held_out: terrain.Points | None, whole_map: float = 0.0
  ) -> task_lib.Batch:
    return self._sample(
      key,
      self.terrain.train,
      held_out,
      batch_size=self.config.batch_size,
      num_context=self.config.num_context,
      whole_map=whole_map,
    )

  def draw(self, params: typing.Any, folder: epath.Path) -> None:
    """Writes scaling.json and, for TCA, draws terrain.png."""
    self.evaluate_sizes(params, folder)
    if self.config.model == "tca":
      plots.plot_terrain(self._complete(params), folder / "terrain.png")

  def evaluate_sizes(
    self, params: typing.Any, folder: epath.Path
  ) -> list[dict[str, typing.Any]]:
    """Predicts held-out points from more and more points of the whole map.

    Prints a table and writes scaling.json. Beside the rows it holds, for TCA, how
    long it took to predict the places of a grid from the largest context, from
    building its tree on.

    Args:
      params: of the model.
      folder: where the file goes.

    Returns:
      A row for each size of context; for TCA, also for two and four paths at once and
      for all leaves. All of one size tell how far linear interpolation is off.
    """
    rows, grid = [], None
    own = self.terrain
    targets = own.held_out.first(self.config.num_targets or None)
    truth = own.metres(targets.values)
    num_queries = len(targets.coords)
    num_train = len(own.train.coords)
    sizes = sorted({min(size, num_train) for size in self.config.sizes})
    for size in sizes:
      context = own.train.first(size)
      linear = interpolated(context.coords, own.metres(context.values), targets.coords)
      interpolation = rmse(linear, truth)
      memory, build = self.index(params, size)
      for system in self._reads:
        output, num_read, seconds = self.predict(
          params, memory, size, targets.coords, system
        )
        num_read = float(np.mean(num_read))
        rows.append(
          dict(system=system, num_context=size, num_queries=num_queries)
          | scores(output, targets.values)
          | dict(rmse_metres=rmse(own.moments(output.mean, output.std)[0], truth))
          | dict(interpolation_rmse_metres=interpolation)
          | dict(tokens_read=num_read, tokens_fraction=num_read / size)
          | dict(us_per_query=1e6 * seconds["read_seconds"] / num_queries)
          | build
          | seconds
        )
      if self.config.model == "tca" and size == sizes[-1]:
        places = self._grid()
        _, _, seconds = self.predict(params, memory, size, places, "tca")
        grid = {"num_context": size, "num_queries": len(places)}
        grid |= {"seconds": sum((build | seconds).values()), **build, **seconds}
    summarise(f"{self.config.dataset}, {num_queries:,} held-out points", rows)
    content = {
      "rows": rows,
      "grid": grid,
      "elevation_std": float(np.std(own.metres(own.train.values))),
      **measure.provenance(),
      "config": dataclasses.asdict(self.config),
    }
    config_lib.write_json(folder / SCALING_FILE, content)
    return rows

  def index(
    self, params: typing.Any, num_context: int
  ) -> tuple[typing.Any, dict[str, float]]:
    """A memory of the first training points, and what it took.

    Args:
      params: of the model.
      num_context: how many points.

    Returns:
      The memory, of one context, and "tree_seconds", "index_compile_seconds" and
      "index_seconds".
    """
    context = self.terrain.train.first(num_context)
    clock = _Clock()
    given = {}
    if self.config.model == "tca" and self.config.tree_order == "kd":
      # On a CPU a tree is built faster outside of a compiled function.
      tree = tca_jax.build_tree(context.coords, branch_factor=self.config.branch_factor)
      given["tree"] = jax.tree.map(lambda x: x[None], tree)
    seconds = {"tree_seconds": clock.lap(given)}
    inputs = (params, context.coords[None], context.values[None])
    index = jax.jit(functools.partial(self.model.apply, method="index"))
    index = index.lower(*inputs, **given).compile()
    seconds["index_compile_seconds"] = clock.lap()
    memory = index(*inputs, **given)
    seconds["index_seconds"] = clock.lap(memory)
    return memory, seconds

  def predict(
    self,
    params: typing.Any,
    memory: typing.Any,
    num_context: int,
    coords: jax.typing.ArrayLike,
    system: str,
  ) -> tuple[tca_jax.Gaussian, np.ndarray, dict[str, float]]:
    """Predicts places from a memory, as many at once as memory allows.

    Args:
      params: of the model.
      memory: of one context.
      num_context: its size.
      coords: `[M, 2]`.
      system: the model's; of TCA also "tca_2" and "tca_4", which follow more paths,
        and "tca_full", which reads all leaves.

    Returns:
      The `Gaussian` of standardised elevations, `[M, 1]`; how much each query read,
      `[M]`; "read_compile_seconds" and "read_seconds".
    """

    def apply(memory, coords):
      prediction = self._reads[system](params, memory, coords)
      return prediction.output, prediction.reading.num_read

    chunk = _MAX_QUERIES
    if system in ("ca", "tca_full"):
      chunk = min(chunk, max(_MAX_LOGITS // num_context, 1))
    # Parts of one size: the last is not padded by much.
    queries = np.asarray(coords)[None]
    parts = math.ceil(queries.shape[1] / chunk)
    chunk = math.ceil(queries.shape[1] / parts)
    server = serving.Server(apply, memory, sizes=(chunk,))
    clock = _Clock()
    server(queries[:, :1])
    seconds = {"read_compile_seconds": clock.lap()}
    output, num_read = server(queries)
    seconds["read_seconds"] = clock.lap()
    return jax.tree.map(lambda x: x[0], output), num_read[0], seconds

  def _grid(self) -> np.ndarray:
    """`[side * side, 2]`, places all over the map."""
    coords = np.asarray(self.terrain.train.coords)
    side = self.config.map_side
    east, north = np.linspace(coords.min(0), coords.max(0), side, dtype=np.float32).T
    return np.stack(np.meshgrid(east, north), axis=-1).reshape(-1, 2)

  def _complete(self, params: typing.Any) -> plots.TerrainFit:
    """Predicts all points of the map from some, and what one held-out point reads."""
    own = self.terrain
    points = jax.tree.map(lambda *x: np.concatenate(x), own.held_out, own.train)
    num_context = max(int(_PICTURE_SHARE * len(points.coords)), 1)
    memory, _ = self.index(params, num_context)
    output, _, _ = self.predict(params, memory, num_context, points.coords, "tca")
    query = points.coords[0]
    prediction = task_lib.jitted(self, "read")(params, memory, query[None, None])
    nodes = plots.nodes_read(prediction.reading.walk, memory.tree, 0, 0)
    context = jax.device_get(own.train.first(num_context))
    mean, std = own.moments(output.mean, output.std)
    return plots.TerrainFit(
      coords=points.coords,
      truth=own.metres(points.values),
      mean=mean,
      std=std,
      context=context.coords,
      context_values=own.metres(context.values),
      query=query,
      boxes=[(level, context.coords[tokens]) for level, tokens in nodes],
      depth=memory.tree.depth,
      pixel=own.pixel,
    )


class _Clock:
  """Seconds from one lap to the next."""

  def __init__(self):
    self._started = time.perf_counter()

  def lap(self, result: typing.Any = None) -> float:
    """The seconds since the last lap, or the start; waits for a result first."""
    jax.block_until_ready(result)
    last, self._started = self._started, time.perf_counter()
    return self._started - last


def scores(output: tca_jax.Gaussian, targets: jax.Array) -> dict[str, float]:
  """How good predictions of standardised elevations are.

  Args:
    output: `[M, 1]`.
    targets: `[M, 1]`.

  Returns:
    "log_likelihood", of standardised elevations, and "coverage_50" and so on, see
    `evaluate.interval_coverage`.
  """
  found = {
    "log_likelihood": objectives.gaussian_log_likelihood(
      output.mean, output.std, targets
    ).mean(),
  }
  for level in evaluate.INTERVALS:
    found[f"coverage_{level}"] = evaluate.interval_coverage(
      output.mean, output.std, targets, level / 100
    ).mean()
  return {name: float(score) for name, score in found.items()}


def rmse(predicted: np.ndarray, truth: np.ndarray) -> float:
  """The root of the mean squared error.

  >>> rmse(np.array([0.0, 100.0]), np.array([100.0, 0.0]))
  100.0
  """
  errors = predicted.astype(np.float64) - truth.astype(np.float64)
  return float(np.sqrt(np.mean(errors**2)))


def interpolated(
  points: jax.typing.ArrayLike, values: np.ndarray, coords: jax.typing.ArrayLike
) -> np.ndarray:
  """Linear interpolation within the points' triangles; outside, the nearest point.

  Args:
    points: `[N, 2]`, three at least that are not on one line.
    values: `[N]`.
    coords: `[M, 2]`.

  Returns:
    `[M]`.

  >>> points = np.array([[0, 0], [1, 0], [0, 1]])
  >>> coords = np.array([[0.5, 0.5], [0, 9]])
  >>> interpolated(points, np.array([0, 2, 4]), coords).tolist()
  [3.0, 4.0]
  """
  linear, nearest = (
    method(np.asarray(points), values)(np.asarray(coords))
    for method in (interpolate.LinearNDInterpolator, interpolate.NearestNDInterpolator)
  )
  return np.where(np.isnan(linear), nearest, linear)


def summarise(title: str, rows: list[dict[str, typing.Any]]) -> str:
  """A table of the rows of `TerrainTask.evaluate_sizes`."""
  header = ("system", "context", "log-likelihood", "RMSE, m", "interpolation's")
  return measure.table(
    title,
    (*header, "within 90 %", "tokens read", "us/query", "build s"),
    [
      (
        row["system"],
        f"{row['num_context']:,}",
        f"{row['log_likelihood']:.3f}",
        f"{row['rmse_metres']:.1f}",
        f"{row['interpolation_rmse_metres']:.1f}",
        f"{row['coverage_90']:.1%}",
        f"{row['tokens_read']:,.1f}",
        f"{row['us_per_query']:.2f}",
        f"{row['tree_seconds'] + row['index_seconds']:.2f}",
      )
      for row in rows
    ],
  )


if __name__ == "__main__":
  launch.start(TerrainConfig, TerrainTask)
