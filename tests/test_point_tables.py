"""Tables of points: files that are read, and a clear answer to each bad table."""

import sys

import numpy as np
import pytest

from experiments.common.errors import DataError
from experiments.data import point_sets
from experiments.data import point_tables

pandas = pytest.importorskip("pandas", reason="it is an extra")
pytest.importorskip("pyarrow", reason="it is an extra")

ROWS = [f"{10 + i / 10},{50 - i / 10},{15 + (i * 7) % 13},s{i}" for i in range(60)]
TABLE = "\n".join(["lon,lat,temp,name", *ROWS]) + "\n"


def _write(folder, text, name="stations.csv", encoding="utf-8"):
  path = folder / name
  path.write_bytes(text.encode(encoding))
  return path


def _build(path, coords=("lon", "lat"), targets=("temp",), **options):
  others = dict(held_out=0.2, missing="drop")
  others |= {name: options.pop(name) for name in list(options) if name in others}
  columns = point_sets.Columns(coords, targets, **options)
  return point_sets.build(point_tables.read(path), columns, **others)


def _change(line, old, new, text=TABLE):
  """The table with a change in a line, by its number in the file."""
  lines = text.split("\n")
  assert old in lines[line - 1]
  lines[line - 1] = lines[line - 1].replace(old, new)
  return "\n".join(lines)


@pytest.mark.parametrize(
  "text, encoding",
  [
    (TABLE, "utf-8"),
    (TABLE, "utf-8-sig"),  # a BOM
    (TABLE.replace("\n", "\r\n"), "utf-8"),
    (TABLE.replace(",", ";"), "utf-8"),
    (TABLE.replace(",", "\t"), "utf-8"),
    (TABLE.replace(",", " , "), "utf-8"),
    (TABLE + "\n\n", "utf-8"),
  ],
  ids=["plain", "bom", "crlf", "semicolon", "tab", "spaces", "blank_lines"],
)
def test_read_text_of_each_kind_has_the_same_numbers(text, encoding, tmp_path):
  table = point_tables.read(_write(tmp_path, text, encoding=encoding))
  found = table.numbers(["lon", "lat", "temp"])
  expected = [[float(x) for x in row.split(",")[:3]] for row in ROWS]
  np.testing.assert_array_equal(found, expected)


def test_read_every_format_and_a_data_frame_have_the_same_numbers(tmp_path):
  frame = point_tables.read(_write(tmp_path, TABLE)).frame
  numbers = frame.astype({"lon": float, "lat": float, "temp": float})
  expected = numbers[["lon", "lat", "temp"]].to_numpy()
  for suffix in point_tables.FORMATS:
    path = point_tables.epath.Path(tmp_path / f"again{suffix}")
    point_tables.write(path, numbers, ["temp"])
    table = point_tables.read(path)
    np.testing.assert_array_equal(table.numbers(["lon", "lat", "temp"]), expected)
    assert list(table.frame["name"]) == list(frame["name"])
  table = point_tables.read(numbers)
  np.testing.assert_array_equal(table.numbers(["lon", "lat", "temp"]), expected)


