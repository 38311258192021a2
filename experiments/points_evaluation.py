"""Evaluators of models of points: scores beside baselines, saved model and picture."""

import typing

from absl import logging
from etils import epath
import jax
import numpy as np
from scipy import spatial

from experiments import points_output
from experiments import points_prediction
from experiments import terrain_baselines
from experiments import terrain_scaling
from experiments.common import evaluate
from experiments.common import interpolation
from experiments.common import systems
from experiments.common import tables
from experiments.common import task as task_lib
from experiments.common import workdir as workdir_lib
from experiments.common.errors import CheckpointError
from experiments.data import elevation
from experiments.data import point_sets
from experiments.data import windows
from experiments.figures import points as points_figure
import tca_jax

if typing.TYPE_CHECKING:
  from experiments.points import PointsTask

SCORES_FILE = "scores.json"
_EARLY_TARGETS = 2048  # held-out points of the report before training
_MAX_LINEAR_AXES = 3  # the triangulation of more axes needs too much time and memory
_PICTURE = {1: [800], 2: [200, 200]}  # sizes of its grid


class Scores(task_lib.Evaluator["PointsTask"]):
  """Scores of held-out points beside those of baselines; writes scores.json."""

  file = SCORES_FILE

  def evaluate(
    self, restored: task_lib.Restored["PointsTask"], path: epath.Path
  ) -> dict[str, typing.Any]:
    """Predicts held-out points from all training points, and prints a table.

    The model is read as `--num_paths` says; pictures and `--mode=predict` read it as in
    its training.

    Args:
      restored: the trained model.
      path: path of the file.

    Returns:
      "rows", one for each target and method, with the log-likelihood and coverages of
      standardised values, and the error "rmse" in units of the target. Up to three axes
      have a row of linear interpolation, unless all points are on one line or in one
      plane.
    """
    task, points = restored.task, restored.task.map
    held_out = points.held_out.take_first(task.config.num_targets or None)
    size = len(points.train.coords)
    reader = task.system.evaluation_reader(task.config)
    rows = score(
      task.model,
      restored.params,
      reader,
      points.scaling,
      points.train,
      held_out,
      task.config.model,
    )
    title = f"{len(held_out.coords):,} held-out points from {size:,} points"
    print(f"\n{table_of(title, rows)}\n", flush=True)
    content = {"rows": rows, **evaluate.result_source(task)}
    workdir_lib.write_json(path, content)
    return content


def score(
  model: tca_jax.ReTreever,
  params: typing.Any,
  reader: systems.Reader,
  scaling: point_sets.Scaling,
  context: windows.Points,
  held_out: windows.Points,
  system: str,
) -> list[dict[str, typing.Any]]:
  """Predicts held-out points by a model and by the baselines.

  Args:
    model: a model of as many values as there are targets.
    params: its parameters.
    reader: way to read the model.
    scaling: the columns, and how the model sees them.
    context: the points that are known.
    held_out: the points to predict.
    system: the name of the model in rows.

  Returns:
    Rows, see `Scores.evaluate`.
  """
  shared, output = _predict(model, params, reader, context, held_out)
  rows = []
  for i, target in enumerate(scaling.targets):
    one = scaling.value_map(i, context, held_out)
    predicted = jax.tree.map(lambda x, i=i: x[:, i : i + 1], output)
    own = dict(system=system) | shared | _scores(one, predicted)
    rows += [dict(target=target) | row for row in (own, *_baselines(one))]
  return rows


def report_early(points: point_sets.PointSet) -> None:
  """Prints scores without training: of the baselines and the pretrained model.

  Args:
    points: the table.
  """
  train, held_out = points.train, points.held_out.take_first(_EARLY_TARGETS)
  scaling, rows = points.scaling, []
  pretrained = None
  if points_prediction.is_for_pretrained(len(scaling.coords), len(train.coords)):
    try:
      model, params, _ = points_prediction.load_model(points_prediction.PRETRAINED)
    except CheckpointError as error:
      logging.warning("%s; the report before training leaves it out", error)
    else:
      model = points_prediction.with_periods(model, scaling.axis_periods)
      pretrained = model, params, pretrained_reader()
  for i, target in enumerate(scaling.targets):
    one = scaling.value_map(i, train, held_out)
    found = _baselines(one)
    if pretrained:
      shared, output = _predict(*pretrained, one.train, one.held_out)
      found.insert(0, dict(system=systems.PRETRAINED) | shared | _scores(one, output))
    rows += [dict(target=target) | row for row in found]
  title = (
    f"Before training: {len(held_out.coords):,} of {len(points.held_out.coords):,}"
    f" held-out points from {len(train.coords):,} points"
  )
  print(f"\n{table_of(title, rows)}\n", flush=True)


