"""A table of points from start to end: train, compare, save, predict."""

import contextlib
import dataclasses
import io
import json
import re

from etils import epath
import jax
import numpy as np
from PIL import Image
import pytest

from experiments import export
from experiments import points
from experiments import points_evaluation
from experiments import points_prediction
from experiments.common import interpolation
from experiments.common import task as task_lib
from experiments.common import train
from experiments.common import vecchia
from experiments.common.errors import CheckpointError
from experiments.common.errors import ConfigError
from experiments.common.errors import DataError
from experiments.data import point_tables
import tca_jax
from tests import untrained

pandas = pytest.importorskip("pandas", reason="it is an extra")
pytest.importorskip("pyarrow", reason="it is an extra")

SMALL = dict(num_steps=2, batch_size=2, eval_batches=1, read_layers=1, kriged_nodes=8)


def _frame(count=80, seed=0):
  rng = np.random.default_rng(seed)
  lon, lat = rng.uniform(5, 15, count), rng.uniform(45, 55, count)
  wave = np.sin(lon / 2) + np.cos(lat / 3)
  return pandas.DataFrame(
    dict(lon=lon, lat=lat, temp=280 + 20 * wave, rain=np.exp(wave), name="a,b")
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The workdir of a run of two steps with two targets, and its config."""
  folder = tmp_path_factory.mktemp("points")
  _frame().to_csv(folder / "stations.csv", index=False)
  config = points.PointsConfig(
    **SMALL,
    table=str(folder / "stations.csv"),
    coords="lon,lat",
    target="temp,rain",
    log="rain",
    period="lon:360",
  )
  arguments = [f"--{name}={value}" for name, value in SMALL.items()]
  arguments += [f"--table={config.table}", "--coords=lon,lat", "--target=temp,rain"]
  arguments += ["--log=rain", "--period=lon:360", f"--workdir={folder / 'run'}"]
  printed = io.StringIO()
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
    # Saves time; see test_report_early_has_the_pretrained_model.
    patch.setattr(points_prediction, "PRETRAINED", epath.Path(folder / "none"))
    assert points.PROGRAM.run(["points", *arguments]) == 0
  (folder / "printed.txt").write_text(printed.getvalue())
  return folder / "run", config


def test_train_reports_the_baselines_before_training(finished):
  printed = (finished[0].parent / "printed.txt").read_text()
  early, _, late = printed.partition("\n16 held-out points from 64 points\n")
  assert "Before training: 16 of 16 held-out points from 64 points" in early
  for target in ("temp", "rain"):
    assert re.search(rf"Linear interpolation +{target} +64 ", early)
    assert re.search(rf"Local kriging +{target} +64 ", early)
    assert re.search(rf"Relative TCA +{target} +64 ", late)
  assert "TCA" not in early


def test_report_early_leaves_out_a_damaged_model(
  finished, monkeypatch, tmp_path, caplog
):
  (tmp_path / "model.json").write_text("{")
  monkeypatch.setattr(points_prediction, "PRETRAINED", epath.Path(tmp_path))
  points.PointsTask(finished[1]).report_early()
  assert "the report before training leaves it out" in caplog.text


@pytest.mark.slow
def test_report_early_has_the_pretrained_model(finished, capsys):
  points.PointsTask(finished[1]).report_early()
  printed = capsys.readouterr().out
  assert len(re.findall(r"Relative TCA, pretrained +\w+ +64 +-?\d", printed)) == 2


@pytest.fixture(scope="module", autouse=True)
def _same_baselines_with_and_without_gpboost():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(vecchia, "is_installed", lambda: False)
    yield


@pytest.fixture(scope="module", autouse=True)
def _load_once():
  """Loads and compiles each saved model once; models with other tables are not kept."""
  load, kept = points_prediction.load, {}

  def load_once(workdir, table=None, missing="drop", columns=None):
    if table is not None:
      return load(workdir, table, missing, columns)
    key = str(workdir), missing
    if key not in kept:
      kept[key] = load(workdir, table, missing, columns)
    return kept[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(points_prediction, "load", load_once)
    yield


def test_train_writes_scores_beside_baselines_and_a_picture(finished):
  workdir, config = finished
  content = json.loads((workdir / "scores.json").read_text())
  assert content["config"] == dataclasses.asdict(config)
  rows = [(row["target"], row["system"]) for row in content["rows"]]
  systems = ("relative_tca", "linear", "kriging")
  assert rows == [(target, x) for target in ("temp", "rain") for x in systems]
  for row in content["rows"]:
    assert row["num_context"] == 64 and row["num_queries"] == 16
    # In units of the target: the spread of temp is about 18, that of rain about 2.
    assert 0 < row["rmse"] < (30 if row["target"] == "temp" else 3)
    if row["system"] != "linear":
      assert 0 <= row["coverage_50"] <= row["coverage_90"] <= row["coverage_95"] <= 1
  assert Image.open(workdir / "points.png").size[0] > 500
  assert json.loads((workdir / "eval.json").read_text())["step"] == 2


def test_predict_keeps_the_rows_and_their_order_and_predicts_in_units(finished):
  workdir, _ = finished
  places = _frame(30, seed=1)[["name", "lat", "lon"]]
  found = points.predict(workdir, places)
  names = [f"{x}_{y}" for x in ("temp", "rain") for y in ("mean", "std", "low", "high")]
  assert list(found) == ["name", "lat", "lon", *names]
  pandas.testing.assert_frame_equal(found[["name", "lat", "lon"]], places)
  order = np.random.default_rng(0).permutation(30)
  shuffled = points.predict(workdir, places.iloc[order])
  np.testing.assert_allclose(shuffled[names], found[names].iloc[order], rtol=1e-5)
  assert np.all(found["temp_low"] < found["temp_high"]) and np.all(
    found["rain_low"] > 0
  )
  # At a row of the context, the value is nearly known.
  known = points.predict(workdir, _frame())
  assert np.corrcoef(known["temp_mean"], known["temp"])[0, 1] > 0.9
  assert abs(np.mean(known["temp_mean"] - known["temp"])) < 5
  assert np.corrcoef(known["rain_mean"], known["rain"])[0, 1] > 0.9


def test_predict_follows_the_units_of_the_table(finished):
  """A table in other units, with the scaling of these units, has the same result."""
  workdir, _ = finished
  predictor = points_prediction.load(workdir)
  scaling, queries = predictor.scaling, _frame(9, seed=2)[["lon", "lat"]].to_numpy()
  model, params, _ = tca_jax.load(workdir / "model")
  other = dataclasses.replace(
    scaling,
    center=tuple(60 * x + 7 for x in scaling.center),
    scale=tuple(60 * x for x in scaling.scale),
    periods=tuple(60 * x for x in scaling.periods),
    mean=(1.8 * scaling.mean[0] + 32, scaling.mean[1]),
    std=(1.8 * scaling.std[0], scaling.std[1]),
  )
  values = predictor.values * [1.8, 1] + [32, 0]
  changed = points_prediction.Predictor(
    model, params, other, 60 * predictor.coords + 7, values
  )
  expected, found = predictor(queries), changed(60 * queries + 7)
  for name in ("mean", "low", "high"):
    np.testing.assert_allclose(
      found[f"temp_{name}"], 1.8 * expected[f"temp_{name}"] + 32, rtol=1e-4
    )
  np.testing.assert_allclose(found["temp_std"], 1.8 * expected["temp_std"], rtol=2e-3)
  np.testing.assert_allclose(found["rain_mean"], expected["rain_mean"], rtol=2e-3)


def test_predict_from_the_saved_model_equals_the_run_bit_for_bit(finished, tmp_path):
  workdir, _ = finished
  restored = points.PROGRAM.restore(workdir)
  data = restored.task.map
  predictor = points_prediction.Predictor(
    restored.task.model, restored.params, data.scaling, data.coords, data.values
  )
  queries = _frame(9, seed=2)[["lon", "lat"]]
  expected = predictor(queries.to_numpy())
  model, params, info = tca_jax.load(workdir / "model")
  assert info["task"] == "points" and info["step"] == 2
  tca_jax.save(tmp_path / "copy", model, params, **info)
  for folder in (workdir, workdir / "model", tmp_path / "copy"):
    found = points.predict(folder, queries)
    for name, column in expected.items():
      np.testing.assert_array_equal(found[name], column)


def test_run_predict_writes_the_users_text_unchanged(finished, tmp_path, capsys):
  workdir, _ = finished
  text = 'id;lat;lon;note\n007;50.10;10.0;"a;b"\n008;;10.0;\n009;50.30;1e1;x\n'
  (tmp_path / "places.csv").write_text(text)
  out = tmp_path / "new" / "predictions.tsv"
  arguments = [f"--workdir={workdir}", f"--at={tmp_path / 'places.csv'}"]
  assert points.PROGRAM.run(["x", "--mode=predict", *arguments, f"--out={out}"]) == 0
  assert str(out) in capsys.readouterr().out
  lines = [line.split("\t") for line in out.read_text().splitlines()]
  assert [line[:4] for line in lines] == [
    ["id", "lat", "lon", "note"],
    ["007", "50.10", "10.0", "a;b"],
    ["008", "", "10.0", ""],
    ["009", "50.30", "1e1", "x"],
  ]
  assert lines[2][4:] == [""] * 8  # no coordinate, no prediction
  expected = points.predict(workdir, pandas.DataFrame(dict(lat=[50.1], lon=[10.0])))
  np.testing.assert_allclose(
    [float(x) for x in lines[1][4:]], expected.iloc[0, 2:].astype(float), rtol=1e-5
  )


def test_run_predict_writes_a_grid_and_a_picture(finished, tmp_path):
  workdir, _ = finished
  out = tmp_path / "grid.npz"
  arguments = ["--mode=predict", f"--workdir={workdir}", "--at=grid:7x5"]
  assert points.PROGRAM.run(["x", *arguments, f"--out={out}"]) == 0
  with np.load(out) as grid:
    assert grid["lon"].shape == (7,) and grid["lat"].shape == (5,)
    assert grid["lon"][0] == pytest.approx(_frame()["lon"].min())
    assert grid["temp_mean"].shape == grid["rain_high"].shape == (7, 5)
    place = pandas.DataFrame(dict(lon=grid["lon"][[2]], lat=grid["lat"][[3]]))
    expected = points.predict(workdir, place)["temp_mean"][0]
    assert grid["temp_mean"][2, 3] == pytest.approx(expected, rel=1e-5)
  assert Image.open(tmp_path / "grid.png").size[0] > 500


def test_predict_a_period_away_is_the_same(finished):
  workdir, _ = finished
  queries = _frame(9, seed=2)[["lon", "lat"]]
  found = points.predict(workdir, queries.assign(lon=queries["lon"] - 360))
  expected = points.predict(workdir, queries)
  np.testing.assert_allclose(found["temp_mean"], expected["temp_mean"], rtol=1e-4)


def test_export_of_a_run_predicts_the_same(finished, tmp_path):
  workdir, _ = finished
  export.export(
    point_tables.epath.Path(workdir), "t", point_tables.epath.Path(tmp_path)
  )
  queries = _frame(9, seed=2)[["lon", "lat"]]
  pandas.testing.assert_frame_equal(
    points.predict(tmp_path / "checkpoints" / "t", queries),
    points.predict(workdir, queries),
  )


def test_predict_from_another_table_follows_its_values(finished):
  workdir, _ = finished
  other = _frame(50, seed=3)
  other["temp"] += 100
  queries = _frame(9, seed=2)
  queries = queries[["lon", "lat"]]
  found = points.predict(workdir, queries, table=other)["temp_mean"]
  assert np.mean(found - points.predict(workdir, queries)["temp_mean"]) > 70
  with pytest.raises(DataError, match=r"'rain' must be above 0, because .* logarithm"):
    points.predict(workdir, queries, table=other.assign(rain=0.0))


@pytest.mark.parametrize(
  "arguments, code, message",
  [
    ([], 1, "--at must be given: a table of places, or grid:200x200"),
    (["--at=grid:7x5", "--period=lon:360"], 1, "period must not be given without"),
    (
      ["--at=grid:7x5", "--num_paths=2"],
      1,
      "has no option --num_paths; it has --table",
    ),
    (["--at=grid:7"], 1, "grid:7 has 1 axes, and the model 2: lon, lat"),
    (["--at=grid:7by5"], 1, "a grid must be like grid:200x200, got 'grid:7by5'"),
    (["--at=grid:7x5", "--out=x.csv"], 1, "the file of a grid must end in .npz"),
    (["--at=none.csv"], 1, "none.csv does not exist"),
    (["--at=none.csv", "--out=x.doc"], 1, "x.doc: the name of a table must end in .cs"),
    (
      ["--at=x.csv", "--seed=3"],
      1,
      "--mode=predict has no option --seed; it has --table",
    ),
  ],
)
def test_run_predict_bad_options_fail_in_one_line(
  arguments, code, message, finished, caplog, capsys
):
  workdir, _ = finished
  found = points.PROGRAM.run(
    ["x", "--mode=predict", f"--workdir={workdir}", *arguments]
  )
  assert found == code
  assert message in caplog.text + capsys.readouterr().err
  assert "Traceback" not in caplog.text


def test_predict_without_a_trained_model_raises(tmp_path):
  with pytest.raises(CheckpointError, match="has no trained model of points"):
    points.predict(tmp_path, _frame())
  tca_jax.save(
    tmp_path / "other", tca_jax.GaussianHead(1), {"w": np.ones(2, np.float32)}
  )
  with pytest.raises(CheckpointError, match="is a model of another task than points"):
    points.predict(tmp_path / "other", _frame())


def test_predict_columns_that_exist_raise(finished):
  workdir, _ = finished
  with pytest.raises(DataError, match="already has a column 'temp_mean'; rename it"):
    points.predict(workdir, _frame(3).assign(temp_mean=1.0))


GIVEN = dict(table="t.csv", coords="x,y", target="z")


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(table=""), "table, coords and target must be given"),
    (dict(coords=","), "table, coords and target must be given"),
    (dict(coords="a,b,c,d,e,f,g,h,i"), "coords must be at most 8 columns, got 9"),
    (dict(coords="x,z"), "coords and target have 'z' twice"),
    (dict(log="x"), "log must have names of z, got 'x'"),
    (dict(period="z:3"), "period must have names of x, y, got 'z'"),
    (dict(period="x"), "a name and a number above 0, as lon:360, got 'x'"),
    (dict(period="x:-1"), "a name and a number above 0, as lon:360, got 'x:-1'"),
    (dict(same_scale="x,q"), "same_scale must have names of x, y, got 'q'"),
    (dict(held_out=0.0), "held_out must be above 0, got 0.0"),
    (dict(held_out=1.0), "held_out must be below 1"),
    (dict(model="tca"), "model must be relative_tca or relative_ca .*, got 'tca'"),
    (dict(missing="keep"), r"missing must be one of \('drop', 'error'\)"),
  ],
)
def test_config_bad_option_raises(change, message):
  points.PointsConfig(**GIVEN)
  with pytest.raises(ConfigError, match=message):
    points.PointsConfig(**(GIVEN | change))


def _task(folder, frame, **options):
  """An untrained task of a table, and what evaluators need."""
  path = folder / "table.parquet"
  frame.to_parquet(path)
  task = points.PointsTask(points.PointsConfig(**SMALL, table=str(path), **options))
  params = untrained.params(task)
  workdir = point_tables.epath.Path(folder)
  return task_lib.Restored(task=task, params=params, step=0, workdir=workdir)


def test_one_coordinate_has_a_curve_and_interpolation(tmp_path):
  time = np.random.default_rng(0).uniform(0, 30, 70)
  frame = pandas.DataFrame(dict(time=time, level=np.sin(time)))
  restored = _task(tmp_path, frame, coords="time", target="level")
  content = points_evaluation.Scores().evaluate(restored, restored.workdir / "s.json")
  rows = {row["system"]: row for row in content["rows"]}
  assert list(rows) == ["relative_tca", "linear", "kriging"]
  assert rows["linear"]["rmse"] < 0.5
  points_evaluation.Picture().evaluate(restored, restored.workdir / "points.png")
  assert Image.open(tmp_path / "points.png").size[0] > 500
  for batch in (restored.task.first_batch(), next(restored.task.eval_batches())):
    assert batch.coords.shape[-1] == 1
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(batch))


@pytest.mark.slow
def test_many_coordinates_and_duplicates_have_finite_predictions(tmp_path):
  rng = np.random.default_rng(0)
  coords = rng.integers(0, 3, (90, 4)).astype(float)  # many duplicate places
  frame = pandas.DataFrame(coords, columns=list("abcd"))
  frame["y"] = coords.sum(axis=1) + rng.normal(size=90)
  restored = _task(tmp_path, frame, coords="a,b,c,d", target="y")
  content = points_evaluation.Scores().evaluate(restored, restored.workdir / "s.json")
  assert [row["system"] for row in content["rows"]] == ["relative_tca", "kriging"]
  assert all(np.isfinite(row["log_likelihood"]) for row in content["rows"])
  assert not points_evaluation.Picture().applies(restored.task)
  step = train.make_train_step(
    restored.task, train.build_optimizer(restored.task.config)
  )
  state = train.init_state(restored.task, train.build_optimizer(restored.task.config))
  _, metrics = jax.jit(step)(state, restored.task.first_batch(), 0)
  assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])


def test_places_on_a_line_have_no_linear_interpolation(tmp_path):
  along = np.random.default_rng(0).uniform(0, 1, 60)
  frame = pandas.DataFrame(dict(x=along, y=along, z=np.sin(9 * along)))
  points_of = _task(tmp_path, frame, coords="x,y", target="z").task.map
  rows = points_evaluation._baselines(
    points_of.scaling.value_map(0, points_of.train, points_of.held_out)
  )
  assert [row["system"] for row in rows] == ["kriging"]


def test_triangulate_one_axis_averages_equal_points():
  line = interpolation.triangulate(np.array([[2.0], [0.0], [2.0]]))
  found = line.interpolate(np.array([1.0, 0.0, 3.0]), np.array([[-1], [1], [2], [9]]))
  assert found.tolist() == [0, 1, 2, 2]
