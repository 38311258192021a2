"""The generated pages docs/results.md and docs/benchmarks.md, and their figures."""

import json
import pathlib
import re
import shutil

from PIL import Image
import pytest

from experiments import published
from experiments import report
from experiments.report_pages import benchmarks_page
from experiments.report_pages import comparison
from experiments.report_pages import growing
from experiments.report_pages import large_contexts
from experiments.report_pages import relative_reads
from experiments.report_pages import results_page
from experiments.report_pages import runs
from experiments.report_pages import sharding
from experiments.report_pages import streaming
from experiments.report_pages import studies
from experiments.report_pages import text
from experiments.report_pages import unequal

ROOT = pathlib.Path(__file__).parent.parent
COPY = dict(sequence_length=256, num_steps=500, batch_size=32)
GP = dict(kernel="rbf", num_steps=100_000, batch_size=8)


@pytest.fixture(scope="module")
def shipped():
  return runs.Results(ROOT / "results")


def _write(folder, name, config, model="tca", **result):
  content = dict(
    step=10,
    tokens_fraction=0.3,
    tokens_fraction_largest=0.25,
    num_examples=100,
    train_seconds=60.0,
    device="1 x cpu",
    config=dict(config, model=model, learning_rate=0.002),
  )
  path = folder / f"{name}.json"
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(content | result))


def _rows(markdown, first=""):
  """The cells of the table rows whose first cell begins with a text."""
  rows = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in markdown.splitlines()
    if line.startswith("|")
  ]
  return [row for row in rows if row[0].startswith(first)]


# --- The pages of the shipped results.


@pytest.mark.parametrize("path", ["docs/results.md", "docs/benchmarks.md"])
def test_pages_shipped_results_equal_committed_files(path, shipped):
  made = report.pages(shipped)[path]
  committed = (ROOT / path).read_text(encoding="utf-8")
  assert made == committed, "run python -m experiments.report"


@pytest.mark.parametrize("path", ["docs/results.md", "docs/benchmarks.md"])
def test_pages_shipped_results_have_well_formed_tables_and_links(path, shipped):
  page = report.pages(shipped)[path]
  for part in page.split("\n\n"):
    if part.startswith("|"):
      lines = part.splitlines()
      assert len(lines) > 2 and len({line.count("|") for line in lines}) == 1
  targets = re.findall(r"\]\(([^)]+)\)", page)
  assert targets
  for target in targets:
    assert (ROOT / "docs" / target).exists(), target


def test_pages_shipped_results_link_to_every_json_file(shipped):
  pages = "".join(report.pages(shipped).values())
  for file in shipped.files:
    assert f"(../results/{file.path})" in pages, file.path


def test_main_results_shipped_results_show_every_model_that_ran(shipped):
  page = comparison.main_results(shipped)
  ran = 0
  for row in runs.ROWS:
    found = [shipped.runs(row.options, model) for model in runs.MODELS]
    if any(found):
      (cells,) = _rows(page, row.title)
      assert [bool(cell) for cell in cells[2:5]] == [bool(files) for files in found]
      ran += 1
  assert ran >= 10


def test_shipped_results_evaluations_are_found_by_their_configs(shipped):
  assert {file.path for file in shipped.runs(dict(sequence_length=256), "tca")} == {
    "copy_t256_tca.json",
    "copy_t256_tca_seed1.json",
    "copy_t256_tca_seed2.json",
  }
  row = next(row for row in runs.ROWS if row.title == "GP, RBF kernel")
  paths = [file.path for file in shipped.runs(row.options, "perceiver", 32)]
  assert paths == ["gp_perceiver_l32.json"]


# --- Finding runs.


def test_runs_two_files_of_one_seed_raise(tmp_path):
  _write(tmp_path, "a", COPY, accuracy=0.5)
  _write(tmp_path, "b", COPY, accuracy=0.7)
  with pytest.raises(ValueError, match=r"a\.json and b\.json are both runs"):
    runs.Results(tmp_path).runs(COPY, "tca")


def test_runs_beams_and_other_options_are_left_out(tmp_path):
  _write(tmp_path, "a", COPY, accuracy=0.5)
  _write(tmp_path, "beam", COPY | dict(num_paths=2), accuracy=0.6)
  _write(tmp_path, "latents", COPY | dict(num_latents=8), accuracy=0.7)
  _write(tmp_path, "length", COPY | dict(sequence_length=64), accuracy=0.8)
  found = runs.Results(tmp_path).runs(dict(sequence_length=256), "tca")
  assert [file.path for file in found] == ["a.json"]