def pretrained_reader() -> systems.Reader:
  """The way to read the pretrained model: as in its training."""
  return next(iter(systems.SYSTEMS["relative_tca"].readers.values()))


def _predict(
  model: tca_jax.ReTreever,
  params: typing.Any,
  reader: systems.Reader,
  context: windows.Points,
  held_out: windows.Points,
) -> tuple[dict[str, typing.Any], tca_jax.Regression]:
  """Predicts held-out points; what rows contain besides scores, and the predictions."""
  size, count = len(context.coords), len(held_out.coords)
  memory, built = terrain_scaling.index_context(model, params, context)
  output, num_read, seconds = terrain_scaling.predict(
    model, params, memory, size, held_out.coords, reader
  )
  return dict(
    num_context=size,
    num_queries=count,
    us_per_query=1e6 * seconds["read_seconds"] / count,
    fit_seconds=built["tree_seconds"] + built["index_seconds"],
    tokens_read=float(np.mean(num_read)),
  ), output


def _scores(
  points: elevation.ValueMap, predicted: tca_jax.Regression
) -> dict[str, float]:
  """Scores of one target's held-out points."""
  mean, _ = points.predicted_in_units(predicted)
  truth = points.to_units(points.held_out.values)
  scores = evaluate.mean_scores(predicted, points.held_out.values)
  return scores | dict(rmse=interpolation.rmse(mean, truth))


def _baselines(points: elevation.ValueMap) -> list[dict[str, typing.Any]]:
  """Rows of linear interpolation, where it is possible, and of local kriging."""
  size, targets = len(points.train.coords), points.held_out
  if points.train.coords.shape[1] <= _MAX_LINEAR_AXES:
    try:
      return terrain_baselines.rows(points, size, targets)
    except spatial.QhullError:
      pass  # all points are on one line, or in one plane
  return terrain_baselines.rows(points, size, targets, linear=False)


def table_of(title: str, rows: list[dict[str, typing.Any]]) -> str:
  """The rows of `Scores` as a table."""
  header = (
    "model",
    "target",
    "context",
    "log-likelihood",
    "RMSE",
    "within 50 %",
    "90 %",
    "95 %",
  )
  return tables.aligned(
    title,
    (*header, "us/query"),
    [
      (
        systems.TITLES[row["system"]],
        row["target"],
        f"{row['num_context']:,}",
        tables.cell(row, "log_likelihood", ".3f"),
        f"{row['rmse']:.4g}",
        *(tables.cell(row, f"coverage_{level}", ".1%") for level in evaluate.INTERVALS),
        f"{row['us_per_query']:.1f}",
      )
      for row in rows
    ],
  )


class SavedModel(task_lib.Evaluator["PointsTask"]):
  """The model with its scaling, a folder of `tca_jax.save`."""

  file = points_prediction.MODEL
  shared = True

  def evaluate(
    self, restored: task_lib.Restored["PointsTask"], path: epath.Path
  ) -> None:
    """Saves the model; the folder is replaced if it exists."""
    tca_jax.save(
      path,
      restored.task.model,
      restored.params,
      overwrite=True,
      **restored.describe("points"),
    )


class Picture(task_lib.Evaluator["PointsTask"]):
  """A map or a curve, predicted from all points; draws points.png."""

  file = "points.png"

  def applies(self, task: "PointsTask") -> bool:
    return len(task.map.scaling.coords) <= points_figure.MAX_AXES

  def evaluate(
    self, restored: task_lib.Restored["PointsTask"], path: epath.Path
  ) -> None:
    """Draws the picture."""
    task = restored.task
    predictor = points_prediction.Predictor(
      task.model, restored.params, task.map.scaling, task.map.coords, task.map.values
    )
    sizes = _PICTURE[len(task.map.scaling.coords)]
    grid = points_prediction.Grid.over(predictor.coords, sizes)
    points_output.draw(predictor, grid, predictor.on(grid), path)
