"""Tables of points in files: read, checked and written.

Text files are read as text, so that the columns of a user are written as they were read.
Only the columns that a model needs are converted to numbers.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import csv
import dataclasses
import difflib
import re
import typing
import warnings
import zipfile

from absl import logging
from etils import epath
import numpy as np

from experiments.common import paths
from experiments.common.errors import DataError
from tca_jax import storage

_TEXT = (".csv", ".tsv")
FORMATS = (*_TEXT, ".parquet", ".npz")
_CELLS = "write decimal points, and quote text with separators"
_LISTED = 5  # bad rows that a message names
_COMMA = r"[-+]?\d[\d.]*,\d+"  # a number with a decimal comma
# Names of columns that contain angles, and the largest angle in degrees.
_LARGEST_ANGLE = dict.fromkeys(("lat", "latitude"), 90) | dict.fromkeys(
  ("lon", "long", "lng", "longitude"), 360
)


def is_angle(name: str) -> bool:
  """Whether a column is, by its name, a latitude or a longitude."""
  return name.lower() in _LARGEST_ANGLE


@dataclasses.dataclass(frozen=True)
class Table:
  """A table, and where its rows are in a file.

  Attributes:
    frame: the `pandas.DataFrame`, n rows.
    name: name of the table in messages.
    lines: `[n]` int, the lines of the rows in a text file; None: rows have no lines.
  """

  frame: typing.Any
  name: str
  lines: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.frame)

  def place(self, i: int) -> str:
    """The place of a row in messages, such as "line 3"; lines and rows start at 1."""
    if self.lines is None:
      return f"row {i + 1}"
    above = self.frame.iloc[:i]
    breaks = sum(above[name].str.count("\n").sum() for name in above)
    return f"line {self.lines[i] + breaks}"

  def numbers(self, names: Sequence[str], dates: bool = False) -> np.ndarray:
    """Converts columns to numbers.

    Args:
      names: k names of columns.
      dates: whether dates become days since the start of 1970.

    Returns:
      `[n, k]` float64; NaN in cells that are empty, or no finite number.

    Raises:
      DataError: if a column does not exist, is text, or has decimal commas.
    """
    for name in names:
      if name not in self.frame:
        raise DataError(self._unknown(name))
    columns = [self._numbers(name, dates) for name in names]
    found = np.stack(columns, axis=1) if len(self) else np.zeros((0, len(names)))
    return np.where(np.isfinite(found), found, np.nan)

  def _unknown(self, name: str) -> str:
    columns = [str(x) for x in self.frame]
    by_lower = {column.lower(): column for column in columns}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    hint = f" (nearest: {by_lower[near[0]]!r})" if near else ""
    listed = ", ".join(columns[:20]) + (", …" if len(columns) > 20 else "")
    return f"{self.name} has no column {name!r}{hint}; its columns are {listed}"

  def _numbers(self, name: str, dates: bool) -> np.ndarray:
    pandas, column = import_pandas(), self.frame[name]
    if pandas.api.types.is_numeric_dtype(column):
      return column.to_numpy(np.float64, na_value=np.nan)
    text = column.astype("str").fillna("").str.strip()
    numbers = pandas.to_numeric(text, errors="coerce")
    unread = numbers.isna() & ~text.str.lower().isin(["", "na", "nan", "none", "null"])
    commas = np.flatnonzero(unread & text.str.fullmatch(_COMMA))
    if len(commas):
      raise DataError(
        f"{self.name}: the column {name!r} has a comma in a number"
        f" ({text.iloc[commas[0]]!r} in {self.place(commas[0])}); write decimal points,"
        " and no thousands separators"
      )
    if unread.sum() <= numbers.notna().sum():
      return numbers.to_numpy(np.float64)
    if dates:
      moments = pandas.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
      if moments.notna().sum() >= unread.sum() / 2:
        start = pandas.Timestamp(0, tz="UTC")
        return ((moments - start) / pandas.Timedelta(days=1)).to_numpy(np.float64)
    first = int(np.flatnonzero(unread)[0])
    raise DataError(
      f"{self.name}: the column {name!r} is text ({text.iloc[first]!r} in"
      f" {self.place(first)}), not numbers" + (" or dates" if dates else "")
    )

  def check_angles(self, names: Sequence[str], coords: np.ndarray) -> None:
    """Checks columns that are latitudes or longitudes by their names.

    Args:
      names: C names of columns.
      coords: `[n, C]`, their numbers.

    Raises:
      DataError: if a number is out of range.
    """
    for name, column in zip(names, coords.T, strict=True):
      largest = _LARGEST_ANGLE.get(name.lower(), np.inf)
      outside = np.flatnonzero(np.abs(column) > largest)
      if len(outside):
        raise DataError(
          f"{self.name}: the column {name!r} has {column[outside[0]]:g} in"
          f" {self.place(outside[0])}, but must be within -{largest} and {largest}; swap"
          " latitude and longitude, or rename the column if it is no angle"
        )

  def complete_rows(
    self,
    numbers: np.ndarray,
    missing: typing.Literal["drop", "error"],
    result: str = "they are left out",
  ) -> np.ndarray:
    """Finds the rows that have all numbers, and reports the others.

    Args:
      numbers: `[n, k]`, NaN in cells without a number.
      missing: whether to drop other rows with a warning, or to raise an error.
      result: what happens to the dropped rows, for the warning.

    Returns:
      `[m]` int, the rows with all numbers, in their order.

    Raises:
      DataError: if missing is "error" and a row lacks a number.
    """
    complete = ~np.isnan(numbers).any(axis=1)
    bad = np.flatnonzero(~complete)
    if len(bad):
      places = ", ".join(self.place(i) for i in bad[:_LISTED])
      text = (
        f"{self.name}: {len(bad):,} of {len(self):,} rows have missing or unreadable"
        f" numbers: {places}{', …' if len(bad) > _LISTED else ''}"
      )
      if missing == "error":
        raise DataError(f"{text}; --missing=drop allows them")
      logging.warning("%s; %s", text, result)
    return np.flatnonzero(complete)


def import_pandas() -> typing.Any:
  """Imports pandas, or raises a DataError that says how to install it."""
  try:
    import pandas  # noqa: PLC0415
  except ModuleNotFoundError:
    raise DataError(
      "tables are read with the package pandas, which is not installed; run"
      " `pip install 'tca-jax[tables]'` and the same command again"
    ) from None
  return pandas


def check_format(path: epath.Path) -> None:
  """Raises a DataError if the suffix of a path is not that of a table."""
  if path.suffix.lower() not in FORMATS:
    raise DataError(f"{path}: the name of a table must end in {', '.join(FORMATS)}")


def read(source: typing.Any) -> Table:
  """Reads a table.

  Args:
    source: the path of a CSV, TSV, Parquet or NPZ file, or a `pandas.DataFrame`. The
      first line of a text file has the names of the columns. An NPZ file has an array
      `[n]` for each column.

  Raises:
    DataError: if the file does not exist or cannot be read.
  """
  pandas = import_pandas()
  if isinstance(source, pandas.DataFrame):
    return Table(source, "the table")
  path = paths.to_path(source, "the table").expanduser()
  check_format(path)
  if not path.exists():
    raise DataError(f"{path} does not exist")
  try:
    if path.suffix.lower() in _TEXT:
      return _read_text(pandas, path)
    with path.open("rb") as file:
      if path.suffix.lower() == ".parquet":
        return Table(pandas.read_parquet(file), str(path))
      with np.load(file, allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in arrays}
      return Table(pandas.DataFrame(columns), str(path))
  except UnicodeDecodeError as error:
    raise DataError(f"{path} is not UTF-8 text; save it as UTF-8") from error
  except pandas.errors.ParserWarning as error:
    text = "the lines have more cells than the header"
    raise DataError(f"{path}: {text}; {_CELLS}") from error
  except (OSError, ValueError, ImportError, EOFError, zipfile.BadZipFile) as error:
    found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
    if found:
      text = f"line {found[2]} has {found[3]} cells, the header {found[1]}"
      raise DataError(f"{path}: {text}; {_CELLS}") from error
    reason = (str(error) or repr(error)).splitlines()[0][:200]
    raise DataError(f"{path} cannot be read: {reason}") from error


def _read_text(pandas: typing.Any, path: epath.Path) -> Table:
  """Reads a CSV or TSV file, all cells as text."""
  with path.open("r", encoding="utf-8-sig") as file:
    header = file.readline()
  separator = "\t"
  if path.suffix.lower() == ".csv":
    separator = max(",;\t", key=header.count)
  with warnings.catch_warnings(), path.open("rb") as file:
    warnings.simplefilter("error", pandas.errors.ParserWarning)
    frame = pandas.read_csv(
      file,
      sep=separator,
      dtype=str,
      encoding="utf-8-sig",
      na_filter=False,
      skip_blank_lines=False,
      index_col=False,
    )
  frame.columns = [str(name).strip() for name in frame.columns]
  frame = frame.fillna("")
  used = ~(frame == "").all(axis=1).to_numpy() if len(frame) else np.zeros(0, bool)
  return Table(frame[used], str(path), np.flatnonzero(used) + 2)


def write(path: epath.Path, frame: typing.Any, new: Sequence[str]) -> None:
  """Writes a table in the format of a path's suffix.

  Args:
    path: the file to write.
    frame: the `pandas.DataFrame`.
    new: columns of numbers to write with ten digits in a text file.

  Raises:
    DataError: if the suffix is not that of a table.
  """
  check_format(path)
  suffix = path.suffix.lower()
  storage.make_folder(path.parent)
  if suffix == ".parquet":
    with path.open("wb") as file:
      frame.to_parquet(file, index=False)
  elif suffix == ".npz":
    columns = {str(name): frame[name].to_numpy() for name in frame}
    texts = {name: x.astype(str) for name, x in columns.items() if x.dtype == object}
    write_npz(path, columns | texts)
  else:
    digits = {
      name: frame[name].map("{:.10g}".format, na_action="ignore") for name in new
    }
    with path.open("wb") as file:
      frame.assign(**digits).to_csv(
        file,
        sep="," if suffix == ".csv" else "\t",
        index=False,
        quoting=csv.QUOTE_MINIMAL,
      )


def write_npz(path: epath.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes an NPZ file, whose arrays may have any name, such as "file"."""
  storage.make_folder(path.parent)
  with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
    for name, array in arrays.items():
      with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
