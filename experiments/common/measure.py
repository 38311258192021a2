"""Timing side by side, tables, and where a figure comes from."""

from collections.abc import Callable
import os
import pathlib
import statistics
import sys
import time
import typing

import jax

from experiments.common import metrics

_WARM_UP = 0.005  # seconds


def interleaved(
  functions: dict[str, Callable[[], typing.Any]],
  repeats: int = 50,
  budget: float = 2.0,
) -> dict[str, float]:
  """Median seconds of each function, taken in turn so that noise falls on all.

  A pause lets the threads of the function before stop spinning, and calls that are
  not timed (one, or as many as start within `_WARM_UP`) leave caches, memory and
  threads as a loop over this function alone would.

  Args:
    functions: by name; what they return is waited for. What is not compiled yet is
      so by the first call, which is not timed.
    repeats: rounds.
    budget: seconds after which a function sits out, once it ran twice.

  Returns:
    By name.
  """
  seconds: dict[str, list[float]] = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      if len(seconds[name]) >= 2 and sum(seconds[name]) > budget:
        continue
      time.sleep(0.01)
      warm = time.perf_counter() + _WARM_UP
      jax.block_until_ready(function())
      while time.perf_counter() < warm:
        jax.block_until_ready(function())
      started = time.perf_counter()
      jax.block_until_ready(function())
      seconds[name].append(time.perf_counter() - started)
  return {name: statistics.median(taken) for name, taken in seconds.items()}


def num_cores() -> int:
  """The CPU cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def provenance() -> dict[str, str | int | None]:
  """The command, commit, device and CPU cores that a figure's JSON names."""
  return {
    "command": " ".join([pathlib.Path(sys.argv[0]).stem, *sys.argv[1:]]),
    "commit": metrics.git_commit(),
    "device": f"{jax.local_device_count()} x {jax.devices()[0].device_kind}",
    "cores": num_cores(),
  }


def quality(result: dict[str, typing.Any], prefix: str = "") -> str:
  """The accuracy of a result or, if it has none, the log-likelihood, as text.

  >>> quality({"accuracy": 0.5, "full_accuracy": 1.0}, "full_")
  '100.00%'
  >>> quality({"log_likelihood": 1.25})
  '1.250'
  """
  if "accuracy" in result:
    value, style = result.get(prefix + "accuracy"), ".2%"
  else:
    value, style = result.get(prefix + "log_likelihood"), ".3f"
  return "" if value is None else format(value, style)


def table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  """Prints a table, and returns it."""
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

  def line(cells: tuple[str, ...]) -> str:
    padded = [
      cell.ljust(width) if i == 0 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()

  text = "\n".join([title, line(header), *map(line, rows)])
  print(f"\n{text}\n", flush=True)
  return text