def test_matches_missing_option_is_no_match():
  file = runs.File("a.json", dict(config=dict(model="tca")))
  assert file.matches(dict(model="tca"))
  assert not file.matches(dict(model="tca", split="time"))


# --- Sections.


def test_main_results_several_seeds_are_averaged(tmp_path):
  for seed, accuracy in enumerate((0.5, 0.7)):
    config = COPY | dict(seed=seed)
    _write(tmp_path, f"tca_{seed}", config, accuracy=accuracy, full_accuracy=1.0)
  _write(tmp_path, "ca", COPY, "ca", accuracy=1.0, step=20)
  page = comparison.main_results(runs.Results(tmp_path))
  (cells,) = _rows(page, "Copy, T = 256")
  assert cells[2:6] == [
    "60.00 ± 14.14 (2 seeds)",
    "100.00",
    "",
    "100.00 ± 0.00 (2 seeds)",
  ]
  assert cells[6:9] == ["25.0%", "10 / 20", "100"]
  assert cells[9:] == ["100.0", "100.0", "15.2", "6.3%"]
  assert "TCA is better than Cross Attention in 0 of 1 rows, worse in 1." in (
    page.replace("\n", " ")
  )


def test_main_results_published_data_are_apart_until_they_run(tmp_path):
  _write(tmp_path, "gp", GP, log_likelihood=1.5)
  results = runs.Results(tmp_path)
  assert not _rows(comparison.main_results(results), "CelebA")
  (cells,) = _rows(comparison.only_published(results), "CelebA")
  assert cells[2:] == ["3.52", "3.88", "3.20", "4.6%"]
  _write(tmp_path, "celeba", dict(dataset="celeba"), log_likelihood=3.0)
  results = runs.Results(tmp_path)
  (cells,) = _rows(comparison.main_results(results), "CelebA")
  assert cells[2] == "3.000" and cells[9] == "3.52"
  assert not _rows(comparison.only_published(results), "CelebA")


def test_only_published_unchecked_numbers_are_marked(tmp_path):
  _write(tmp_path, "gp", GP, log_likelihood=1.5)
  page = comparison.only_published(runs.Results(tmp_path))
  (cells,) = _rows(page, "EMNIST, classes 10-46")
  assert cells[2:5] == ["0.90 †", "1.07 †", "0.85 †"]
  assert "† Not yet compared" in page
  (cells,) = _rows(page, "EMNIST, classes 0-9")
  assert "†" not in "".join(cells)


def test_published_unchecked_numbers_are_those_of_the_docstring():
  unchecked = {
    (key, model)
    for key, item in published.RESULTS.items()
    for model in runs.MODELS
    if not getattr(item, model).checked
  }
  three = set(runs.MODELS)
  assert unchecked == {
    ("copy_512", "perceiver"),
    *(("gp_matern52", model) for model in three),
    *(("emnist_unseen", model) for model in three),
  }
  assert {row.published for row in runs.ROWS} - {None} == set(published.RESULTS)


def test_calibration_intervals_and_classes_have_own_tables(tmp_path):
  shares = dict(coverage_50=0.5, coverage_90=0.88, coverage_95=0.96)
  _write(tmp_path, "gp", GP, log_likelihood=1.5, **shares)
  _write(tmp_path, "copy", COPY, "ca", accuracy=0.5, calibration_error=0.125)
  page = comparison.calibration(runs.Results(tmp_path))
  (cells,) = _rows(page, "GP, RBF kernel")
  assert cells[1:] == ["TCA", "50.00", "88.00", "96.00"]
  (cells,) = _rows(page, "Copy")
  assert cells[1:] == ["Cross Attention", "12.50"]
  assert "the 95 % interval in 1 of 1 rows" in page.replace("\n", " ")


