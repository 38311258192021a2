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


@pytest.mark.slow
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
  json.dumps(again)


def test_grids_compare_the_default_with_others_on_one_task():
  for name, rows in ablation.GRIDS.items():
    default, *others = rows.values()
    sizes = {"num_steps", "eval_batches", "sequence_length"}
    for field in dataclasses.fields(default):
      same = getattr(default, field.name) == field.default
      assert same or field.name in sizes or name.startswith("relative_"), name
    for other in others:
      assert type(other) is type(default) and other != default, name
      if isinstance(default, copy_task.CopyConfig):
        assert other.sequence_length == default.sequence_length, name


def test_run_grid_writes_json_table_and_figure(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(ablation.GRIDS, "tiny", _rows("default"))
  ablation.run_grid("tiny", epath.Path(tmp_path))
  (found,) = json.loads((tmp_path / "tiny.json").read_text())
  quality = f"{found['accuracy']:.2%}"
  assert quality in capsys.readouterr().out
  assert Image.open(tmp_path / "tiny.png").size[0] > 800


def test_relative_grids_change_one_thing_in_each_row():
  for name in ("relative_map", "relative_functions"):
    default, *others = ablation.GRIDS[name].values()
    relative = [row for row in others if row.model == default.model]
    assert len(relative) >= len(ablation.RELATIVE) - 2
    for row in relative:
      fields = dataclasses.fields(row)
      changed = [
        x.name for x in fields if getattr(row, x.name) != getattr(default, x.name)
      ]
      assert len(changed) == 1 or {"values_in_tokens", "border_tokens"} & {*changed}


@pytest.mark.slow
def test_run_grid_of_a_map_shows_errors_on_the_whole_map(tmp_path, monkeypatch, capsys):
  small = dict(num_steps=2, batch_size=2, log_every=1, eval_batches=1, num_targets=20)
  row = ablation.map_config(**small, beam_width=2, context_sizes="100,200")
  monkeypatch.setitem(ablation.GRIDS, "relative_map", {"a": row})
  ablation.run_grid("relative_map", epath.Path(tmp_path))
  (found,) = json.loads((tmp_path / "relative_map.json").read_text())
  assert found["map_num_context"] == 200 and found["unit"] == "m"
  printed = capsys.readouterr().out
  assert "200 points: log-likelihood" in printed
  assert f"{found['map_rmse']:.2f}" in printed


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
  assert [row["row"] for row in found] == ["a", "b"]
  assert Image.open(tmp_path / "regression.png").size[0] > 800
