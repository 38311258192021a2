"""Shared fixtures, and compiler settings that make many small compilations fast."""

import gc
import os
import pathlib

# Set before JAX starts. The tests compile hundreds of small programs and run each for
# a moment: a quick compiler is better than a thorough one.
_QUICK = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
  " --xla_cpu_parallel_codegen_split_count=1"  # the workers keep the cores busy
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

# Programs that several tests compile, in one process or in several, are compiled once.
# The folder stays, so that the next run compiles little; `make clean` deletes it.
_CACHE = pathlib.Path(__file__).parent.parent / ".compilations"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# Tracing makes many objects that live long: few collections find as much garbage.
gc.set_threshold(100_000, 20, 50)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture
def count_traces():
  """Wraps a function so that `.traces` counts how often jit traced it."""

  def wrap(fn):
    def traced(*args, **kwargs):
      traced.traces += 1
      return fn(*args, **kwargs)

    traced.traces = 0
    return traced, jax.jit(traced)

  return wrap
