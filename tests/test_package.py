"""The package: its public surface, the contents of its wheel, and its imports."""

import importlib
import inspect
import pathlib
import pkgutil
import shutil
import subprocess
import sys
import zipfile

import pytest

import tca_jax

ROOT = pathlib.Path(__file__).parent.parent

# The public names of every module. A change here is a change of the public interface:
# it belongs into CHANGELOG.md.
SURFACE = {
  "tca_jax": [
    "Aggregator",
    "Categorical",
    "ClassificationHead",
    "CrossAttention",
    "CrossAttentionOutput",
    "Encoder",
    "FlatMemory",
    "Gaussian",
    "GaussianHead",
    "GaussianMixture",
    "GrowingMemory",
    "MixtureHead",
    "NodeMemory",
    "NodeStatistics",
    "PerceiverIO",
    "PlacelessEmbedder",
    "PointEmbedder",
    "PointMemory",
    "Prediction",
    "ReTreever",
    "ReadOut",
    "Reading",
    "Regression",
    "RelativeCrossAttention",
    "RelativeTreeCrossAttention",
    "SequenceEmbedder",
    "TrainingPrediction",
    "TrainingReading",
    "Tree",
    "TreeAttentionOutput",
    "TreeCrossAttention",
    "TreeMemory",
    "TreeReading",
    "aggregate",
    "attention",
    "bucketing",
    "build_tree",
    "check_context",
    "checkpoint",
    "checks",
    "covariance",
    "covariance_fit",
    "cross_attention",
    "growth",
    "load",
    "masking",
    "memory",
    "modules",
    "node_statistics",
    "num_read_slots",
    "node_kriging",
    "node_memory",
    "objectives",
    "relative",
    "retrieval",
    "save",
    "serving",
    "sharding",
    "statistics",
    "subtree_mass",
    "tree",
    "tree_attention",
    "tree_depth",
    "warn_outside_range",
  ],
  "tca_jax.attention": [
    "CrossAttentionOutput",
    "cross_attention",
    "merge_heads",
    "sibling_attention",
    "split_heads",
  ],
  "tca_jax.bucketing": ["in_order", "make_buckets", "pad_contexts", "padding_share"],
  "tca_jax.checkpoint": [
    "FILE",
    "check_path",
    "first_line",
    "load",
    "save",
    "warn_outside_range",
  ],
  "tca_jax.checks": [
    "as_array",
    "check_context",
    "check_finite",
    "check_floating",
    "check_key",
    "check_mask",
    "check_num_paths",
    "check_rate",
    "check_sizes",
    "clean_context",
    "is_traced",
  ],
  "tca_jax.covariance": ["LENGTHS", "Covariance", "limited_exp", "squared_length"],
  "tca_jax.covariance_fit": [
    "LENGTHS",
    "NUM_CANDIDATES",
    "average",
    "last_tokens",
    "log_likelihoods",
  ],
  "tca_jax.description": [
    "build",
    "describe",
    "is_plain",
  ],
  "tca_jax.growth": [
    "GrowingMemory",
    "NodeFunctions",
    "ORDERS",
    "REACH",
    "insert",
    "rebuild",
    "remove",
    "start",
  ],
  "tca_jax.grown_tree": [
    "Cuts",
    "GrownTree",
    "as_grown",
    "find_cuts",
    "find_slots",
  ],
  "tca_jax.kdtree_host": [
    "kd_permutation",
  ],
  "tca_jax.masking": [
    "MASKED",
    "log_softmax_of_members",
    "masked_log_softmax",
    "masked_mean",
    "masked_softmax",
    "merge_children",
    "softmax_of_members",
  ],
  "tca_jax.memory": [
    "FlatMemory",
    "TrainingMemory",
    "TreeMemory",
    "for_training",
    "from_slots",
    "join_levels",
    "leaves",
    "level_slots",
    "num_slots",
    "pack",
    "spread_leaves",
  ],
  "tca_jax.modules": [
    "Aggregator",
    "Categorical",
    "ClassificationHead",
    "CrossAttention",
    "Encoder",
    "FeedForward",
    "FlatMemory",
    "Gaussian",
    "GaussianHead",
    "GaussianMixture",
    "GrowingReadOut",
    "MLP",
    "MixtureHead",
    "PerceiverIO",
    "PlacelessEmbedder",
    "PointEmbedder",
    "Prediction",
    "ReTreever",
    "ReadOut",
    "Reading",
    "Regression",
    "RelativeCrossAttention",
    "RelativeTreeCrossAttention",
    "SelfAttention",
    "SequenceEmbedder",
    "TrainingPrediction",
    "TrainingReading",
    "TransformerLayer",
    "TreeCrossAttention",
    "TreeMemory",
    "Units",
    "fourier_features",
    "sinusoids",
  ],
  "tca_jax.modules.embedders": [
    "PlacelessEmbedder",
    "PointEmbedder",
    "SequenceEmbedder",
    "fourier_features",
    "sinusoids",
  ],
  "tca_jax.modules.growing": ["GrowingReadOut"],
  "tca_jax.modules.heads": [
    "Categorical",
    "ClassificationHead",
    "Gaussian",
    "GaussianHead",
    "GaussianMixture",
    "MixtureHead",
    "Regression",
  ],
  "tca_jax.modules.interface": [
    "DotProductReadOut",
    "ReadOut",
    "Reading",
    "TrainingReading",
    "Units",
    "attend_all",
  ],
  "tca_jax.modules.layers": [
    "Aggregator",
    "BiasOfNodes",
    "DistanceBias",
    "Dtype",
    "Encoder",
    "FeedForward",
    "MLP",
    "RelativeLayer",
    "SelfAttention",
    "TransformerLayer",
  ],
  "tca_jax.modules.read_outs": [
    "CrossAttention",
    "PerceiverIO",
    "TreeCrossAttention",
  ],
  "tca_jax.modules.relative": [
    "RelativeCrossAttention",
    "RelativeTreeCrossAttention",
  ],
  "tca_jax.modules.relative_layers": ["RelativeReadOut"],
  "tca_jax.modules.retreever": [
    "Prediction",
    "ReTreever",
    "TrainingPrediction",
  ],
  "tca_jax.modules.trees": [
    "aggregate",
    "build_or_check",
  ],
  "tca_jax.node_kriging": ["krige", "nearest_of"],
  "tca_jax.node_memory": [
    "NodeMemory",
    "Nodes",
    "PointMemory",
    "leaf_nodes",
    "pack_nodes",
    "pack_points",
    "pack_rows",
    "sibling_nodes",
    "slot_nodes",
    "token_nodes",
  ],
  "tca_jax.node_counts": [
    "digit_reversal",
    "even_counts",
    "leaves_of_tokens",
    "parents_of_several",
    "split_count",
  ],
  "tca_jax.objectives": [
    "BASELINES",
    "Baseline",
    "ObjectiveWeights",
    "REWARDS",
    "Reward",
    "accuracy",
    "advantage",
    "categorical_log_likelihood",
    "gaussian_log_likelihood",
    "masked_mean",
    "reinforce_loss",
    "routing_loss",
    "routing_targets",
    "sharpen",
    "tree_objective",
    "walk_diagnostics",
  ],
  "tca_jax.relative": [
    "ABSOLUTE_FEATURES",
    "LocalFrame",
    "absolute_frame",
    "child_features",
    "local_frame",
    "nearest_nodes",
    "node_features",
    "offset_between",
    "residual_values",
    "split_off_border",
  ],
  "tca_jax.renewal": [
    "GrowingMemory",
    "NodeFunctions",
    "set_leaves",
    "set_rows",
  ],
  "tca_jax.retrieval": [
    "TreeAttentionOutput",
    "TreeMemory",
    "TreeReading",
    "attend",
    "pack",
    "read",
    "read_beam",
    "tree_attention",
  ],
  "tca_jax.serving": [
    "Predict",
    "Server",
    "export_read",
    "load_memory",
    "load_read",
    "save_memory",
    "save_read",
  ],
  "tca_jax.sharded_building": [
    "ORDERS",
    "aggregate",
    "build_sharded_tree",
    "log_likelihoods",
    "node_statistics",
  ],
  "tca_jax.sharded_tree": [
    "ShardedTree",
    "add_up",
    "check_whole",
    "families",
    "from_owner",
    "keep_own",
    "level_sizes",
    "num_above",
    "stored_row",
    "stored_slot",
  ],
  "tca_jax.sharding": [
    "CONTEXT",
    "index",
    "place_context",
    "read",
  ],
  "tca_jax.state": ["build", "describe", "register"],
  "tca_jax.statistics": [
    "Domain",
    "LevelStatistics",
    "NodeStatistics",
    "domain_of_root",
    "measure_domain",
    "merge_siblings",
    "node_statistics",
    "single_tokens",
  ],
  "tca_jax.storage": [
    "SCHEMES",
    "absolute",
    "check_files",
    "copy_files",
    "file_digests",
    "files",
    "in_bucket",
    "local_copy",
    "make_folder",
    "replace_folder",
    "scheme",
    "temporary_folder",
    "to_path",
  ],
  "tca_jax.tree": [
    "AggregateFn",
    "ORDERS",
    "Order",
    "Tree",
    "aggregate",
    "build_tree",
    "make_finite",
    "subtree_mass",
    "tree_depth",
  ],
  "tca_jax.varying": ["vary_like"],
  "tca_jax.walk": [
    "NodesRead",
    "Walk",
    "beam_widths",
    "child_logits",
    "drop_chosen",
    "gather_heads",
    "gather_rows",
    "locate_nodes",
    "logits_read",
    "num_read_slots",
    "path_to_leaf",
    "slot_logits",
    "split_beam",
    "walk_down",
  ],
}


