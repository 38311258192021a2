"""Ablations: rows are trained once, resumed, and drawn."""

import dataclasses
import json

from etils import epath
from PIL import Image

from experiments import ablation
from experiments import copy_task
from experiments import gp_regression
from experiments.common import plots

SMALL = dict(sequence_length=8, num_steps=4, batch_size=4, log_every=2, eval_batches=1)


def _rows(**more):
  options = {"default": {}, "no routing loss": dict(routing_weight=0.0)} | more
  return {name: ablation._copy(**SMALL | change) for name, change in options.items()}


def test_a_grid_resumes_and_takes_more_rows(tmp_path):
  folder = epath.Path(tmp_path / "grid")
  first = ablation.run(_rows(), folder)
  logged = (folder / "default" / "metrics.jsonl").read_text()
  again = ablation.run(_rows(more={"model": "ca"}), folder)
  assert (folder / "default" / "metrics.jsonl").read_text() == logged
  assert [result["row"] for result in again] == ["default", "no routing loss", "more"]
  assert [r["accuracy"] for r in again[:2]] == [r["accuracy"] for r in first]
  for result in again:
    assert result["config"]["eval_seed"] == ablation.VALIDATION_SEED
    assert result["examples"] == 16
    assert [point[0] for point in result["curve"]] == [8, 16]
  json.dumps(again)
  plots.plot_curves(again, tmp_path / "curves.png")
  assert Image.open(tmp_path / "curves.png").size[0] > 800
  for result in again:
    assert len(ablation.cells(result)) == len(ablation.HEADER)


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


def test_regression_has_its_own_metric(tmp_path):
  small = dict(num_steps=2, batch_size=2, log_every=1, eval_batches=1, num_layers=1)
  rows = {
    "a": gp_regression.GPConfig(**small),
    "b": gp_regression.GPConfig(**small, baseline="batch"),
  }
  found = ablation.run(rows, epath.Path(tmp_path / "grid"))
  assert ablation.cells(found[0])[1] == f"{found[0]['log_likelihood']:.3f}"
  plots.plot_curves(found, tmp_path / "curves.png")
  assert Image.open(tmp_path / "curves.png").size[0] > 800
