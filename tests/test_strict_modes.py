"""The library's tests under the strict modes of JAX, each in its own process."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LIBRARY_TESTS = (
  "attention",
  "checkpoint",
  "checks",
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
  "statistics",
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
