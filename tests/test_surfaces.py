"""Random surfaces, the pretraining on them, and predictions without training."""

import dataclasses
import json

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import points
from experiments import points_prediction
from experiments import surfaces
from experiments import zero_shot
from experiments.common import train
from experiments.common.batch import Batch
from experiments.common.errors import CheckpointError
from experiments.common.errors import ConfigError
from experiments.common.errors import DataError
from experiments.data import augmentation
from experiments.data import elevation
from experiments.data import point_sets
from experiments.data import point_tables
from experiments.data import random_surfaces
from experiments.data import shipped_tables
from experiments.report_pages import runs
from experiments.report_pages import zero_shot as zero_shot_page
import tca_jax

TINY = surfaces.SurfacesConfig(
  maps="airports",
  num_steps=1,
  batch_size=3,
  eval_batches=2,
  num_context=64,
  read_layers=1,
  kriged_nodes=8,
)


# --- Random surfaces.


@pytest.fixture(scope="module")
def batch():
  """A batch of 60 random surfaces."""
  sample = jax.jit(random_surfaces.sample, static_argnums=(1, 2, 3, 4))
  return jax.device_get(sample(jax.random.key(0), 60, 48, 16, 0.5))


def test_sample_is_standardised_and_within_the_unit_square(batch):
  assert batch.coords.shape == (60, 48, 2) and batch.query_coords.shape == (60, 16, 2)
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(batch))
  assert np.all(np.abs(batch.coords) <= 0.5) and np.all(np.abs(batch.query_coords) <= 1)
  values = np.concatenate([batch.targets, batch.values], axis=1)[..., 0]
  np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-3)
  np.testing.assert_allclose(values.std(axis=1), 1, rtol=1e-3)


def test_sample_has_full_and_smaller_contexts(batch):
  count = batch.mask.sum(axis=1)
  assert np.all(np.diff(batch.mask.astype(int), axis=1) <= 0)  # valid ones come first
  assert count.min() >= random_surfaces.MIN_CONTEXT
  assert 0.3 < np.mean(count == 48) < 0.75
  assert len(set(count.tolist())) > 10


def test_sample_has_smooth_rough_and_noisy_surfaces(batch):
  """How much the nearest observation explains differs between surfaces."""
  errors = []
  for i in range(60):
    known = batch.mask[i]
    gaps = batch.query_coords[i][:, None] - batch.coords[i][known]
    nearest = np.argmin(np.sum(gaps**2, axis=-1), axis=-1)
    error = batch.targets[i] - batch.values[i][known][nearest]
    errors.append(np.sqrt(np.mean(error**2)))
  low, high = np.quantile(errors, [0.1, 0.9])
  assert low < 0.45 and high > 1


_draw_processes = jax.jit(
  jax.vmap(random_surfaces.draw_process, in_axes=(0, None, None, None))
)


@pytest.mark.parametrize("smoothness", [0.5, pytest.param(1.5, marks=pytest.mark.slow)])
def test_draw_process_has_a_matern_covariance(smoothness):
  distance, length = np.array([0.0, 0.1, 0.3, 0.8]), 0.4
  coords = jnp.stack([jnp.asarray(distance), jnp.zeros(4)], axis=-1) * np.sqrt(0.5)
  coords = coords[:, :1] * jnp.ones((1, 2))  # along a diagonal
  keys = jax.random.split(jax.random.key(0), 2000)
  values = np.asarray(_draw_processes(keys, coords, length, smoothness))
  scaled = np.sqrt(2 * smoothness) * distance / length
  expected = np.exp(-scaled) * (1 if smoothness == 0.5 else 1 + scaled)
  found = np.mean(values * values[:, :1], axis=0)
  np.testing.assert_allclose(found, expected, atol=0.08)