def test_latents_wider_perceivers_are_beside_the_other_models(tmp_path):
  _write(tmp_path, "a", GP, log_likelihood=1.5)
  _write(tmp_path, "b", GP, "perceiver", log_likelihood=1.0)
  for seed, value in enumerate((1.25, 1.35)):
    config = GP | dict(num_latents=32, seed=seed)
    share = dict(tokens_fraction_largest=0.7)
    _write(tmp_path, f"c{seed}", config, "perceiver", log_likelihood=value, **share)
  _write(tmp_path, "d", COPY, "perceiver", accuracy=0.5)
  page = comparison.latents(runs.Results(tmp_path))
  assert _rows(page)[2:] == [
    ["GP, RBF kernel", "as TCA reads", "25.0%", "1.000", "1.500", "", "10"],
    ["GP, RBF kernel", "32", "70.0%", "1.300 ± 0.071 (2 seeds)", "1.500", "", "10"],
  ]
  assert "behind TCA in 1 of 1 data sets." in page.replace("\n", " ")


def _write_scaling(folder, model, systems, rmse=2.0, grid=None, **options):
  row = dict(log_likelihood=0.5, rmse_metres=rmse, tokens_read=8.0, us_per_query=1.5)
  row |= dict(coverage_50=0.5, coverage_90=0.88, coverage_95=0.9)
  row |= dict(tree_seconds=1.0, index_seconds=0.25, interpolation_rmse_metres=1.75)
  rows = [
    dict(system=system, num_context=n) | row for n in (64, 128) for system in systems
  ]
  config = dict(dataset="fault", whole_map=0.1, model=model, num_context=32) | options
  content = dict(rows=rows, grid=grid, elevation_std=160.0, device="1 x cpu", cores=2)
  (folder / f"scaling_{model}.json").write_text(
    json.dumps(content | {"config": config})
  )


def test_large_contexts_rows_are_by_context_and_model(tmp_path):
  parts = ("tree", "index_compile", "index", "read_compile", "read")
  grid = {f"{part}_seconds": 1.0 for part in parts}
  grid |= dict(num_context=128, num_queries=10**6, seconds=5.0)
  _write_scaling(tmp_path, "ca", ("ca",))
  _write_scaling(tmp_path, "tca", ("tca", "tca_4", "tca_full"), grid=grid)
  results = runs.Results(tmp_path)
  page = large_contexts.section(results)
  cells = [*_rows(page, "64"), *_rows(page, "128")]
  names = ["TCA", "TCA, 4 paths", "ReTreever-Full", "Cross Attention"]
  assert [row[:2] for row in cells] == [[n, x] for n in ("64", "128") for x in names]
  assert cells[0][2:] == [
    "0.500",
    "2.0",
    "50.0",
    "88.0",
    "90.0",
    "8.0",
    "1.5",
    "1.25",
  ]
  (line,) = _rows(page, "fault")
  assert line[1:] == ["TCA", "128", "1,000,000", *["1.0"] * 5, "5.0", "", ""]
  assert "1 x cpu with 2 CPU cores" in page.replace("\n", " ")
  (figure,) = report.draw(results)
  assert figure.name == "scaling_fault.png" and Image.open(figure).size[0] > 800


def test_large_contexts_relative_model_and_baselines_come_first(tmp_path):
  _write_scaling(tmp_path, "tca", ("tca",))
  options = dict(validation=False, seed=1, whole_map=0.2)
  _write_scaling(tmp_path, "relative_tca", ("relative_tca",), rmse=1.0, **options)
  path = tmp_path / "scaling_relative_tca.json"
  content = json.loads(path.read_text())
  shared = dict(num_queries=5, us_per_query=2.0)
  content["baselines"] = [
    dict(system=name, num_context=n, rmse_metres=rmse) | shared
    for n in (64, 128)
    for name, rmse in (("linear", 1.75), ("kriging", 1.5))
  ]
  path.write_text(json.dumps(content))
  for name, change in (("validation", dict(validation=True)), ("other", dict(seed=2))):
    other = content | {"config": content["config"] | change}
    (tmp_path / f"scaling_{name}.json").write_text(json.dumps(other))
  results = runs.Results(tmp_path)
  page = large_contexts.section(results)
  names = ["Relative TCA", "Local kriging", "Linear interpolation", "TCA"]
  assert [row[1] for row in _rows(page, "128")] == names
  assert _rows(page, "128")[2][2:] == ["", "1.8", "", "", "", "", "2.0", "0.00"]
  sentence = (
    "From 128 points of `fault`, the RMSE is 1.0 m for Relative TCA, 1.5 m for Local"
    " kriging, 1.8 m for Linear interpolation and 2.0 m for TCA."
  )
  assert sentence in page.replace("\n", " ")
  sentence = (
    "over 2 seeds, of log-likelihood and RMSE, are 0.500 ± 0.000 and 1.0 ± 0.0 m"
  )
  assert f"{sentence} from 64 points" in page.replace("\n", " ")
  (figure,) = report.draw(results)
  assert Image.open(figure).size[0] > 800


