"""Real tables of points that Python packages ship, for comparisons without training.

None of them is a part of the training of `experiments.surfaces`. Some packages are not
among the requirements of the experiments. They are small, and only their files are read:

  pip install --no-deps vega_datasets==0.9.0 scikit-gstat==1.0.26 plotnine==0.15.9 \
    libpysal==4.14.1
"""

from collections.abc import Callable
import dataclasses
import io
import json
import pathlib
import typing

import numpy as np
from PIL import Image

from experiments.data import packages
from experiments.data import point_sets
from experiments.data import point_tables

_NOISE_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShippedTable:
  """A table in a file of a package.

  Attributes:
    title: what the table contains.
    package: import name of the package.
    path: path of the file within the package.
    requirement: the requirement for pip.
    licence: licence of the package and, if it is another one, of the data.
    columns: the columns to use.
    unit: unit of the target.
    read: makes a `pandas.DataFrame` of the file.
  """

  title: str
  package: str
  path: str
  requirement: str
  licence: str
  columns: point_sets.Columns
  unit: str
  read: Callable[[pathlib.Path], typing.Any]

  def load(self) -> point_tables.Table:
    """Reads the table.

    Raises:
      DataError: if the package is not installed or lacks the file.
    """
    file = packages.find_file(self.package, self.path, self.requirement)
    return point_tables.Table(self.read(file), f"{self.requirement}: {self.path}")


def _read_csv(file: pathlib.Path) -> typing.Any:
  return point_tables.import_pandas().read_csv(file)


def _read_grid(file: pathlib.Path) -> typing.Any:
  """The grid of elevations of matplotlib's `topobathy`."""
  with np.load(file) as arrays:
    lat, lon = np.meshgrid(arrays["latitude"], arrays["longitude"], indexing="ij")
    columns = {"lon": lon, "lat": lat, "elevation": arrays["topo"]}
  return _frame({name: np.float64(x).ravel() for name, x in columns.items()})


def _read_pixels(file: pathlib.Path) -> typing.Any:
  """The pixels of a grey photograph, with uniform noise of one grey level.

  See `elevation.load_points` for the reason of the noise.
  """
  with Image.open(file) as photo:
    grey = np.asarray(photo.convert("L"), np.float64)
  noise = np.random.default_rng(_NOISE_SEED).uniform(-1 / 2, 1 / 2, grey.shape)
  row, column = np.indices(grey.shape)
  columns = {"x": column, "y": -row, "grey": grey + noise}
  return _frame({name: x.ravel() for name, x in columns.items()})


def _read_hours(file: pathlib.Path) -> typing.Any:
  """Hourly temperatures of a year, by day of the year and hour of the day."""
  pandas = point_tables.import_pandas()
  table = pandas.read_csv(file)
  moments = pandas.to_datetime(table["date"], format="%Y/%m/%d %H:%M")
  return table.assign(day=moments.dt.day_of_year, hour=moments.dt.hour)


def _read_geojson(file: pathlib.Path) -> typing.Any:
  """The properties of the features in a GeoJSON file."""
  features = json.loads(io.TextIOWrapper(file.open("rb"), "utf-8").read())["features"]
  return point_tables.import_pandas().DataFrame([x["properties"] for x in features])


def _frame(columns: dict[str, np.ndarray]) -> typing.Any:
  return point_tables.import_pandas().DataFrame(columns)


def _photo(title: str, name: str, licence: str) -> ShippedTable:
  return ShippedTable(
    title=title,
    package="skimage",
    path=f"data/{name}.png",
    requirement="scikit-image==0.26.0",
    licence=licence,
    columns=point_sets.Columns(["x", "y"], ["grey"], same_scale=["x", "y"]),
    unit="grey levels",
    read=_read_pixels,
  )


TABLES: dict[str, ShippedTable] = {
  "topography": ShippedTable(
    title="Elevation of land and sea floor around Vancouver Island, a grid",
    package="matplotlib",
    path="mpl-data/sample_data/topobathy.npz",
    requirement="matplotlib==3.11.2",
    licence="matplotlib (PSF-based)",
    columns=point_sets.Columns(
      ["lon", "lat"], ["elevation"], same_scale=["lon", "lat"]
    ),
    unit="m",
    read=_read_grid,
  ),
  "moon": _photo("Photograph of the moon", "moon", "public domain (NASA)"),
  "brick": _photo("Photograph of a brick wall", "brick", "CC0"),
  "seattle": ShippedTable(
    title="Temperature in Seattle, by day of the year and hour of the day",
    package="vega_datasets",
    path="_data/seattle-temps.csv",
    requirement="vega_datasets==0.9.0",
    licence="BSD-3-Clause; data: public domain (NOAA)",
    columns=point_sets.Columns(["day", "hour"], ["temp"]),
    unit="degrees F",
    read=_read_hours,
  ),
  "meuse": ShippedTable(
    title="Zinc in the soil beside the river Meuse",
    package="skgstat",
    path="data/samples/meuse.txt",
    requirement="scikit-gstat==1.0.26",
    licence="MIT",
    columns=point_sets.Columns(
      ["x", "y"], ["zinc"], log=["zinc"], same_scale=["x", "y"]
    ),
    unit="ppm",
    read=_read_csv,
  ),
  "seals": ShippedTable(
    title="Movement of seals to the east, estimated on a grid",
    package="plotnine",
    path="data/seals.csv",
    requirement="plotnine==0.15.9",
    licence="MIT",
    columns=point_sets.Columns(
      ["long", "lat"], ["delta_long"], same_scale=["long", "lat"]
    ),
    unit="degrees",
    read=_read_csv,
  ),
  "georgia": ShippedTable(
    title="Share of poor people in the counties of Georgia",
    package="libpysal",
    path="examples/georgia/GData_utm.csv",
    requirement="libpysal==4.14.1",
    licence="BSD-3-Clause",
    columns=point_sets.Columns(["X", "Y"], ["PctPov"], same_scale=["X", "Y"]),
    unit="%",
    read=_read_csv,
  ),
  "baltimore": ShippedTable(
    title="Prices of houses in Baltimore",
    package="libpysal",
    path="examples/baltim/baltimore.geojson",
    requirement="libpysal==4.14.1",
    licence="BSD-3-Clause",
    columns=point_sets.Columns(
      ["X", "Y"], ["PRICE"], log=["PRICE"], same_scale=["X", "Y"]
    ),
    unit="1,000 dollars",
    read=_read_geojson,
  ),
}
