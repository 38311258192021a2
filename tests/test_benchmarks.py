"""Benchmarks: rows, tables and figures on tiny sizes, flags, and ratios of times."""

import json
import os
import pathlib
import subprocess
import sys

from absl import flags
import pytest

from benchmarks import build
from benchmarks import common
from benchmarks import contexts
from benchmarks import growth
from benchmarks import maps
from benchmarks import retrieval
from benchmarks import sharding
from benchmarks import sweep
from benchmarks import training
from experiments.report_pages import ratios

ROOT = pathlib.Path(__file__).parent.parent


def _parse(benchmark, *arguments):
  values = flags.FlagValues()
  benchmark.define_flags(values)
  values(["benchmark", "--repeats=1", *arguments])
  return values


def _run(benchmark, out, *arguments):
  benchmark.main(_parse(benchmark, f"--out={out}", *arguments))
  name = benchmark.__name__.removeprefix("benchmarks.")
  return json.loads((out / f"{name}.json").read_text())


@pytest.mark.parametrize(
  "benchmark, arguments, systems, metric",
  [
    pytest.param(
      build,
      ["--num_tokens=32", "--num_queries=2"],
      {"order_host", "order_traced", "order_ckdtree", "aggregate_and_cache"},
      "ms",
      id="build",
    ),
    pytest.param(
      training,
      [
        "--tasks=copy",
        "--models=tca_shared",
        "--sequence_length=8",
        "--batch_size=2",
      ],
      {"tca_shared", "part/aggregate", "part/walk", "part/leaf_attention", "part/head"},
      "ms",
      id="training-copy",
      marks=pytest.mark.slow,
    ),
    pytest.param(
      training,
      ["--tasks=gp", "--models=tca,ca", "--batch_size=2"],
      {"tca", "ca"},
      "ms",
      id="training-gp",
      marks=pytest.mark.slow,
    ),
    pytest.param(
      sweep,
      [
        "--num_tokens=16",
        "--num_queries=2",
        "--widths=64",
        "--heads=4",
        "--branch_factors=2",
      ],
      {"index", "tca"},
      None,
      id="sweep",
    ),
  ],
)
def test_main_tiny_sizes_write_rows_and_tables(
  benchmark, arguments, systems, metric, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(training, "matmul_peak", lambda: 1e9)
  rows = _run(benchmark, tmp_path, *arguments)
  assert systems <= {row["system"] for row in rows}
  for row in rows:
    assert row["seed"] == 0 and row["cores"] >= 1
    assert set(row["versions"]) == {"python", "jax", "flax", "tca_jax"}
    assert metric is None or row[metric] > 0
  printed = capsys.readouterr().out.splitlines()
  (text,) = tmp_path.glob("*.txt")
  assert set(text.read_text().splitlines()) <= set(printed)


def test_retrieval_main_two_sizes_write_rows_and_figure(tmp_path):
  rows = _run(retrieval, tmp_path, "--num_tokens=8,32", "--num_queries=1,3")
  sizes = {(r["num_tokens"], r["num_queries"]) for r in rows}
  assert sizes == {(8, 1), (8, 3), (32, 1), (32, 3)}
  assert {"tca", "gather_floor", "perceiver", "full_xla", "full_xla_whole"} <= {
    row["system"] for row in rows
  }
  assert all(row["us_per_query"] > 0 and row["width"] == 64 for row in rows)
  assert (tmp_path / "retrieval.png").stat().st_size > 10_000


def test_build_main_stopped_keeps_the_rows_of_earlier_sizes(tmp_path, monkeypatch):
  run = build.run

  def stops(num_tokens, **options):
    if num_tokens > 8:
      raise KeyboardInterrupt
    return run(num_tokens, **options)

  monkeypatch.setattr(build, "run", stops)
  with pytest.raises(KeyboardInterrupt):
    _run(build, tmp_path, "--num_tokens=8,32")
  rows = json.loads((tmp_path / "build.json").read_text())
  assert {row["num_tokens"] for row in rows} == {8}


def test_contexts_main_tiny_sizes_write_throughput_and_padding(tmp_path):
  rows = _run(
    contexts,
    tmp_path,
    "--models=ca",
    "--num_contexts=9",
    "--largest=8",
    "--num_queries=2",
    "--num_buckets=1,2",
    "--num_alone=2",
  )
  assert [row["system"] for row in rows] == ["ca/1", "ca/2", "ca/one by one"]
  one, two, alone = (row["padding"] for row in rows)
  assert one > two > alone == 0
  assert all(row["contexts_per_second"] > 0 for row in rows)
  assert rows[1]["largest_difference"] < 1e-5


@pytest.mark.slow
def test_growth_main_tiny_sizes_write_times_and_quality(tmp_path):
  rows = _run(
    growth,
    tmp_path,
    "--num_tokens=20",
    "--num_inserts=6",
    "--batch_sizes=1,3",
    "--quality_tokens=60",
    "--quality_batch=8",
    "--num_targets=16",
    "--reaches=2",
  )
  times = [row for row in rows if "us_per_token" in row]
  systems = ["tca/rebuild", "tca/insert", "tca/insert"]
  assert [row["system"] for row in times[:3]] == systems and len(times) == 6
  quality = [row for row in rows if "rmse" in row]
  assert len(quality) == 2 * 2 * 5
  for grown, fresh in zip(quality[::2], quality[1::2], strict=True):
    assert (grown["system"], fresh["system"]) == ("grown", "fresh")
    assert grown["num_tokens"] == fresh["num_tokens"]
  assert quality[0]["rmse"] == pytest.approx(quality[1]["rmse"], rel=1e-3)


@pytest.mark.slow
def test_maps_main_fault_has_the_errors_of_the_evaluations(tmp_path):
  rows = _run(maps, tmp_path, "--maps=fault", "--num_context=1000")
  assert [row["system"] for row in rows] == [*maps.MODELS, "kriging", "linear"]
  assert all(row["num_tokens"] == 1000 and row["us_per_query"] > 0 for row in rows)
  evaluation = ROOT / "results" / "scaling_terrain_relative_tca.json"
  content = json.loads(evaluation.read_text())
  expected = {
    row["system"]: row["rmse"]
    for row in content["rows"] + content["baselines"]
    if row["num_context"] == 1000
  }
  found = {row["system"]: row["rmse"] for row in rows}
  for system in ("relative_tca", "kriging", "linear"):
    assert found[system] == pytest.approx(expected[system], rel=1e-3)


@pytest.mark.slow
def test_sharding_main_two_devices_formulas_agree(tmp_path):
  options = ["--num_tokens=40", "--num_devices=1,2", "--num_queries=4", "--repeats=1"]
  flag = "--xla_force_host_platform_device_count"

  def start(devices):
    return subprocess.run(
      [sys.executable, "-m", "benchmarks.sharding", f"--out={tmp_path}", *options],
      cwd=ROOT,
      env=os.environ | {"XLA_FLAGS": f"{flag}={devices}"},
      capture_output=True,
      text=True,
      check=False,
    )

  refused = start(1)
  assert refused.returncode == 1 and f"{flag}=2" in refused.stderr
  process = start(2)
  assert process.returncode == 0, process.stderr
  rows = json.loads((tmp_path / "sharding.json").read_text())
  measured = [row for row in rows if "memory_bytes" in row]
  assert [row["num_devices"] for row in measured] == [1, 2, 1, 2]
  assert all(row["us_per_query"] > 0 for row in measured)
  assert [row["query_bytes"] > 0 for row in measured] == [False, True] * 2
  assert len(rows) == 4 + 2 * 4


def test_command_line_bad_size_is_refused():
  command = [sys.executable, "-m", "benchmarks.sweep", "--num_tokens=1024,many"]
  process = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert process.returncode != 0
  assert "must be whole numbers of at least 1" in process.stderr


def test_define_flags_help_texts_are_noun_phrases():
  for benchmark in (
    build,
    contexts,
    growth,
    maps,
    retrieval,
    sharding,
    sweep,
    training,
  ):
    values = _parse(benchmark)
    for name in values:
      text = values[name].help.rpartition(">: ")[2]  # after the values of an enum
      assert text[0].isupper() and text.endswith("."), (benchmark.__name__, name, text)
      assert not text.startswith(("Of ", "Whether ", "Where ", "What ")), text


def test_define_names_unknown_task_is_refused():
  with pytest.raises(flags.IllegalFlagValueError, match="must be of copy, gp, images"):
    _parse(training, "--tasks=copy,terrain")


def test_shape_width_not_a_multiple_of_heads_raises():
  with pytest.raises(ValueError, match="multiple of num_heads=3, got 64"):
    common.Shape(num_heads=3)


@pytest.mark.slow
def test_matmul_peak_is_positive():
  assert training.matmul_peak() > 0


def test_gp_frequency_shares_sum_to_one():
  assert sum(training.gp_frequency().values()) == pytest.approx(1.0)


def test_crossover_finds_size_from_which_tca_stays_faster():
  def row(system, n, us):
    return dict(system=system, num_tokens=n, num_queries=1, us_per_query=us)

  full = [row("full_xla", n, us) for n, us in ((8, 3.0), (16, 1.0), (32, 9.0))]
  full += [row("full_torch", 32, 4.0)]
  for own, expected in (((1, 2, 3), 32), ((1, 0.5, 3), 8), ((1, 2, 5), None)):
    tca = [row("tca", n, us) for n, us in zip((8, 16, 32), own, strict=True)]
    assert ratios.crossover(full + tca, 1) == expected