def test_surface_lists_every_module():
  found = [m.name for m in pkgutil.walk_packages(tca_jax.__path__, "tca_jax.")]
  assert sorted(SURFACE) == sorted(["tca_jax", *found])


@pytest.mark.parametrize("name", SURFACE)
def test_module_exports_its_public_names(name):
  module = importlib.import_module(name)
  assert sorted(module.__all__) == sorted(SURFACE[name])
  assert len(set(module.__all__)) == len(module.__all__)
  assert inspect.getdoc(module)


@pytest.mark.parametrize("name", SURFACE)
def test_public_names_have_docstrings(name):
  module = importlib.import_module(name)
  for public in module.__all__:
    thing = getattr(module, public)
    if inspect.isclass(thing):
      # A class without a docstring would inherit one, or get one from dataclasses.
      doc = thing.__dict__.get("__doc__")
      assert doc and not doc.startswith(f"{public}("), public
      for member, method in vars(thing).items():
        generated = not getattr(method, "__qualname__", "").startswith(thing.__name__)
        if not (member.startswith("_") or member == "setup" or generated):
          assert inspect.getdoc(method), (public, member)
    elif inspect.isfunction(thing):
      assert inspect.getdoc(thing), public


@pytest.mark.parametrize(
  "name",
  [
    "attention.MASKED",
    "attention.masked_log_softmax",
    "attention.masked_softmax",
    "objectives.masked_mean",
    "retrieval.TreeMemory",
    "retrieval.level_slots",
    "retrieval.pack",
    "tree.check_context",
    "tree.check_finite",
    "tree.check_floating",
    "tree.is_traced",
  ],
)
def test_names_of_version_0_1_still_import(name):
  module, attribute = name.split(".")
  assert hasattr(importlib.import_module(f"tca_jax.{module}"), attribute)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The path of a wheel of this package."""
  # A copy, because a build leaves files in the source tree.
  folder = tmp_path_factory.mktemp("wheel")
  source = folder / "source"
  shutil.copytree(ROOT / "tca_jax", source / "tca_jax")
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source / name)
  subprocess.run(
    [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
     "--no-build-isolation", "--wheel-dir", str(folder), str(source)],
    check=True,
  )  # fmt: skip
  (path,) = folder.glob("*.whl")
  return path


def test_wheel_contains_exactly_the_sources_with_types_and_version(wheel):
  assert wheel.name.startswith(f"tca_jax-{tca_jax.__version__}-")
  names = [x for x in zipfile.ZipFile(wheel).namelist() if "dist-info" not in x]
  sources = [
    path.relative_to(ROOT).as_posix() for path in (ROOT / "tca_jax").rglob("*.py")
  ]
  assert sorted(names) == sorted([*sources, "tca_jax/py.typed"])


_LOAD_AND_SAVE = """
import jax
import tca_jax

