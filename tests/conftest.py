"""Shared fixtures, and compiler settings that make many small compilations fast."""

import atexit
import os
import shutil
import tempfile

# Set before JAX starts. The tests compile hundreds of small programs and run each for
# a moment: a quick compiler is better than a thorough one.
_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

# Programs that several tests compile, in one process or in several, are compiled once.
# Worker processes inherit the folder, which is deleted at the end.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _cache = tempfile.mkdtemp(prefix="tca_jax_compilations_")
  atexit.register(shutil.rmtree, _cache, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

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
