"""Checks of the documentation that do not need a build."""

import dataclasses
import importlib
import pathlib
import re

from absl import flags
import pytest

from experiments import activity
from experiments import bayesopt
from experiments import black_box
from experiments import copy_task
from experiments import gp_regression
from experiments import image_completion
from experiments import points
from experiments import surfaces
from experiments import terrain
from experiments.common import processes

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
GENERATED = {"results.md", "benchmarks.md"}
WRITTEN_BY_HAND = [path for path in PAGES if path.name not in GENERATED]
MODULES = sorted(
  path.stem for path in (ROOT / "docs" / "api").glob("*.md") if path.stem != "index"
)
CONFIGS = (
  activity.ActivityConfig,
  black_box.BlackBoxConfig,
  copy_task.CopyConfig,
  gp_regression.GPConfig,
  image_completion.ImageConfig,
  points.PointsConfig,
  surfaces.SurfacesConfig,
  terrain.TerrainConfig,
)


def _name(path):
  return str(path.relative_to(ROOT))


def test_api_index_lists_every_public_name():
  package = importlib.import_module("tca_jax")
  page = (ROOT / "docs" / "api" / "index.md").read_text("utf-8")
  listed = set(re.findall(r"^   ~\w+\.(\w+)$", page, re.MULTILINE))
  assert listed | set(MODULES) == set(package.__all__)


@pytest.mark.parametrize("path", [*PAGES, ROOT / "BUILD_NOTES.md"], ids=_name)
def test_page_links_to_files_that_exist(path):
  targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8"))
  local = {target.split("#")[0] for target in targets if "://" not in target} - {""}
  assert [x for x in sorted(local) if not (path.parent / x).exists()] == []


@pytest.mark.parametrize("path", WRITTEN_BY_HAND, ids=_name)
def test_page_names_flags_that_exist(path):
  fields = {field.name for x in CONFIGS for field in dataclasses.fields(x)}
  of_launch = {"workdir", "mode", "recipe", "out", "help"}
  of_launch |= {field.name for field in dataclasses.fields(processes.Cluster)}
  of_gcloud = {"command", "worker", "zone"}
  optimiser = flags.FlagValues()
  bayesopt.define_flags(optimiser)
  fields |= of_launch
  known = fields | {f"no{x}" for x in fields} | of_gcloud | set(optimiser)
  named = set(re.findall(r"(?<![\w-])--(\w+)", path.read_text("utf-8")))
  assert named - known == set()


def test_build_notes_are_short():
  assert len((ROOT / "BUILD_NOTES.md").read_text("utf-8").splitlines()) <= 120
