"""The package: what a wheel holds, and what importing it costs."""

import pathlib
import subprocess
import sys
import zipfile

import tca_jax

ROOT = pathlib.Path(__file__).parent.parent


def test_the_wheel_holds_the_library_alone_with_types_and_version(tmp_path):
  subprocess.run(
    [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
     "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)],
    check=True,
  )  # fmt: skip
  (wheel,) = tmp_path.glob("*.whl")
  assert wheel.name.startswith(f"tca_jax-{tca_jax.__version__}-")
  names = zipfile.ZipFile(wheel).namelist()
  assert "tca_jax/py.typed" in names
  packages = {name.split("/")[0] for name in names if "dist-info" not in name}
  assert packages == {"tca_jax"}
  sources = {f"tca_jax/{path.name}" for path in (ROOT / "tca_jax").glob("*.py")}
  assert sources <= set(names)


def test_importing_the_library_imports_no_experiment_library():
  heavy = ("absl.flags", "orbax", "tensorflow_datasets", "grain", "matplotlib")
  code = (
    "import sys, jax, flax, chex; before = set(sys.modules); import tca_jax;"
    "print(*sorted(set(sys.modules) - before))"
  )
  loaded = subprocess.run(
    [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
  ).stdout.split()
  assert not [name for name in loaded if name in heavy]