def test_large_contexts_other_units_and_present_keys_are_shown(tmp_path):
  rows = [
    dict(system="relative_tca", num_context=n, log_likelihood=0.5, rmse=1.5)
    | dict(tokens_read=8.0, us_per_query=1.5, tree_seconds=1.0, index_seconds=0.25)
    for n in (64, 128)
  ]
  shared = dict(num_context=128, rmse=1.75, us_per_query=2.0)
  content = dict(
    rows=rows,
    baselines=[shared | dict(system="linear", fit_seconds=3.5)],
    unit="grey levels",
    value_std=38.9,
    device="1 x cpu",
    config=dict(
      dataset="retina", model="relative_tca", validation=False, seed=0, num_context=32
    ),
  )
  (tmp_path / "scaling_retina.json").write_text(json.dumps(content))
  results = runs.Results(tmp_path)
  page = large_contexts.section(results)
  prose = page.replace("\n", " ")
  assert "deviation of the values is 39 grey levels in `retina`" in prose
  assert "the RMSE is 1.5 grey levels for Relative TCA and 1.8 grey levels" in prose
  assert "noise of one grey level was added" in prose
  assert "| RMSE, grey levels |" in page
  assert _rows(page, "128")[1][1:] == [
    "Linear interpolation",
    "",
    "1.8",
    "",
    "2.0",
    "3.50",
  ]
  (figure,) = report.draw(results)
  assert figure.name == "scaling_retina.png"


@pytest.mark.parametrize(
  "accuracies, sentence",
  [
    ((1.0, 1.0), "All rows reach 100.00%."),
    ((1.0, 0.5), 'The best rows reach 100.00%; "b" (50.00%) is lower.'),
    ((0.5, 0.25, 1.0), 'The best quality is 100.00% ("c"), the worst 25.00% ("b").'),
  ],
)
def test_ablations_best_and_worse_rows_are_named(accuracies, sentence, tmp_path):
  rows = [
    dict(
      row=name,
      accuracy=accuracy,
      tokens_fraction=0.5,
      examples=64,
      train_seconds=2.0,
      config=dict(sequence_length=8, model="tca"),
    )
    for name, accuracy in zip("abc", accuracies, strict=False)
  ]
  (tmp_path / "ablation").mkdir()
  (tmp_path / "ablation" / "tree.json").write_text(json.dumps(rows))
  page = studies.ablations(runs.Results(tmp_path))
  assert sentence in page.replace("\n", " ")
  assert _rows(page, "a")[0] == [
    "a",
    f"{accuracies[0]:.2%}",
    "",
    "50.0%",
    "64",
    "2",
  ]


def test_beam_widths_worse_second_path_is_named(tmp_path):
  for name, config, values in (("gp", GP, (1, 2, 5)), ("copy", COPY, (9, 8, 9))):
    rows = [
      dict(
        num_paths=paths,
        log_likelihood=value,
        tokens_fraction=0.5,
        tokens_fraction_largest=0.25,
        us_per_query=1.0,
      )
      for paths, value in zip((1, 2, "all"), values, strict=True)
    ]
    content = dict(rows=rows, config=dict(config, model="tca", eval_batches=0))
    (tmp_path / f"paths_{name}.json").write_text(json.dumps(content))
  page = studies.beam_widths(runs.Results(tmp_path)).replace("\n", " ")
  assert "all leaves: 25% on GP, RBF kernel." in page
  assert "On Copy, T = 256, two paths are worse than one" in page