def test_random_stretch_keeps_areas_and_moves_queries_with_their_context():
  coords = np.random.default_rng(0).uniform(-1, 1, (40, 5, 2)).astype(np.float32)
  values = np.zeros((40, 5, 1), np.float32)
  ones = np.ones((40, 5), bool)
  given = Batch(
    coords=coords,
    values=values,
    mask=ones,
    query_coords=coords,
    targets=values,
    query_mask=ones,
  )
  found = augmentation.random_stretch(jax.random.key(0), given, 4.0)
  np.testing.assert_array_equal(found.coords, found.query_coords)
  maps = np.array(
    [
      np.linalg.lstsq(x, y, rcond=None)[0]
      for x, y in zip(coords, found.coords, strict=True)
    ]
  )
  np.testing.assert_allclose(np.linalg.det(maps), 1, rtol=1e-3)
  singular = np.linalg.svd(maps, compute_uv=False)
  ratio = singular[:, 0] / singular[:, 1]
  assert ratio.max() <= 4.01 and 0.2 < np.mean(ratio < 1.001) < 0.8
  turned = np.abs(np.asarray(found.coords - coords)).max(axis=(1, 2)) > 1e-6
  assert 0.5 < turned.mean() < 0.95


# --- The task.


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(model="tca"), "model must be relative_tca or relative_ca .*, got 'tca'"),
    (dict(maps="fault,alps"), "maps must have names of fault, .*, got 'alps'"),
    (dict(maps=""), "synthetic must be at most 1, and 1 without maps, got 0.7"),
    (
      dict(synthetic=0.01),
      "at least one of the . examples of a batch and not all, got",
    ),
    (dict(synthetic=1.5), "synthetic must be at most 1, and 1 without maps, got 1.5"),
  ],
)
def test_config_bad_option_raises(change, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(TINY, **change)


def test_batches_mix_surfaces_and_windows_of_a_map():
  task = surfaces.SurfacesTask(dataclasses.replace(TINY, num_context=16))
  locations = {x.tobytes() for x in np.asarray(elevation.load("airports").train.coords)}

  def of_map(task):
    """For each example, whether its context is a part of the map."""
    batch = next(task.eval_batches())
    return [x[0].tobytes() in locations for x in np.asarray(batch.coords)]

  assert task.config.num_synthetic == 2 and of_map(task) == [False, False, True]
  assert of_map(task.of_kind("airports")) == [True] * 3
  assert task.of_kind("synthetic").config.num_synthetic == 3


@pytest.mark.slow
def test_train_writes_metrics_of_each_kind(tmp_path):
  surfaces.train(TINY, tmp_path / "run")
  content = surfaces.evaluate(tmp_path / "run")
  rows = content["kinds.json"]["rows"]
  assert [row["kind"] for row in rows] == ["synthetic", "airports"]
  assert all(np.isfinite(row["log_likelihood"]) for row in rows)
  assert content["eval.json"]["num_examples"] == 6


# --- Predictions without training.

pandas = pytest.importorskip("pandas", reason="it is an extra")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  """The folder of an untrained reader."""
  folder = tmp_path_factory.mktemp("reader") / "model"
  task = surfaces.SurfacesTask(dataclasses.replace(TINY, maps="", synthetic=1.0))
  params = train.init_params(task)
  tca_jax.save(folder, task.model, params, task="surfaces", step=0, **task.inputs)
  return epath.Path(folder)


@pytest.fixture
def shipped(pretrained, monkeypatch):
  """The same reader in place of the one in the repository."""
  monkeypatch.setattr(points_prediction, "PRETRAINED", pretrained)


def _frame(count=40, seed=0):
  rng = np.random.default_rng(seed)
  x, y = rng.uniform(0, 9, count), rng.uniform(0, 5, count)
  return pandas.DataFrame(dict(x=x, y=y, level=100 + x * y, rain=np.exp(x / 3)))


OPTIONS = dict(coords="x,y", target="level", same_scale="x,y")


def test_predict_without_workdir_follows_the_units_of_the_table(shipped):
  context, at = _frame(), _frame(9, seed=1)[["x", "y"]]
  found = points.predict(None, at, context, **OPTIONS)
  assert list(found) == ["x", "y"] + [
    f"level_{name}" for name in ("mean", "std", "low", "high")
  ]
  known = points.predict(None, context[["x", "y"]], context, **OPTIONS)
  assert np.corrcoef(known["level_mean"], context["level"])[0, 1] > 0.95
  units = dict(x=1000 * context["x"] - 7, y=1000 * context["y"] + 9)
  other = context.assign(**units, level=1.8 * context["level"] + 32)
  there = at.assign(x=1000 * at["x"] - 7, y=1000 * at["y"] + 9)
  changed = points.predict(None, there, other, **OPTIONS)
  for name in ("mean", "low", "high"):
    expected = 1.8 * found[f"level_{name}"] + 32
    np.testing.assert_allclose(changed[f"level_{name}"], expected, rtol=2e-3)


def test_predict_several_targets_equals_each_by_itself(shipped):
  context, at = _frame(), _frame(5, seed=1)[["x", "y"]]
  both = points.predict(None, at, context, **OPTIONS | dict(target="level,rain"))
  for target in ("level", "rain"):
    one = points.predict(None, at, context, **OPTIONS | dict(target=target))
    pandas.testing.assert_frame_equal(both[list(one)], one, rtol=1e-4)


def test_predict_log_and_period_of_the_pretrained_reader(shipped):
  context, at = _frame(), _frame(5, seed=1)[["x", "y"]]
  options = dict(coords="x,y", target="rain", log="rain", period="x:10")
  found = points.predict(None, at, context, **options)
  assert np.all(found["rain_low"] > 0)
  around = points.predict(None, at.assign(x=at["x"] + 10), context, **options)
  np.testing.assert_allclose(around["rain_mean"], found["rain_mean"], rtol=1e-3)


def test_run_predict_without_workdir_writes_into_the_current_folder(
  shipped, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  _frame().to_csv("t.csv", index=False)
  _frame(3, seed=1)[["x", "y"]].to_csv("places.csv", index=False)
  arguments = ["x", "--mode=predict", "--table=t.csv", "--coords=x,y"]
  arguments += ["--target=level", "--at=places.csv"]
  assert points.PROGRAM.run(arguments) == 0
  assert "predictions.csv" in capsys.readouterr().out
  assert len(pandas.read_csv("predictions.csv")["level_high"]) == 3


@pytest.mark.parametrize(
  "change, error, message",
  [
    (
      dict(coords=""),
      ConfigError,
      "table, coords and target must be given for the pre",
    ),
    (
      dict(target=""),
      ConfigError,
      "table, coords and target must be given for the pre",
    ),
    (
      dict(coords="x,y,rain"),
      ConfigError,
      r"needs two coordinates, got 3 \(x, y, rain\); train a model of your table: --mod",
    ),
    (dict(coords="x,z", same_scale=""), DataError, "the table has no column 'z'"),
    (
      dict(num_steps=3),
      ConfigError,
      "a prediction has the options coords, .*'num_steps",
    ),
    (dict(period="q:3"), ConfigError, "period must have names of x, y, got 'q'"),
  ],
)
def test_predict_without_workdir_bad_options_raise(change, error, message, shipped):
  with pytest.raises(error, match=message):
    points.predict(None, _frame(3)[["x", "y"]], _frame(), **OPTIONS | change)


def test_predict_without_workdir_needs_rows_that_vary(shipped):
  at = _frame(3)[["x", "y"]]
  with pytest.raises(
    DataError, match=r"has 7 rows .* the pretrained model needs at lea"
  ):
    points.predict(None, at, _frame(7), **OPTIONS)
  with pytest.raises(DataError, match="the column 'y' is constant"):
    points.predict(None, at, _frame().assign(y=1.0), **OPTIONS)
  with pytest.raises(ConfigError, match="must be given for the pretrained model"):
    points.predict(None, at, **OPTIONS)


def test_predict_without_the_pretrained_reader_raises(tmp_path, monkeypatch):
  monkeypatch.setattr(points_prediction, "PRETRAINED", epath.Path(tmp_path / "none"))
  with pytest.raises(
    CheckpointError, match="has no pretrained model; train a model of"
  ):
    points.predict(None, _frame(3)[["x", "y"]], _frame(), **OPTIONS)


# --- The comparison on shipped tables.


def test_shipped_tables_of_required_packages_load():
  topography = shipped_tables.TABLES["topography"].load()
  numbers = topography.numbers(["lon", "lat", "elevation"])
  assert numbers.shape == (10_920, 3) and np.all(np.isfinite(numbers))
  assert numbers[:, 2].min() == -1437
  moon = shipped_tables.TABLES["moon"].load()
  assert len(moon) == 512 * 512 and 0 < moon.numbers(["grey"]).mean() < 255


@pytest.mark.parametrize(
  "name, text, first",
  [
    ("seattle", "date,temp\n2010/02/01 03:00,39.5\n", [32, 3, 39.5]),
    ("meuse", '"x","y","zinc"\n1,2,3\n', [1, 2, 3]),
    (
      "baltimore",
      '{"features": [{"properties": {"X": 1, "Y": 2, "PRICE": 47.0}}]}',
      [1, 2, 47],
    ),
  ],
)
def test_shipped_tables_of_other_packages_are_read(name, text, first, tmp_path):
  table = shipped_tables.TABLES[name]
  (tmp_path / "file").write_text(text)
  read = dataclasses.replace(table, read=lambda _: table.read(tmp_path / "file"))
  read = dataclasses.replace(read, package="experiments", path="zero_shot.py").load()
  columns = table.columns
  assert read.numbers([*columns.coords, *columns.targets])[0].tolist() == first


def test_compare_scores_the_reader_beside_the_baselines(
  pretrained, tmp_path, monkeypatch, capsys
):
  table = dataclasses.replace(
    shipped_tables.TABLES["meuse"],
    package="experiments",
    path="zero_shot.py",
    columns=point_sets.Columns(["x", "y"], ["level"]),
    read=lambda _: _frame(50),
  )
  monkeypatch.setattr(shipped_tables, "TABLES", {"lake": table})
  monkeypatch.setattr(zero_shot, "_NUM_FOLDS", 2)
  content = zero_shot.compare(["lake"], pretrained)
  rows = content["rows"]
  assert [row["system"] for row in rows] == ["zero_shot", "linear", "kriging"]
  for row in rows:
    assert row["num_context"] == 25 and row["num_queries"] == 50
    assert row["num_folds"] == 2 and np.isfinite(row["rmse"])
  assert all(0 <= x["coverage_90"] <= 1 for x in rows if x["system"] != "linear")
  assert content["tables"]["lake"]["num_rows"] == 50
  assert "Relative TCA, pretrained" in capsys.readouterr().out
  with pytest.raises(ConfigError, match="tables must have names of lake, got 'alps'"):
    zero_shot.compare(["alps"], pretrained)
  # The page of this result.
  (tmp_path / "zero_shot.json").write_text(json.dumps(content))
  kinds = {
    "rows": [dict(kind="synthetic", log_likelihood=1.0)],
    "config": dict(num_context=9),
  }
  (tmp_path / "kinds_surfaces.json").write_text(json.dumps(kinds))
  text = zero_shot_page.section(runs.Results(tmp_path))
  assert "| synthetic | 1.000 |" in text
  assert "| lake | 25 | Relative TCA, pretrained |" in text
  assert zero_shot_page.section(runs.Results(tmp_path / "none")) == ""


def test_splits_of_a_small_and_of_a_large_table(monkeypatch):
  columns = point_sets.Columns(["x", "y"], ["level"])
  table = point_tables.read(_frame(53))
  points_of = point_sets.build(table, columns, 0.2, "error")
  (folds,) = zero_shot._splits(points_of, 100)
  held_out = np.concatenate([np.asarray(x.coords) for _, x in folds])
  assert len(np.unique(held_out, axis=0)) == len(held_out) == 53
  for context, others in folds:
    assert context.coords.shape == (42, 2) and context.values.shape == (42, 1)
    both = np.concatenate([context.coords, others.coords])
    assert len(np.unique(both, axis=0)) == len(both)
  monkeypatch.setattr(zero_shot, "_LARGE", 40)
  monkeypatch.setattr(zero_shot, "_FEW", 33)
  splits = zero_shot._splits(points_of, 9)
  assert [[len(x.coords) for x in fold] for (fold,) in splits] == [[33, 9], [42, 9]]


def test_pool_weighs_folds_by_their_points():
  rows = [
    dict(system="kriging", num_queries=1, rmse=1.0, coverage_90=1.0),
    dict(system="kriging", num_queries=3, rmse=3.0, coverage_90=0.5),
  ]
  pooled = zero_shot._pool(rows)
  assert pooled["rmse"] == pytest.approx(7**0.5)
  assert (pooled["num_queries"], pooled["num_folds"]) == (4, 2)
  assert pooled["coverage_90"] == pytest.approx(0.625)


def test_compare_refuses_a_model_of_another_task(tmp_path):
  with pytest.raises(CheckpointError, match="has no trained model of points"):
    zero_shot.compare(["topography"], tmp_path)
