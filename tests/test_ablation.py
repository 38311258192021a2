"""Ablations: rows are trained once, resumed, and drawn."""

import dataclasses
import json

from etils import epath
from PIL import Image
import pytest

from experiments import ablation
from experiments import copy_task
from experiments import gp_regression

SMALL = dict(sequence_length=8, num_steps=4, batch_size=4, log_every=2, eval_batches=1)


def _rows(*names):
  options = {"default": {}, "b": dict(eval_batches=2), "c": dict(model="perceiver")}
  return {
    name: ablation.copy_config(**SMALL | dict(model="ca") | options[name])
    for name in names
  }


def test_run_resumes_a_grid_and_adds_rows(tmp_path):
  folder = epath.Path(tmp_path / "grid")
  first = ablation.run(_rows("default", "b"), folder)
  logged = (folder / "default" / "metrics.jsonl").read_text()
  again = ablation.run(_rows("default", "b", "c"), folder)
  assert (folder / "default" / "metrics.jsonl").read_text() == logged
  assert [result["row"] for result in again] == ["default", "b", "c"]
  assert [r["accuracy"] for r in again[:2]] == [r["accuracy"] for r in first]
  for result in again:
    assert result["config"]["eval_seed"] == ablation.VALIDATION_SEED
    assert result["examples"] == 16
    assert [point[0] for point in result["curve"]] == [8, 16]
    assert len(ablation.cells(result)) == len(ablation.HEADER)
  json.dumps(again)


def test_grids_compare_the_default_with_others_on_one_task():
  for name, rows in ablation.GRIDS.items():
    default, *others = rows.values()
    sizes = {"num_steps", "eval_batches", "sequence_length"}
    for field in dataclasses.fields(default):
      assert field.name in sizes or getattr(default, field.name) == field.default, name
    for other in others:
      assert type(other) is type(default) and other != default, name
      if isinstance(default, copy_task.CopyConfig):
        assert other.sequence_length == default.sequence_length, name


def test_run_grid_writes_json_table_and_figure(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(ablation.GRIDS, "tiny", _rows("default"))
  ablation.run_grid("tiny", epath.Path(tmp_path))
  (found,) = json.loads((tmp_path / "tiny.json").read_text())
  quality = f"{found['accuracy']:.2%}"
  assert ablation.cells(found)[1] == quality
  assert quality in capsys.readouterr().out
  assert Image.open(tmp_path / "tiny.png").size[0] > 800


def test_cells_of_a_regression_have_its_log_likelihood():
  result = dict(row="a", log_likelihood=0.1234, full_log_likelihood=-2.0)
  result |= dict(tokens_fraction=0.5, examples=12_000, train_seconds=7.6)
  expected = ["a", "0.123", "-2.000", "50.0%", "12,000", "8"]
  assert ablation.cells(result) == expected


@pytest.mark.slow
def test_run_grid_of_a_regression_draws_its_rewards(tmp_path, monkeypatch):
  small = dict(num_steps=2, batch_size=2, log_every=1, eval_batches=1, num_layers=1)
  rows = {
    "a": gp_regression.GPConfig(**small),
    "b": gp_regression.GPConfig(**small, baseline="batch"),
  }
  monkeypatch.setitem(ablation.GRIDS, "regression", rows)
  ablation.run_grid("regression", epath.Path(tmp_path))
  found = json.loads((tmp_path / "regression.json").read_text())
  assert ablation.cells(found[0])[1] == f"{found[0]['log_likelihood']:.3f}"
  assert Image.open(tmp_path / "regression.png").size[0] > 800