def test_relative_reads_group_seeds_and_training_examples(tmp_path):
  best = dict(ceiling_log_likelihood=2.0)
  _write(tmp_path, "tca", GP, log_likelihood=1.5, **best)
  assert not relative_reads.section(runs.Results(tmp_path))
  longer = dict(GP, num_steps=200_000)
  _write(tmp_path, "long", longer, log_likelihood=1.6, **best)
  for seed, quality in ((0, 1.7), (1, 1.9)):
    config = dict(longer, beam_width=1, seed=seed)
    _write(tmp_path, str(seed), config, "relative_tca", log_likelihood=quality, **best)
  fitted = dict(GP, beam_width=1, fits_covariance=True)
  calibrated = dict(log_likelihood=1.85, coverage_90=0.889, **best)
  _write(tmp_path, "fitted", fitted, "relative_tca", **calibrated)
  eight = dict(longer, beam_width=8)
  _write(tmp_path, "eight", eight, "relative_tca", log_likelihood=1.0)
  found = _rows(relative_reads.section(runs.Results(tmp_path)), "GP, RBF kernel")
  tokens = "25.0%"
  assert [cells[1:] for cells in found] == [
    ["Relative TCA", "1,600,000", tokens, "1.800 ± 0.141 (2 seeds)", "0.200", ""],
    [
      *("Relative TCA, fitted covariance", "800,000", tokens, "1.850", "0.150"),
      "88.9%",
    ],
    ["TCA", "1,600,000", tokens, "1.600", "0.400", ""],
    ["TCA", "800,000", tokens, "1.500", "0.500", ""],
  ]


# --- Figures, GPU tables and the whole program.


def _write_benchmarks(folder):
  (folder / "benchmarks").mkdir(parents=True)
  rows = [
    dict(
      system=name,
      num_tokens=n,
      num_queries=1,
      us_per_query=us,
      device="1 x cpu",
      command="retrieval",
    )
    for name, us in (("tca", 2.0), ("full_xla", 3.0), ("gather_floor", 1.0))
    for n in (128, 256)
  ]
  (folder / "benchmarks" / "retrieval.json").write_text(json.dumps(rows))
  return rows


def test_benchmarks_page_gpu_tables_appear_with_their_file(tmp_path):
  rows = _write_benchmarks(tmp_path)
  page = benchmarks_page.make(runs.Results(tmp_path))
  assert "GPU:" not in page and "TCA is faster from" in page
  assert "## Building" not in page
  gpu = [row | dict(device="1 x NVIDIA X", versions=dict(jax="1.2")) for row in rows]
  (tmp_path / "benchmarks" / "retrieval_gpu.json").write_text(json.dumps(gpu))
  page = benchmarks_page.make(runs.Results(tmp_path))
  assert "### On a GPU: 1 x NVIDIA X" in page
  (line,) = _rows(page, "[retrieval_gpu.json]")
  assert line[1:4] == ["1 x NVIDIA X", "not recorded", "jax 1.2"]


def test_draw_benchmarks_and_ablations_from_json(tmp_path):
  _write_benchmarks(tmp_path)
  (tmp_path / "ablation").mkdir()
  row = dict(row="x", curve=[[32, 1.0, 0.1], [64, 2.0, 0.2]], config=dict(reward="y"))
  (tmp_path / "ablation" / "a.json").write_text(json.dumps([row]))
  figures = report.draw(runs.Results(tmp_path))
  assert [path.name for path in figures] == ["a.png", "retrieval.png"]
  assert all(Image.open(path).size[0] > 400 for path in figures)


def test_pages_no_results_have_no_tables(tmp_path):
  made = report.pages(runs.Results(tmp_path))
  assert not _rows(made["docs/benchmarks.md"])
  assert not _rows(results_page.make(runs.Results(tmp_path)), "Copy, T = 64")


def test_write_twice_changes_no_file(tmp_path):
  (tmp_path / "docs").mkdir()
  results = tmp_path / "results"
  results.mkdir()
  for name in ("scaling_terrain_ca.json", "terrain_ca.json", "copy_t256_tca.json"):
    shutil.copy(ROOT / "results" / name, results)
  (results / "ablation").mkdir()
  shutil.copy(ROOT / "results" / "ablation" / "regression.json", results / "ablation")
  written = []
  for _ in range(2):
    paths = report.write(tmp_path)
    written.append({path.name: path.read_bytes() for path in paths})
  assert written[0] == written[1]
  assert set(written[0]) == {
    "regression.png",
    "scaling_fault.png",
    "results.md",
    "benchmarks.md",
  }


def test_section_without_parts_is_empty():
  assert text.section("Title", "", "") == ""


