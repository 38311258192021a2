"""Options of a task on a table of points."""

import dataclasses
import math
import typing

from experiments import window_task
from experiments.common import systems
from experiments.common.config import option
from experiments.common.errors import ConfigError
from experiments.data import point_sets
from experiments.data import point_tables

_MAX_COORDS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointsConfig(window_task.WindowConfig):
  """Options of a table of points."""

  DEFAULTS: typing.ClassVar = dict(window_task.RELATIVE_RECIPE, num_steps=2000)

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
    needs={"mode": ("predict",)},
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

  @property
  def columns(self) -> point_sets.Columns:
    """The columns of the table."""
    angles = [name for name in self.coord_names if point_tables.is_angle(name)]
    return point_sets.Columns(
      coords=self.coord_names,
      targets=self.target_names,
      periods=self.periods,
      log=names_in(self.log),
      same_scale=names_in(self.same_scale) or angles,
    )


def names_in(text: str) -> list[str]:
  """The names in a text that separates them by commas.

  >>> names_in("lon, lat")
  ['lon', 'lat']
  """
  return [name.strip() for name in text.split(",") if name.strip()]
