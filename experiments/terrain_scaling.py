"""Evaluators of the map task on the whole map: scaling study and figure."""

import functools
import math
import typing

from etils import epath
import jax
import numpy as np

from experiments import terrain_baselines
from experiments.common import evaluate
from experiments.common import inspection
from experiments.common import interpolation
from experiments.common import systems
from experiments.common import tables
from experiments.common import task as task_lib
from experiments.common import timing
from experiments.common import workdir as workdir_lib
from experiments.data import windows
from experiments.figures import elevation as elevation_figure
import tca_jax
from tca_jax import serving

if typing.TYPE_CHECKING:
  from experiments.terrain import TerrainTask

SCALING_FILE = "scaling.json"
_MAX_LOGITS = 2**24  # attention logits per head, where every token is read
_FIGURE_SHARE = 0.01  # fraction of the map's points that is context in the figure


class MapScaling(task_lib.Evaluator["TerrainTask"]):
  """Metrics and time on the whole map against context size; writes scaling.json."""

  file = SCALING_FILE

  def evaluate(
    self, restored: task_lib.Restored["TerrainTask"], path: epath.Path
  ) -> dict[str, typing.Any]:
    """Predicts held-out points from contexts of increasing size, and prints a table.

    Args:
      restored: the trained model of a `TerrainTask`.
      path: path of the file.

    Returns:
      "rows", one for each context size and each way to read the model (for TCA also
      beams of two and four paths, and all leaves). Each row has the error of linear
      interpolation from the same context, in units of the map, and the largest memory
      of the process until then, "peak_memory_bytes". "baselines", rows of linear
      interpolation and of local kriging from the same contexts, unless --baselines is
      off. With a tree also "grid": the seconds to predict a grid of locations from the
      largest context, tree construction and compilation included; see also
      `terrain_baselines.seam_ratios`. "unit", the unit of the map's values, and
      "value_std", their standard deviation.
    """
    task, params = restored.task, restored.params
    points = task.map
    targets = points.held_out.take_first(task.config.num_targets or None)
    truth = points.to_units(targets.values)
    sizes = sorted({min(size, len(points.train.coords)) for size in task.config.sizes})
    rows, baselines, grid = [], [], None
    for size in sizes:
      linear, *processes = terrain_baselines.rows(
        points, size, targets, task.config.baselines
      )
      if task.config.baselines:
        baselines += [linear, *processes]
      memory, build_seconds = index_context(
        task.model, params, points.train.take_first(size)
      )
      for name, reader in task.system.readers.items():
        output, num_read, read_seconds = predict(
          task.model, params, memory, size, targets.coords, reader
        )
        mean, _ = points.predicted_in_units(output)
        tokens_read = float(np.mean(num_read))
        us_per_query = 1e6 * read_seconds["read_seconds"] / len(truth)
        rows.append(
          dict(system=name, num_context=size, num_queries=len(truth))
          | evaluate.mean_scores(output, targets.values)
          | dict(rmse=interpolation.rmse(mean, truth))
          | dict(interpolation_rmse=linear["rmse"])
          | dict(tokens_read=tokens_read, tokens_fraction=tokens_read / size)
          | dict(us_per_query=us_per_query)
          | dict(peak_memory_bytes=timing.peak_memory_bytes())
          | build_seconds
          | read_seconds
        )
      if task.system.has_tree and size == sizes[-1]:
        grid = _time_grid(task, params, memory, size, build_seconds)
    title = f"{task.config.dataset}, {len(truth):,} held-out points"
    ordered = sorted(rows + baselines, key=lambda row: row["num_context"])
    print(f"\n{table_of(title, points.unit, ordered)}\n", flush=True)
    content = {
      "rows": rows,
      "baselines": baselines,
      "grid": grid,
      "unit": points.unit,
      "value_std": float(np.std(points.to_units(points.train.values))),
      **evaluate.result_source(task),
    }
    workdir_lib.write_json(path, content)
    return content


class MapFigure(task_lib.Evaluator["TerrainTask"]):
  """The map predicted by TCA from 1 % of its points; draws terrain.png."""

  file = "terrain.png"
  needs_tree = True

  def evaluate(
    self, restored: task_lib.Restored["TerrainTask"], path: epath.Path
  ) -> None:
    """Draws the figure."""
    fit = complete(restored.task, restored.params)
    elevation_figure.plot_map(fit, path)


def index_context(
  model: tca_jax.ReTreever, params: typing.Any, context: windows.Points
) -> tuple[typing.Any, dict[str, float]]:
  """Makes a memory of a context, and measures the time.

  Args:
    model: a model of scattered points.
    params: its parameters.
    context: the points.

  Returns:
    The memory, of one context; "tree_seconds", "index_compile_seconds" and
    "index_seconds".
  """
  clock = timing.Clock()
  given = systems.trees_for_index(model, context.coords)
  seconds = {"tree_seconds": clock.lap(given)}
  inputs = (params, context.coords[None], context.values[None])
  index = jax.jit(functools.partial(model.apply, method="index"))
  index = index.lower(*inputs, **given).compile()
  seconds["index_compile_seconds"] = clock.lap()
  memory = index(*inputs, **given)
  seconds["index_seconds"] = clock.lap(memory)
  return memory, seconds