def test_growing_rows_are_by_model_and_arrival():
  rows = [
    dict(system="tca/rebuild", num_tokens=10**6, us_per_token=8e6),
    dict(system="tca/insert", num_tokens=10**6, us_per_token=800.0, batch_size=1),
    dict(system="tca/insert", num_tokens=10**6, us_per_token=24.5, batch_size=1000),
  ]
  shared = dict(arrival="west_to_east", reach=6, num_tokens=9000, num_rebuilds=3)
  rows += [
    dict(system="grown", log_likelihood=1.25, rmse=16.0) | shared,
    dict(system="fresh", log_likelihood=1.5, rmse=15.0) | shared,
  ]
  page = "\n\n".join(growing.parts(rows))
  assert _rows(page, "TCA") == [["TCA", "1,000,000", "800.0", "24.5", "8.00", "10,000"]]
  assert _rows(page, "west to east")[0][1:] == [
    *("6", "9,000", "3", "1.250", "1.500", "16.0", "15.0")
  ]
  assert growing.parts([]) == []


def test_streaming_section_compares_the_grown_memory_with_a_new_one(tmp_path):
  row = dict(num_points=1000, capacity=2048, num_rebuilds=2, num_targets=9, seconds=0.5)
  scores = dict(log_likelihood=1.25, new_log_likelihood=1.5, rmse=16.0, new_rmse=10.0)
  content = {
    "rows": [row | scores | {"linear_rmse": 20.0}],
    "unit": "m",
    "settings": dict(dataset="fault", batch_size=500, model="terrain_relative_tca"),
    "device": "1 x cpu",
    "cores": 2,
  }
  assert streaming.section(runs.Results(tmp_path)) == ""
  (tmp_path / streaming.FILE).write_text(json.dumps(content))
  page = streaming.section(runs.Results(tmp_path))
  assert _rows(page, "1,000") == [
    ["1,000", "2,048", "2", "1.250", "1.500", "16.00", "10.00", "20.00", "500"]
  ]
  assert "lower by 0.250 on average" in " ".join(page.split())
  assert "1.600 to 1.600 times" in " ".join(page.split())
  assert streaming.FIGURE not in page
  (tmp_path / streaming.FIGURE).write_bytes(b"")
  assert f"(../results/{streaming.FIGURE})" in streaming.section(runs.Results(tmp_path))


def test_sharding_rows_are_measured_timed_and_projected():
  size = dict(system="tca", num_tokens=10**6, num_devices=8, num_paths=1)
  formulas = dict(memory_bytes_formula=1.5e6, query_bytes_formula=256)
  measured = dict(memory_bytes=1.51e6, query_bytes=256.0, index_temp_bytes=2e6)
  rows = [
    size | formulas | measured,
    size | formulas | measured | dict(index_seconds=2.0, us_per_query=12.5),
    size | formulas | dict(num_tokens=10**9, num_devices=1024),
  ]
  lines = _rows("\n\n".join(sharding.parts(rows)), "TCA")
  first = ["TCA", "1", "1,000,000", "8"]
  assert lines[0] == [*first, "1.51", "1.50", "2.00", "256", "256"]
  assert lines[2:] == [
    [*first, "2.00", "12.5"],
    ["TCA", "1", "1,000,000,000", "1,024", "1.50", "256"],
  ]
  assert sharding.parts([]) == []


def test_unequal_rows_are_by_model_and_buckets():
  shared = dict(num_contexts=2000, num_tokens=9000, smallest=4, largest=256)
  rows = [
    dict(
      system="ca/2", num_buckets=2, bucket_sizes=[40, 256], padding=0.25,
      contexts_per_second=1234.5, compile_seconds=1.25,
    ),
    dict(
      system="ca/one by one", padding=0.0, contexts_per_second=99.6, compile_seconds=50.0
    ),
  ]  # fmt: skip
  about, table = unequal.parts([row | shared for row in rows])
  assert about.startswith("2,000 contexts of 4 to 256 tokens, 9,000 tokens together")
  assert _rows(table, "Cross") == [
    ["Cross Attention", "2", "40, 256", "25%", "1,234", "1.2"],
    ["Cross Attention", "one by one", "", "0%", "100", "50.0"],
  ]
  assert unequal.parts([]) == []
