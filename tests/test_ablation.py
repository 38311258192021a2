"""Ablations: rows are trained once, resumed, and drawn."""

import json

from etils import epath
from PIL import Image

from experiments import ablation
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
    assert result["sequences"] == 16
    assert [point[0] for point in result["curve"]] == [8, 16]
  json.dumps(again)
  plots.plot_curves(again, tmp_path / "curves.png")
  assert Image.open(tmp_path / "curves.png").size[0] > 800
  assert "no routing loss" in ablation.summarise("title", again)


def test_grids_change_one_thing_at_a_time():
  for name, rows in ablation.GRIDS.items():
    default, *others = rows.values()
    assert default == ablation._copy(default.sequence_length, default.num_steps)
    for other in others:
      assert other != default and other.sequence_length == default.sequence_length, name