def make_server(
  model: tca_jax.ReTreever,
  params: typing.Any,
  memory: typing.Any,
  num_context: int,
  num_queries: int,
  reader: systems.Reader,
) -> serving.Server:
  """Makes a server of predictions, in parts that fit into working memory.

  Args:
    model: a model of scattered points.
    params: its parameters.
    memory: memory of one context.
    num_context: number of points in the context.
    num_queries: number of locations in most calls.
    reader: way to read the model.

  Returns:
    A server: from locations `[1, M, C]`, distributions of standardised values,
    `[1, M, E]`, and the number of nodes, latents or tokens that each query read, `[1, M]`.
  """

  def apply(memory, coords):
    prediction = reader(model, params, memory, coords)
    return prediction.output, prediction.reading.num_read

  largest = reader.most_queries
  if reader.reads_all:
    largest = min(largest, max(_MAX_LOGITS // num_context, 1))
  # Parts of equal size, so that the last one needs little padding.
  num_parts = math.ceil(num_queries / largest)
  return serving.Server(apply, memory, sizes=(math.ceil(num_queries / num_parts),))


def predict(
  model: tca_jax.ReTreever,
  params: typing.Any,
  memory: typing.Any,
  num_context: int,
  coords: jax.typing.ArrayLike,
  reader: systems.Reader,
) -> tuple[tca_jax.Regression, np.ndarray, dict[str, float]]:
  """Predicts locations from a memory, in parts that fit into working memory.

  Args:
    model: a model of scattered points.
    params: its parameters.
    memory: memory of one context.
    num_context: number of points in the context.
    coords: `[M, C]`.
    reader: way to read the model.

  Returns:
    Distributions of standardised values, `[M, E]`; the number of nodes, latents or
    tokens that each query read, `[M]`; "read_compile_seconds" and "read_seconds".
  """
  queries = np.asarray(coords)[None]
  server = make_server(model, params, memory, num_context, queries.shape[1], reader)
  clock = timing.Clock()
  server(queries[:, :1])
  seconds = {"read_compile_seconds": clock.lap()}
  output, num_read = server(queries)
  seconds["read_seconds"] = clock.lap()
  return jax.tree.map(lambda x: x[0], output), num_read[0], seconds


def complete(
  task: "TerrainTask", params: typing.Any, max_points: int | None = None
) -> elevation_figure.MapFit:
  """Predicts the map from 1 % of its points, and one query's nodes.

  Args:
    task: the map task.
    params: parameters of its model, which has a tree.
    max_points: number of points to predict. None: all.
  """
  whole = task.map
  points = jax.tree.map(lambda *x: np.concatenate(x), whole.held_out, whole.train)
  num_context = max(int(_FIGURE_SHARE * len(points.coords)), 1)
  points = points.take_first(max_points)
  context = whole.train.take_first(num_context)
  memory, _ = index_context(task.model, params, context)
  reader = next(iter(task.system.readers.values()))
  output, _, _ = predict(task.model, params, memory, num_context, points.coords, reader)
  query = points.coords[0]
  reading = task.read(params, memory, query[None, None]).reading
  nodes = inspection.nodes_read(reading.walk, memory.tree, 0, 0)
  context = jax.device_get(context)
  mean, std = whole.predicted_in_units(output)
  return elevation_figure.MapFit(
    unit=whole.unit,
    coords=points.coords,
    truth=whole.to_units(points.values),
    mean=mean,
    std=std,
    context=context.coords,
    context_values=whole.to_units(context.values),
    query=query,
    boxes=[(level, context.coords[tokens]) for level, tokens in nodes],
    depth=memory.tree.depth,
    pixel=whole.pixel,
  )


def _time_grid(
  task: "TerrainTask",
  params: typing.Any,
  memory: typing.Any,
  num_context: int,
  build_seconds: dict[str, float],
) -> dict[str, float | None]:
  """Seconds to predict a grid of locations over the whole map."""
  coords = np.asarray(task.map.train.coords)
  side = task.config.map_side
  east, north = np.linspace(coords.min(0), coords.max(0), side, dtype=np.float32).T
  locations = np.stack(np.meshgrid(east, north), axis=-1).reshape(-1, 2)
  reader = next(iter(task.system.readers.values()))
  output, _, read_seconds = predict(
    task.model, params, memory, num_context, locations, reader
  )
  seconds = build_seconds | read_seconds
  context = task.map.train.take_first(num_context)
  tree = jax.tree.map(lambda x: x[0], memory.tree)
  linear = interpolation.triangulate(context.coords).interpolate(
    np.asarray(context.values)[:, 0], locations
  )
  ratio, linear_ratio = terrain_baselines.seam_ratios(
    [x.reshape(side, side) for x in (np.asarray(output.mean), linear)],
    locations.reshape(side, side, 2),
    terrain_baselines.node_boxes(tree, context),
  )
  return {
    "num_context": num_context,
    "num_queries": len(locations),
    "seam_ratio": ratio,
    "interpolation_seam_ratio": linear_ratio,
    "seconds": sum(seconds.values()),
    **seconds,
  }


def table_of(title: str, unit: str, rows: list[dict[str, typing.Any]]) -> str:
  """The rows of `MapScaling`, with errors in a unit, as a table."""
  header = ("model", "context", "log-likelihood", f"RMSE, {unit}")
  return tables.aligned(
    title,
    (*header, "within 50 %", "90 %", "95 %", "tokens read", "us/query", "build s"),
    [
      (
        systems.TITLES[row["system"]],
        f"{row['num_context']:,}",
        tables.cell(row, "log_likelihood", ".3f"),
        f"{row['rmse']:.1f}",
        *(tables.cell(row, f"coverage_{level}", ".1%") for level in evaluate.INTERVALS),
        tables.cell(row, "tokens_read", ",.1f"),
        f"{row['us_per_query']:.2f}",
        f"{row.get('fit_seconds') or row['tree_seconds'] + row['index_seconds']:.2f}",
      )
      for row in rows
    ],
  )
