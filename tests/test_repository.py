"""The files around the code agree with each other."""

from importlib import metadata
import pathlib
import re
import subprocess

from packaging.requirements import Requirement
import pytest
import yaml

import tca_jax
from tests import test_strict_modes

ROOT = pathlib.Path(__file__).parent.parent
PINNED = ("requirements.txt", "requirements-docs.txt")


def _setup_requirements() -> list[Requirement]:
  return [Requirement(line) for line in metadata.requires("tca-jax")]


def _pins() -> dict[str, str]:
  lines = [line for file in PINNED for line in (ROOT / file).read_text().splitlines()]
  return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_requirements_pins_satisfy_bounds_of_setup():
  pins = _pins()
  for requirement in _setup_requirements():
    assert requirement.name in pins, f"{requirement} has no pin in {PINNED}"
    assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_setup_bounds_cover_all_pins():
  names = {requirement.name for requirement in _setup_requirements()}
  assert set(_pins()) - names == {"jaxlib"}, "jax requires its own version of jaxlib"


@pytest.mark.parametrize("requirement", _setup_requirements(), ids=str)
def test_setup_requirement_has_one_lower_bound(requirement):
  """`make test-oldest` turns it into a pin; extras follow the same rule."""
  operators = [specifier.operator for specifier in requirement.specifier]
  assert operators.count(">=") == 1 and set(operators) <= {">=", "<"}


def test_citation_version_is_the_package_version():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["version"] == tca_jax.__version__


def test_changelog_newest_section_is_the_package_version():
  sections = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
  assert sections[0] == tca_jax.__version__


def test_workflow_python_versions_are_the_classifiers():
  workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
  tested = workflow["jobs"]["checks"]["strategy"]["matrix"]["python-version"]
  classifiers = metadata.metadata("tca-jax").get_all("Classifier")
  prefix = "Programming Language :: Python :: 3."
  named = [c.removeprefix(prefix) for c in classifiers if c.startswith(prefix)]
  assert tested == [f"3.{minor}" for minor in named]


def test_workflow_make_targets_exist():
  targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
  workflow = (ROOT / ".github/workflows/tests.yml").read_text()
  script = (ROOT / ".ci/run").read_text()
  called = re.findall(r"make ([\w-]+)$", workflow + script, re.M)
  assert called and set(called) <= targets


def test_make_test_oldest_runs_all_tests_of_the_library():
  """Tests that import no experiment; except those of files outside of the library."""
  command = subprocess.run(
    ["make", "--dry-run", "test-oldest"],
    check=True,
    capture_output=True,
    text=True,
    cwd=ROOT,
  ).stdout
  run = {f"test_{name}.py" for name in re.findall(r"tests/test_(\w+)\.py", command)}
  others = re.compile(r"^\s*(from|import) (experiments|benchmarks)\b", re.M)
  expected = {
    path.name
    for path in (ROOT / "tests").glob("test_*.py")
    if not others.search(path.read_text())
  }
  expected -= {f"test_{name}.py" for name in ("package", "readme", "repository")}
  assert run == expected - {"test_strict_modes.py"}
  assert run == {f"test_{name}.py" for name in test_strict_modes.LIBRARY_TESTS}
