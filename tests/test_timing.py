"""Interleaved timing, the number of cores, and memory."""

import itertools
import types

import pytest

from experiments.common import timing


def _recorders():
  calls = []
  return calls, {name: lambda name=name: calls.append(name) for name in "ab"}


def test_interleaved_quick_functions_are_warmed_up_by_many_calls():
  calls, functions = _recorders()
  timing.interleaved(functions, repeats=3)
  turns = [len(list(turn)) for _, turn in itertools.groupby(calls)]
  assert len(turns) == 6 and min(turns) > 2


def test_interleaved_without_warm_up_calls_each_function_twice_a_round(monkeypatch):
  calls, functions = _recorders()
  monkeypatch.setattr(timing, "_WARM_UP", 0.0)
  seconds = timing.interleaved(functions, repeats=3)
  assert set(seconds) == {"a", "b"} and min(seconds.values()) >= 0
  assert "".join(calls) == "aabb" * 3, "each timed call follows one that is not"


def test_interleaved_spent_budget_stops_after_two_timed_calls(monkeypatch):
  calls, functions = _recorders()
  monkeypatch.setattr(timing, "_WARM_UP", 0.0)
  timing.interleaved(functions, repeats=9, budget=0.0)
  assert len(calls) == 8


def test_num_cores_is_at_least_one():
  assert timing.num_cores() >= 1


@pytest.mark.parametrize("platform, factor", [("linux", 1024), ("darwin", 1)])
def test_peak_memory_bytes_unit_of_the_system_is_converted(
  platform, factor, monkeypatch
):
  usage = types.SimpleNamespace(ru_maxrss=12_345_678)
  monkeypatch.setattr(timing.resource, "getrusage", lambda _: usage)
  monkeypatch.setattr(timing.sys, "platform", platform)
  assert timing.peak_memory_bytes() == factor * 12_345_678


def test_peak_memory_bytes_of_this_process_is_plausible():
  assert 2**24 < timing.peak_memory_bytes() < 2**40
