r"""Your own points: predict values, with uncertainty, from any table of points.

  python -m experiments.points --table=stations.csv --coords=lon,lat \
    --target=temperature --workdir=runs/t
  python -m experiments.points --mode=predict --workdir=runs/t --at=places.csv \
    --out=predictions.csv

This task is not in the paper. The first command trains a relative model on windows of
the points, as `experiments.terrain` does, and compares it with linear interpolation and
local kriging on held-out points. Training takes about ten minutes on two CPU cores.

  eval.json    metrics in windows
  scores.json  metrics of held-out points from all training points, with the baselines
  model/       the model with its scaling, for `tca_jax.load`
  points.png   for one or two coordinates, the curve or the map

The second command adds four columns for each target to the rows of a table: mean, std,
and the ends low and high of the central 90 % interval. The context is the table of the
training, or another --table with the same columns. --at=grid:200x200 predicts a grid
over the range of the context, and writes it as an NPZ file with a picture.

Without --workdir, a pretrained model predicts, and no training is needed:

  python -m experiments.points --mode=predict --table=stations.csv --coords=lon,lat \
    --target=temperature --at=places.csv --out=predictions.csv

It was trained by `experiments.surfaces`, has never seen the table, and needs two
coordinates.

A table is a CSV, TSV, Parquet or NPZ file. One to eight columns are coordinates: numbers
or, as in 2026-01-31, dates. Each coordinate is scaled by its range, but longitude and
latitude, and the coordinates in --same_scale, have one scale.
"""

from collections.abc import Mapping
import functools
import typing

from etils import epath
import numpy as np

from experiments import points_evaluation
from experiments import points_output
from experiments import points_prediction
from experiments import window_task
from experiments.common import beam_search
from experiments.common import evaluate as evaluate_lib
from experiments.common import flags
from experiments.common import launch
from experiments.common import systems
from experiments.common.errors import ConfigError
from experiments.data import point_sets
from experiments.data import point_tables
from experiments.points_config import PointsConfig


class PointsTask(window_task.WindowTask[PointsConfig]):
  """Regression of the points of a table."""

  map: point_sets.PointSet
  evaluators = (
    evaluate_lib.TestMetrics(),
    points_evaluation.Scores(),
    points_evaluation.SavedModel(),
    points_evaluation.Picture(),
    beam_search.BeamWidths(),
  )

  def __init__(self, config: PointsConfig):
    self.config = config
    self.map = point_sets.build(
      point_tables.read(config.table), config.columns, config.held_out, config.missing
    )
    scaling, num_targets = self.map.scaling, self.map.num_targets
    self._prepare(
      min(config.num_context, len(self.map.train.coords) - num_targets),
      systems.build_point_embedder(config, num_frequencies=0),
      scaling.axis_periods,
      num_targets,
      swaps=len(set(scaling.scale)) == 1 and not any(scaling.periods),
    )

  def report_early(self) -> None:
    points_evaluation.report_early(self.map)

  @property
  def inputs(self) -> dict[str, typing.Any]:
    """As in `Task`; "points" has the path of the table and the `Scaling`."""
    scaling = self.map.scaling
    names_and_units = zip(scaling.coords, scaling.scale, strict=True)
    scaled = scaling.locations(self.map.coords)
    return {
      "coords": {
        "axes": list(scaling.coords),
        "range": np.stack([scaled.min(0), scaled.max(0)], axis=-1).tolist(),
        "unit": ", ".join(f"{unit:g} of {name}" for name, unit in names_and_units),
      },
      "values": {
        "channels": len(scaling.targets),
        "mean": list(scaling.mean),
        "std": list(scaling.std),
        "unit": ", ".join(scaling.targets),
      },
      points_prediction.INFO: {
        "table": self.config.table,
        "scaling": scaling.to_json(),
      },
    }


def predict(
  workdir: epath.PathLike | None,
  at: typing.Any,
  table: typing.Any = None,
  missing: points_prediction.Missing = "drop",
  **columns: typing.Any,
) -> typing.Any:
  """Predicts the targets at the rows of a table.

  Args:
    workdir: folder of a run, see `points_prediction.load`; None: the pretrained model,
      which needs a table, coords and target.
    at: the rows, see `point_tables.read`; only their coordinates are used.
    table: the context; None: the table of the training.
    missing: what to do with rows that lack numbers. With "drop", rows of the context are
      left out, and rows of `at` stay, without a prediction.
    **columns: options of `PointsConfig` for the pretrained model: coords, target, period,
      log and same_scale.

  Returns:
    A `pandas.DataFrame`: the rows of `at` in their order with all their columns, and for
    each target the columns of `points_prediction.Predictor.__call__`.

  Raises:
    UserError: if the model or a table cannot be used.
  """
  given = _columns(workdir, table, columns)
  predictor = points_prediction.load(workdir, table, missing, given)
  return points_prediction.at_rows(predictor, at, missing)


def _columns(
  workdir: epath.PathLike | None, table: typing.Any, given: Mapping[str, typing.Any]
) -> point_sets.Columns | None:
  """The columns that options give; None for a model that has its own."""
  others = set(given) - set(_COLUMNS)
  if others:
    raise ConfigError(
      f"a prediction has the options {', '.join(_COLUMNS)}, got {min(others)!r}"
    )
  if workdir is not None and not given:
    return None
  complete = given.get("coords") and given.get("target")
  if workdir is not None and not complete:
    raise ConfigError(
      f"{', '.join(given)} must not be given without coords and target: the columns of"
      f" {workdir} are those of its training"
    )
  if workdir is None and (table is None or not complete):
    raise ConfigError(
      "table, coords and target must be given for the pretrained model; with a workdir,"
      " the model trained there predicts"
    )
  return PointsConfig(table="table", **given).columns


def _predict(arguments: flags.Arguments) -> None:
  """Runs --mode=predict."""
  given = dict(arguments.given)
  files = {name: given.pop(name, default) for name, default in _FILES.items()}
  columns = {name: given.pop(name) for name in _COLUMNS if name in given}
  if given:
    raise ConfigError(
      f"--mode=predict has no option --{min(given)}; it has"
      f" --{', --'.join((*_FILES, *_COLUMNS))}"
    )
  if not files["at"]:
    raise ConfigError("--at must be given: a table of places, or grid:200x200")
  workdir, table, missing = arguments.workdir, files["table"], files["missing"]
  load = functools.partial(
    points_prediction.load, workdir, table, missing, _columns(workdir, table, columns)
  )
  written = points_output.write_predictions(
    load, files["at"], arguments.out, workdir or epath.Path(), missing
  )
  print(", ".join(map(str, written)))


# Options of --mode=predict, with their defaults; and those of the pretrained model.
_FILES = {"table": None, "at": "", "missing": "drop"}
_COLUMNS = ("coords", "target", "period", "log", "same_scale")
PROGRAM = launch.Program(
  PointsConfig,
  PointsTask,
  {
    "predict": (
      "predict at --at, and write the file --out; without --workdir, by the pretrained"
      " model",
      _predict,
    )
  },
)
train, evaluate = PROGRAM.train, PROGRAM.evaluate

if __name__ == "__main__":
  PROGRAM.main()
