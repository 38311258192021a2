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

A table is a CSV, TSV, Parquet or NPZ file. One to eight columns are coordinates: numbers
or, as in 2026-01-31, dates. Each coordinate is scaled by its range, but longitude and
latitude, and the coordinates in --same_scale, have one scale.
"""

import dataclasses
import math
import typing

import numpy as np

from experiments import points_evaluation
from experiments import points_prediction
from experiments import window_task
from experiments.common import beam_search
from experiments.common import evaluate as evaluate_lib
from experiments.common import flags
from experiments.common import launch
from experiments.common import systems
from experiments.common.config import option
from experiments.common.errors import ConfigError
from experiments.data import point_sets
from experiments.data import point_tables

_MAX_COORDS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointsConfig(window_task.WindowConfig):
  """Options of a table of points."""

  DEFAULTS: typing.ClassVar = dict(
    model="relative_tca",
    local_units=True,
    summary_width=0,
    num_steps=2000,
    batch_size=8,
    learning_rate=2e-3,
    densest=0.5,
    whole_map=0.2,
  )

  table: str = option(
    "task", "", "Path of the table, which ends in .csv, .tsv, .parquet or .npz."
  )
  coords: str = option(
    "task", "", "Names of the coordinate columns, one to eight, separated by commas."
  )
  target: str = option(
    "task", "", "Names of the columns to predict, separated by commas."
  )
  period: str = option(
    "task",
    "",
    "Periods of coordinates that are periodic, such as lon:360; separated by commas.",
  )
  log: str = option(
    "task",
    "",
    "Names of targets of which the logarithm is learned, separated by commas.",
  )
  same_scale: str = option(
    "task",
    "",
    "Names of coordinates that share one scale because they have one unit, separated by"
    " commas. Longitude and latitude share one if these are their names.",
  )
  held_out: float = option(
    "task", 0.2, "Fraction of the rows that is held out of training.", below=1
  )
  missing: typing.Literal["drop", "error"] = option(
    "files",
    "drop",
    "Treatment of rows with missing or unreadable numbers: left out with a warning"
    " (drop), or refused (error).",
  )
  at: str = option(
    "files",
    "",
    "With --mode=predict: path of a table with the coordinates to predict, or a grid"
    " such as grid:200x200.",
  )

  def __post_init__(self):
    super().__post_init__()
    if not systems.SYSTEMS[self.model].is_relative:
      raise ConfigError(
        f"model must be relative_tca or relative_ca for a table, got {self.model!r}"
      )
    if not (self.table and self.coord_names and self.target_names):
      raise ConfigError("table, coords and target must be given")
    if len(self.coord_names) > _MAX_COORDS:
      raise ConfigError(
        f"coords must be at most {_MAX_COORDS} columns, got {len(self.coord_names)}"
      )
    columns = [*self.coord_names, *self.target_names]
    twice = {name for name in columns if columns.count(name) > 1}
    if twice:
      raise ConfigError(f"coords and target have {min(twice)!r} twice")
    for text, allowed in (
      ("log", self.target_names),
      ("same_scale", self.coord_names),
      ("period", self.coord_names),
    ):
      names = [name.partition(":")[0] for name in names_in(getattr(self, text))]
      others = set(names) - set(allowed)
      if others:
        raise ConfigError(
          f"{text} must have names of {', '.join(allowed)}, got {min(others)!r}"
        )
    if not all(0 < period < math.inf for period in self.periods.values()):
      raise ConfigError(
        f"period must be a name and a number above 0, as lon:360, got {self.period!r}"
      )
    if not self.held_out > 0:
      raise ConfigError(f"held_out must be above 0, got {self.held_out}")

  @property
  def coord_names(self) -> list[str]:
    """The names in `coords`."""
    return names_in(self.coords)

  @property
  def target_names(self) -> list[str]:
    """The names in `target`."""
    return names_in(self.target)

  @property
  def periods(self) -> dict[str, float]:
    """The numbers in `period`, by name; NaN in place of other text."""
    found = {}
    for part in names_in(self.period):
      name, _, number = part.partition(":")
      try:
        found[name] = float(number)
      except ValueError:
        found[name] = math.nan
    return found


def names_in(text: str) -> list[str]:
  """The names in a text that separates them by commas.

  >>> names_in("lon, lat")
  ['lon', 'lat']
  """
  return [name.strip() for name in text.split(",") if name.strip()]


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
      point_tables.read(config.table),
      config.coord_names,
      config.target_names,
      config.periods,
      names_in(config.log),
      names_in(config.same_scale)
      or [name for name in config.coord_names if point_tables.is_angle(name)],
      config.held_out,
      config.missing,
    )
    scaling, num_targets = self.map.scaling, self.map.num_targets
    self._prepare(
      min(config.num_context, len(self.map.train.coords) - num_targets),
      systems.build_point_embedder(config, num_frequencies=0),
      scaling.axis_periods,
      num_targets,
      swaps=len(set(scaling.scale)) == 1 and not any(scaling.periods),
    )

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


def _predict(arguments: flags.Arguments) -> None:
  """Runs --mode=predict."""
  given = dict(arguments.given)
  files = {name: given.pop(name, default) for name, default in _FILES.items()}
  if given:
    raise ConfigError(
      f"--mode=predict has no option --{min(given)}: columns and model are those of the"
      " training"
    )
  if not files["at"]:
    raise ConfigError("--at must be given: a table of places, or grid:200x200")
  written = points_prediction.write_predictions(
    arguments.workdir, out=arguments.out, **files
  )
  print(", ".join(map(str, written)))


_FILES = {"table": None, "at": "", "missing": "drop"}  # options of --mode=predict
PROGRAM = launch.Program(
  PointsConfig,
  PointsTask,
  {"predict": ("predict at --at, and write the file --out", _predict)},
)
train, evaluate = PROGRAM.train, PROGRAM.evaluate
predict = points_prediction.predict

if __name__ == "__main__":
  PROGRAM.main()
