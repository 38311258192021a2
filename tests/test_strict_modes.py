"""The library's tests under the strict modes of JAX, each in its own process."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LIBRARY_TESTS = (
  "attention",
  "bucketing",
  "checkpoint",
  "checks",
  "covariance",
  "embedders",
  "growth",
  "heads",
  "layers",
  "library_battery",
  "masking",
  "memory",
  "node_kriging",
  "objectives",
  "read_outs",
  "relative",
  "retreever",
  "retrieval",
  "serving",
  "sharding",
  "statistics",
  "storage",
  "tree",
)
MODES = {
  "JAX_CHECK_TRACER_LEAKS": "1",
  "JAX_DEBUG_KEY_REUSE": "1",
  "JAX_DEBUG_NANS": "1",
  "JAX_ENABLE_X64": "1",
  "JAX_NUMPY_DTYPE_PROMOTION": "strict",
  "JAX_NUMPY_RANK_PROMOTION": "raise",
}


@pytest.mark.slow
@pytest.mark.parametrize("variable", MODES)
def test_library_tests_strict_mode_pass(variable):
  files = [f"tests/test_{name}.py" for name in LIBRARY_TESTS]
  result = subprocess.run(
    [sys.executable, "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider",
     "tca_jax", *files],
    cwd=ROOT,
    env=os.environ | {variable: MODES[variable]},
    capture_output=True,
    text=True,
    check=False,
  )  # fmt: skip
  assert result.returncode == 0, result.stdout[-5_000:] + result.stderr[-2_000:]


# Options of a process, and the tests to run; loops without compilation are slow, so that
# only the battery and the smallest files run without `jax.jit`.
PROCESSES = {
  "eight devices": (
    {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
    ["tests/test_library_battery.py", "tests/test_serving.py", "tests/test_layers.py"],
    [],
  ),
  "eight devices, x64 and strict": (
    {
      "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
      "JAX_ENABLE_X64": "1",
      "JAX_NUMPY_DTYPE_PROMOTION": "strict",
      "JAX_NUMPY_RANK_PROMOTION": "raise",
    },
    ["tests/test_library_battery.py"],
    ["-k", "shard_map or devices"],
  ),
  "nine devices": (
    {"XLA_FLAGS": "--xla_force_host_platform_device_count=9"},
    ["tests/test_sharding.py"],
    [],
  ),
  "no jit": (
    {"JAX_DISABLE_JIT": "1"},
    ["tests/test_library_battery.py", "tests/test_masking.py", "tests/test_heads.py"],
    ["-m", "not slow", "-k", "not shard_map"],
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_library_tests_in_other_processes_pass(name):
  options, files, arguments = PROCESSES[name]
  result = subprocess.run(
    [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, *files],
    cwd=ROOT,
    env=os.environ | options,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stdout[-5_000:] + result.stderr[-2_000:]