@pytest.mark.parametrize(
  "text, options, message",
  [
    (
      _change(3, "10.1", ""),
      dict(missing="error"),
      "1 of 60 rows .*: line 3; --missing",
    ),
    (
      _change(3, "10.1", "?"),
      dict(missing="error"),
      "1 of 60 .* unreadable .*: line 3;",
    ),
    (_change(3, "10.1", "inf"), dict(missing="error"), "1 of 60 rows .*: line 3;"),
    (
      _change(5, "s3", '"two\nlines"', _change(9, "10.7", "")),
      dict(missing="error"),
      "1 of 60 rows .*: line 10;",
    ),
    (
      TABLE,
      dict(coords=("lon", "latt")),
      "no column 'latt' .nearest: 'lat'.; its columns are lon, l",
    ),
    (TABLE, dict(targets=("LON",)), "no column 'LON' .nearest: 'lon'.;"),
    (
      TABLE,
      dict(targets=("x",)),
      "no column 'x'; its columns are lon, lat, temp, name$",
    ),
    (
      TABLE,
      dict(targets=("name",)),
      r"'name' is text \('s0' in line 2\), not numbers$",
    ),
    (TABLE, dict(coords=("name",)), r"'name' is text .*, not numbers or dates$"),
    ("lon,lat,temp\n1,2,3\n", {}, r"has 1 row with all.* at least 32, and 1 more are"),
    ("lon,lat,temp\n", {}, "has no row with all numbers"),
    ("", {}, "cannot be read: No columns to parse"),
    (TABLE, dict(held_out=0.5), "has 60 rows with all numbers; .* 32, and 30 more"),
    (
      TABLE.replace(",", ";").replace(".", ","),
      {},
      r"'lon' has a comma in a number \('10,0' in line 2\); write decimal points",
    ),
    (_change(7, "10.5", '"10,5"'), {}, r"comma in a number \('10,5' in line 7\)"),
    (_change(7, "10.5", "10,5"), {}, "line 7 has 5 cells, the header 4; write decimal"),
    (
      "\n".join(["lon,lat", *("1,5,2" for _ in range(60))]),
      dict(targets=("lat",)),
      "the lines have more cells than the header|line 2 has 3 cells",
    ),
    (
      "\n".join(["lon,lat,temp", *(f"7,{i},{i}" for i in range(60))]),
      {},
      r"'lon' is constant \(7\)",
    ),
    (
      "\n".join(["lon,lat,temp", *(f"{i},{i},4" for i in range(60))]),
      {},
      r"'temp' is constant \(4\)",
    ),
    (
      _change(4, "49.8", "151.2"),
      {},
      "'lat' has 151.2 in line 4, but must be within -90 and 90; swap latitude and lon",
    ),
    (_change(4, "10.2", "-400"), {}, "'lon' has -400 in line 4, .*within -360 and 360"),
    (_change(4, ",16,", ",-2,"), dict(log=("temp",)), "'temp' has -2 in line 4; --log"),
  ],
)
def test_build_bad_table_raises_one_clear_line(text, options, message, tmp_path):
  path = _write(tmp_path, text)
  with pytest.raises(DataError, match=message) as raised:
    _build(path, **options)
  assert str(path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("a.csv", TABLE.replace("s", "\xe4").encode("latin-1"), "is not UTF-8 text"),
    ("a.csv", TABLE.encode("utf-16"), "is not UTF-8 text"),
    ("a.parquet", b"PAR1 or not", "cannot be read: "),
    ("a.npz", b"PK or not", "cannot be read: "),
    ("a.npz", b"PK\x03\x04 or not", "cannot be read: "),
    ("a.npz", b"", "cannot be read: "),
    ("a.xlsx", b"", "must end in .csv, .tsv, .parquet, .npz"),
  ],
)
def test_read_bad_file_raises_one_clear_line(name, content, message, tmp_path):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(DataError, match=message) as raised:
    point_tables.read(tmp_path / name)
  assert name in str(raised.value) and "\n" not in str(raised.value)


def test_read_missing_file_or_package_raises(tmp_path, monkeypatch):
  with pytest.raises(DataError, match=r"none.csv does not exist"):
    point_tables.read(tmp_path / "none.csv")
  monkeypatch.setitem(sys.modules, "pandas", None)
  with pytest.raises(DataError, match=r"pip install 'tca-jax\[tables\]'"):
    point_tables.read(tmp_path / "none.csv")


def test_build_missing_rows_are_left_out_with_a_warning(tmp_path, caplog):
  text = TABLE
  for line in (3, 5, 7, 9, 11, 13):
    text = _change(line, f"10.{line - 2}" if line < 12 else "11.1", "n/a", text)
  points = _build(_write(tmp_path, text))
  assert len(points.coords) == 54
  message = "6 of 60 rows have missing or unreadable numbers: line 3, line 5, line 7,"
  assert message in caplog.text
  assert "line 9, line 11, …; they are left out" in caplog.text


