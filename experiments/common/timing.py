"""Interleaved timing of functions, the number of CPU cores, and memory."""

from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Mapping
import os
import resource
import statistics
import sys
import time
import typing

import jax

_WARM_UP = 0.005  # seconds

Name = typing.TypeVar("Name", bound=Hashable)


def interleaved(
  functions: Mapping[Name, Callable[[], typing.Any]],
  repeats: int = 50,
  budget: float = 2.0,
) -> dict[Name, float]:
  """Measures the median seconds of each function, in turn.

  In each round every function is timed once, so that noise of the machine affects all
  functions alike. A timed call follows a pause, in which the threads of the previous
  function stop spinning, and calls that are not timed: one, or as many as start within
  `_WARM_UP` seconds. They bring caches, memory and threads into the state that a loop
  over this function would have.

  Args:
    functions: by name. A function compiles in its first call, which is not timed. The
      timer waits until the returned arrays are ready.
    repeats: the number of rounds.
    budget: seconds per function. A function whose timed calls took longer is skipped
      in the following rounds, once at least two calls were timed.

  Returns:
    The median seconds of a call, by name.
  """
  seconds: dict[Name, list[float]] = {name: [] for name in functions}
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
  """Counts the CPU cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def peak_memory_bytes() -> int:
  """The largest memory of the host that this process had so far, in bytes.

  It is the resident set size, which includes code and libraries, not only arrays.
  """
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak  # KiB on Linux


class Clock:
  """Seconds from one lap to the next."""

  def __init__(self):
    self._started = time.perf_counter()

  def lap(self, result: typing.Any = None) -> float:
    """Waits for a result; returns the seconds since the last lap or the start."""
    jax.block_until_ready(result)
    last, self._started = self._started, time.perf_counter()
    return self._started - last
