"""Every benchmark end to end on tiny sizes, as a user starts it."""

import itertools
import json
import pathlib
import subprocess
import sys

import pytest

from experiments.common import measure
from experiments.common import ratios

ROOT = pathlib.Path(__file__).parent.parent


def _run(name, out, *arguments):
  command = [sys.executable, "-m", f"benchmarks.{name}", f"--out={out}", *arguments]
  return subprocess.run(
    [*command, "--repeats=1"], cwd=ROOT, capture_output=True, text=True, check=False
  )


@pytest.mark.parametrize(
  "name, arguments, systems, figure",
  [
    (
      "retrieval",
      ["--num_tokens=8,32", "--num_queries=1,3"],
      {"tca", "gather_floor", "perceiver", "full_xla", "full_xla_whole"},
      "us_per_query",
    ),
    (
      "build",
      ["--num_tokens=32", "--num_queries=2"],
      {"order_host", "order_traced", "order_ckdtree", "aggregate_and_cache"},
      "ms",
    ),
    (
      "training",
      ["--tasks=gp", "--batch_size=2"],
      {"tca", "tca_shared", "ca", "perceiver"},
      "ms",
    ),
    (
      "sweep",
      ["--num_tokens=16", "--widths=64", "--heads=4", "--branch_factors=4"],
      {"index", "tca"},
      None,
    ),
  ],
)
def test_a_benchmark_writes_its_rows(name, arguments, systems, figure, tmp_path):
  process = _run(name, tmp_path, *arguments)
  assert process.returncode == 0, process.stderr
  rows = json.loads((tmp_path / f"{name}.json").read_text())
  assert systems <= {row["system"] for row in rows}
  for row in rows:
    assert row["seed"] == 0 and f"--out={tmp_path}" in row["command"]
    assert figure is None or row[figure] > 0
  printed = process.stdout.splitlines()
  assert set((tmp_path / f"{name}.txt").read_text().splitlines()) <= set(printed)
  if name == "retrieval":
    assert {(r["num_tokens"], r["num_queries"]) for r in rows} == {
      (8, 1),
      (8, 3),
      (32, 1),
      (32, 3),
    }
    assert (tmp_path / "retrieval.png").stat().st_size > 10_000


def test_a_bad_size_is_named():
  process = _run("retrieval", "unused", "--num_tokens=1024,many")
  assert process.returncode != 0
  assert "whole numbers of at least 1 are allowed" in process.stderr


def test_interleaved_times_and_budget(monkeypatch):
  calls = []
  functions = {name: lambda name=name: calls.append(name) for name in "ab"}
  measure.interleaved(functions, repeats=3)
  turns = [len(list(turn)) for _, turn in itertools.groupby(calls)]
  assert len(turns) == 6 and min(turns) > 2, "quick calls are warmed up by many"
  calls.clear()
  monkeypatch.setattr(measure, "_WARM_UP", 0.0)
  seconds = measure.interleaved(functions, repeats=3)
  assert set(seconds) == {"a", "b"} and min(seconds.values()) >= 0
  assert "".join(calls) == "aabb" * 3, "each timed call follows one that is not"
  calls.clear()
  measure.interleaved(functions, repeats=9, budget=0.0)
  assert len(calls) == 8, "two timed calls each, then the budget is spent"


def test_crossover_is_where_tca_gets_ahead_for_good():
  def row(system, n, us):
    return dict(system=system, num_tokens=n, num_queries=1, us_per_query=us)

  full = [row("full_xla", n, us) for n, us in ((8, 3.0), (16, 1.0), (32, 9.0))]
  full += [row("full_torch", 32, 4.0)]
  for own, expected in (((1, 2, 3), 32), ((1, 0.5, 3), 8), ((1, 2, 5), None)):
    tca = [row("tca", n, us) for n, us in zip((8, 16, 32), own, strict=True)]
    assert ratios.crossover(full + tca, 1) == expected
