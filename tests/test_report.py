"""The README's table is the one that the results make."""

import json
import pathlib

from etils import epath
from PIL import Image
import pytest

from experiments import report
from experiments.common import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _write(folder, name, **result):
  result = dict(step=10, tokens_fraction_largest=0.25) | result
  (folder / f"{name}.json").write_text(json.dumps(result))


def _cells(text, task):
  (line,) = [line for line in text.splitlines() if line.startswith(f"| {task} |")]
  return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_readme_shows_the_table_that_the_results_make():
  results = epath.Path(ROOT / "results")
  made = {name: make(results) for name, make in report.TABLES.items()}
  assert report.with_tables(README, made) == README, "run python -m experiments.report"
  for text in made.values():
    for table in text.split("\n\n"):
      lines = table.splitlines()
      assert len(lines) > 2 and len({line.count("|") for line in lines}) == 1


def test_every_system_that_was_run_stands_in_the_table():
  made = report.all_results(epath.Path(ROOT / "results"))
  for row in report.ROWS:
    for i, system in enumerate(("ca", "perceiver", "tca")):
      ran = (ROOT / "results" / f"{row.stem.format(system)}.json").exists()
      if ran or row.published:
        assert bool(_cells(made, row.task)[1 + 2 * i]) == ran


def test_seeds_are_averaged_and_other_runs_left_out(tmp_path):
  _write(tmp_path, "copy_t256_tca", accuracy=0.5, full_accuracy=1.0)
  _write(tmp_path, "copy_t256_tca_seed1", accuracy=0.7, full_accuracy=1.0)
  _write(tmp_path, "copy_t256_tca_other", accuracy=0.0)
  _write(tmp_path, "copy_t256_ca", accuracy=1.0, step=20, tokens_fraction_largest=1)
  found = _cells(report.all_results(epath.Path(tmp_path)), "Copy, T = 256")
  assert found[1:7] == ["100.00", "100.0", "", "15.2", "60.00 ± 14.14", "100.0"]
  assert found[7:] == ["100.00 ± 0.00", "25.0", "6.3", "10; 20", "2; 1"]


def test_wider_perceivers_stand_beside_the_other_systems(tmp_path):
  _write(tmp_path, "gp_tca", log_likelihood=1.5)
  _write(tmp_path, "gp_perceiver", log_likelihood=1.0)
  _write(tmp_path, "gp_perceiver_l32", log_likelihood=1.25, tokens_fraction_largest=0.7)
  _write(tmp_path, "gp_perceiver_l32_seed1", log_likelihood=1.35)
  _write(tmp_path, "gp_perceiver_l32_matern52", log_likelihood=0.0)
  _write(tmp_path, "activity_watch_perceiver", accuracy=0.5)
  rows = report.latents(epath.Path(tmp_path)).splitlines()[2:]
  assert [row.strip("| ").split(" | ") for row in rows] == [
    ["GP, RBF", "25.0", "1.000", "1.500", "", "10"],
    ["GP, RBF", "70.0", "1.300 ± 0.071", "1.500", "", "10"],
  ]


def test_calibration_is_told_of_each_system_in_its_kind(tmp_path):
  shares = dict(coverage_50=0.5, coverage_90=0.88, coverage_95=0.9)
  _write(tmp_path, "gp_tca", log_likelihood=1.5, **shares)
  _write(tmp_path, "activity_watch_ca", accuracy=0.5, calibration_error=0.125)
  made = report.calibration(epath.Path(tmp_path))
  assert _cells(made, "GP, RBF")[1:] == ["TCA", "50.00", "88.00", "90.00", ""]
  assert _cells(made, "Smart watch, by subject *")[-1] == "12.50"


def _scaling(model, systems, grid=None):
  row = dict(log_likelihood=0.5, rmse_metres=2.0, tokens_read=8.0, us_per_query=1.5)
  row |= dict(coverage_50=0.5, coverage_90=0.88, coverage_95=0.9)
  row |= dict(tree_seconds=1.0, index_seconds=0.25, interpolation_rmse_metres=1.75)
  rows = [
    dict(system=system, num_context=n) | row for n in (64, 128) for system in systems
  ]
  return dict(config=dict(dataset="fault", model=model), rows=rows, grid=grid)


def test_scaling_shows_all_systems_by_context_and_the_grid(tmp_path):
  parts = ("tree", "index_compile", "index", "read_compile", "read")
  grid = {f"{part}_seconds": 1.0 for part in parts}
  grid |= dict(num_context=128, num_queries=10**6, seconds=5.0)
  for model, systems, own in (
    ("tca", ("tca", "tca_4", "tca_full"), grid),
    ("ca", ("ca",), None),
  ):
    content = _scaling(model, systems, own)
    config_lib.write_json(tmp_path / f"scaling_terrain_{model}.json", content)
  rows, grids = report.scaling(epath.Path(tmp_path)).split("\n\n")
  cells = [row.strip("| ").split(" | ") for row in rows.splitlines()[2:]]
  names = ["Cross Attention", "TCA", "TCA, 4 paths", "ReTreever-Full"]
  assert [row[1:3] for row in cells] == [[n, x] for n in ("64", "128") for x in names]
  assert cells[0][3:] == [
    "0.500",
    "2.0",
    "1.8",
    "50.0",
    "88.0",
    "90.0",
    "8.0",
    "1.5",
    "1.25",
  ]
  (line,) = grids.splitlines()[2:]
  assert line.strip("| ").split(" | ")[1:] == ["128", "1,000,000", *["1.0"] * 5, "5.0"]
  (figure,) = report.draw(epath.Path(tmp_path))
  assert figure.name == "scaling_fault.png" and Image.open(figure).size[0] > 800


BEGIN, END = "<!-- a: begin -->", "<!-- a: end -->"


@pytest.mark.parametrize("readme", ["", BEGIN, f"{END} {BEGIN}", 2 * (BEGIN + END)])
def test_a_readme_without_the_marks_is_refused(readme):
  with pytest.raises(ValueError, match="must hold"):
    report.with_tables(readme, {"a": "table"})


def test_a_table_stands_between_its_marks():
  readme = f"a\n{BEGIN}\nold\n{END}\nb"
  made = report.with_tables(readme, {"a": "new"})
  assert made == f"a\n{BEGIN}\nnew\n{END}\nb"
  assert report.with_tables(made, {"a": "new"}) == made


def test_figures_are_drawn_from_json(tmp_path):
  (tmp_path / "ablation").mkdir()
  row = dict(row="x", curve=[[32, 1.0, 0.1], [64, 2.0, 0.2]], config=dict(reward="y"))
  config_lib.write_json(tmp_path / "ablation" / "a.json", [row])
  (tmp_path / "benchmarks").mkdir()
  rows = [
    dict(system=name, num_tokens=n, num_queries=1, us_per_query=us)
    for name, us in (("tca", 2.0), ("full_xla", 3.0), ("gather_floor", 1.0))
    for n in (128, 256)
  ]
  config_lib.write_json(tmp_path / "benchmarks" / "retrieval.json", rows)
  figures = report.draw(epath.Path(tmp_path))
  assert [path.name for path in figures] == ["a.png", "retrieval.png"]
  assert all(Image.open(path).size[0] > 400 for path in figures)