def test_build_duplicate_places_are_kept(tmp_path):
  text = "\n".join([TABLE.strip(), *(row.replace(",s", ".5,s") for row in ROWS)])
  points = _build(_write(tmp_path, text))
  assert len(points.coords) == 120
  assert len(points.train.coords) == 96 and len(points.held_out.coords) == 24


def test_build_dates_are_days(tmp_path):
  days = [f"2026-01-{1 + i % 28:02d}T12:00,{i}" for i in range(60)]
  points = _build(
    _write(tmp_path, "\n".join(["day,temp", *days])), ("day",), held_out=0.1
  )
  start = np.datetime64("2026-01-01T12:00") - np.datetime64("1970-01-01")
  assert points.coords.min() == start / np.timedelta64(1, "D") == 20454.5
  assert np.ptp(points.coords) == 27


def test_build_scales_train_values_and_coordinates(tmp_path):
  path = _write(tmp_path, TABLE)
  points = _build(path, log=("temp",), periods={"lon": 360})
  scaling = points.scaling
  assert points.train.coords.shape == (48, 2) and points.held_out.values.shape == (
    12,
    1,
  )
  values = np.concatenate([points.train.values, points.held_out.values])
  assert np.mean(points.train.values) == pytest.approx(0, abs=1e-6)
  assert np.std(points.train.values) == pytest.approx(1, abs=1e-5)
  units = scaling.value_map(0).to_units(values)
  np.testing.assert_allclose(np.sort(units), np.sort(points.values[:, 0]), rtol=1e-5)
  locations = np.concatenate([points.train.coords, points.held_out.coords])
  np.testing.assert_allclose(locations.min(0), [-0.5, -0.5], atol=1e-6)
  np.testing.assert_allclose(locations.max(0), [0.5, 0.5], atol=1e-6)
  np.testing.assert_allclose(scaling.axis_periods, [360 / 5.9, 0])
  assert point_sets.Scaling.from_json(scaling.to_json()) == scaling


def test_build_coordinates_that_share_a_scale_have_the_largest_range(tmp_path):
  text = "\n".join(["x,y,z,t", *(f"{i},{3 * i},{9 * i},{i}" for i in range(60))])
  points = _build(
    _write(tmp_path, text), ("x", "y", "z"), ("t",), same_scale=("x", "y")
  )
  assert points.scaling.scale == (177.0, 177.0, 531.0)


def test_log_value_map_moments_are_those_of_a_log_normal(rng):
  scaling = point_sets.Scaling(
    coords=("x",),
    targets=("rain",),
    center=(0.0,),
    scale=(1.0,),
    periods=(0.0,),
    mean=(0.5,),
    std=(0.4,),
    log=(True,),
  )
  mean, std = scaling.value_map(0).moments_in_units(
    np.array([[1.0]]), np.array([[0.8]])
  )
  drawn = np.exp(0.5 + 0.4 * (1 + 0.8 * rng.normal(size=1_000_000)))
  assert mean[0] == pytest.approx(drawn.mean(), rel=2e-3)
  assert std[0] == pytest.approx(drawn.std(), rel=1e-2)


def test_write_npz_allows_every_name(tmp_path):
  path = point_tables.epath.Path(tmp_path / "x.npz")
  point_tables.write_npz(path, {"file": np.arange(3), "allow_pickle": np.ones(2)})
  with np.load(path) as found:
    assert found["file"].tolist() == [0, 1, 2] and found["allow_pickle"].sum() == 2


def test_log_value_map_limits_the_mean_of_a_wide_component():
  """exp(6**2 / 2) is 6.6e7: a rare wide component would decide the mean."""
  scaling = point_sets.Scaling(
    coords=("x",),
    targets=("rain",),
    center=(0.0,),
    scale=(1.0,),
    periods=(0.0,),
    mean=(0.0,),
    std=(1.0,),
    log=(True,),
  )
  mean, std = scaling.value_map(0).moments_in_units([[0.0], [0.0]], [[0.5], [6.0]])
  np.testing.assert_allclose(mean, np.exp([0.125, 0.5]))
  assert np.all(std < 3)
