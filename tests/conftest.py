"""Shared fixtures, and a compiler that is quick rather than thorough."""

import os

# Set before JAX starts. The tests compile hundreds of small programs once.
_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

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