model, params, info = tca_jax.load("terrain_relative_tca")
coords, values = jax.random.uniform(jax.random.key(0), (2, 1, 50, 2))
read = jax.jit(model.apply)
mean = read(params, coords, values[..., :1], coords).output.mean
tca_jax.save("again", model, params, **info)
model, params, info_again = tca_jax.load("again")
assert (read(params, coords, values[..., :1], coords).output.mean == mean).all()
assert info_again == info
print(tca_jax.__file__)
"""


@pytest.mark.slow  # installs JAX from the package index
def test_wheel_with_checkpoint_extra_loads_and_saves_outside_the_clone(wheel, tmp_path):
  python = tmp_path / "venv" / "bin" / "python"
  subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
  install = [python, "-m", "pip", "install", "--quiet", f"{wheel}[checkpoint]"]
  subprocess.run(install, check=True)
  name = "terrain_relative_tca"
  shutil.copytree(ROOT / "checkpoints" / name, tmp_path / name)
  command = [python, "-c", _LOAD_AND_SAVE]
  output = subprocess.check_output(command, cwd=tmp_path, text=True)
  assert output.startswith(str(tmp_path / "venv"))


def test_import_loads_no_experiment_library():
  heavy = ("absl.flags", "orbax", "tensorflow_datasets", "grain", "matplotlib")
  code = (
    "import sys, jax, flax, chex; before = set(sys.modules); import tca_jax;"
    "print(*sorted(set(sys.modules) - before))"
  )
  loaded = subprocess.run(
    [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
  ).stdout.split()
  assert "tca_jax.modules.read_outs" in loaded
  assert not [name for name in loaded if name in heavy]
