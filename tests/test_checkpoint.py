"""Saved models: what is restored, and which folders and descriptions are refused."""

import collections.abc
import dataclasses
import functools
import json
import pathlib
import shutil
import subprocess
import sys
import typing

from etils import epath
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

import tca_jax
from tca_jax import description
from tca_jax import modules
from tca_jax.modules import layers
from tests import models

ROOT = pathlib.Path(__file__).parent.parent
WIDTH = 8
TOKENS = np.linspace(-1, 1, 2 * 5 * WIDTH, dtype=np.float32).reshape(2, 5, WIDTH)
MASK = np.array([[True] * 5, [True, True, True, False, False]])
X = TOKENS[..., :2]
VALUES = TOKENS[..., 2:5]
SMALL = dict(num_heads=2, hidden=4)

# Required fields of each class, of modules that are small.
REQUIRED = {
  "BiasOfNodes": dict(num_outputs=2),
  "ClassificationHead": dict(num_classes=3),
  "DistanceBias": dict(num_heads=2),
  "GaussianHead": dict(num_outputs=2),
  "MLP": dict(features=(4, 3)),
  "MixtureHead": dict(num_outputs=2),
  "ReTreever": dict(
    embedder=modules.PointEmbedder(WIDTH),
    read_out=modules.CrossAttention(WIDTH, **SMALL),
    head=modules.GaussianHead(1, hidden=4),
  ),
}
CLASSES = sorted(description._CLASSES.items())


def _changed(default, hint):
  """Allowed values of a field that differ from its default."""
  arguments = typing.get_args(hint)
  if typing.get_origin(hint) is typing.Literal:
    return [x for x in arguments if x != default]
  if isinstance(default, bool):
    return [not default]
  if hint is typing.Any:
    return [jnp.bfloat16, np.dtype("float16"), np.float64, None]
  if hint is int:
    return [5]
  if hint == int | None:
    return [3, None]
  if hint is float or float in arguments:
    return [0.25, 1, *([None] if type(None) in arguments else [])]
  if hint == collections.abc.Sequence[int]:
    return [(7,), ()]
  if hint == collections.abc.Sequence[float] | None:
    return [(1.0, 2.5), ()]
  if typing.get_origin(hint) is collections.abc.Callable:
    return [nn.relu, nn.silu, jnp.tanh]
  if hint == nn.Module | None:
    return [modules.Encoder(1)]
  if hint == str | None:
    return ["my_name"]
  if hint in (nn.Module, modules.ReadOut):
    return [modules.PerceiverIO()]
  raise ValueError(f"give values for a field of type {hint}")


@pytest.mark.parametrize("name, kind", CLASSES)
def test_describe_every_option_builds_the_same_module(name, kind):
  required, hints = REQUIRED.get(name, {}), typing.get_type_hints(kind)
  made = [kind(**required)]
  for field in dataclasses.fields(kind):
    if field.init and field.name != "parent":
      values = _changed(field.default, hints[field.name])
      made += [kind(**required | {field.name: value}) for value in values]
  for module in made:
    written = json.dumps(description.describe(module), allow_nan=False)
    built = description.build(json.loads(written))
    assert built == module
    assert description.describe(built) == json.loads(written)


def test_table_of_classes_has_every_public_module():
  public = {
    name
    for name in modules.__all__
    if isinstance(thing := getattr(modules, name), type)
    and issubclass(thing, nn.Module)
  }
  assert public <= {name for name, _ in CLASSES}


def _embed(embedder, coords, values):
  return embedder.tokens(coords, values), embedder.queries(coords)


def _read_out(kind, **options):
  return (
    kind(width=WIDTH, **SMALL, **options),
    (TOKENS[:, :3], TOKENS, X, MASK),
    dict(values=VALUES, query_coords=X[:, :3]) if "node_width" in options else {},
  )


def _retreever(name, **options):
  coords, values, query_coords, mask = models.inputs(np.random.default_rng(0))
  model = models.model(name, **options)
  return model, (coords, values, query_coords, mask), {}


# Modules of every class, with the arguments of their `__call__`.
CASES = {
  "mlp": (modules.MLP((4, 3), nn.relu), (TOKENS,), {}),
  "mlp_bfloat16": (modules.MLP((4, 3), dtype=jnp.bfloat16), (TOKENS,), {}),
  "feed_forward": (modules.FeedForward(4), (TOKENS,), {}),
  "self_attention": (modules.SelfAttention(2), (TOKENS, MASK), {}),
  "small_groups": (modules.SelfAttention(2, small_groups=True), (TOKENS, MASK), {}),
  "transformer_layer": (modules.TransformerLayer(**SMALL), (TOKENS, MASK), {}),
  "encoder": (modules.Encoder(2, **SMALL), (TOKENS, MASK), {}),
  "encoder_without_parameters": (modules.Encoder(0), (TOKENS, MASK), {}),
  "aggregator": (modules.Aggregator(**SMALL), (TOKENS, MASK), {}),
  "classification": (modules.ClassificationHead(3, hidden=4), (TOKENS,), {}),
  "gaussian": (modules.GaussianHead(2, hidden=4), (TOKENS,), {}),
  "gaussian_exp": (modules.GaussianHead(2, min_std=None, hidden=4), (TOKENS,), {}),
  "mixture": (modules.MixtureHead(2, 2, hidden=4), (TOKENS,), {}),
  "points": (
    modules.PointEmbedder(4, 2, num_frequencies=2, position_skip=True),
    (X, VALUES),
    dict(method=_embed),
  ),
  "placeless": (
    modules.PlacelessEmbedder(4, sees_values=True),
    (X, VALUES),
    dict(method=_embed),
  ),
  "sequence": (
    modules.SequenceEmbedder(4, num_features=3, depth=1),
    (X[..., :1], VALUES),
    dict(method=_embed),
  ),
  "bias_of_nodes": (layers.BiasOfNodes(3), (TOKENS,), {}),
  "distance_bias": (
    layers.DistanceBias(2),
    (TOKENS.reshape(2, 5, 2, WIDTH // 2), X),
    dict(method="queries"),
  ),
  "relative_layer": (
    layers.RelativeLayer(**SMALL),
    (TOKENS, TOKENS[:, None], TOKENS[:, None, :2, :5], MASK[:, None]),
    {},
  ),
  "ca": _read_out(modules.CrossAttention),
  "perceiver": _read_out(modules.PerceiverIO, num_latents=2),
  "tca": _read_out(
    modules.TreeCrossAttention,
    branch_factor=3,
    order="random_projection",
    share_policy=False,
  ),
  "relative_ca": _read_out(
    modules.RelativeCrossAttention,
    node_width=4,
    periods=(1.0, 2.0),
    **models.FITTED,
  ),
  "relative_tca": _read_out(
    modules.RelativeTreeCrossAttention, node_width=4, num_layers=1, num_self_layers=1
  ),
  "model": _retreever("tca", num_layers=1),
}


def test_cases_have_every_class_of_module():
  made = {type(module).__name__ for module, _, _ in CASES.values()}
  abstract = {"DotProductReadOut", "GrowingReadOut", "ReadOut", "RelativeReadOut"}
  assert made == {name for name, _ in CLASSES} - abstract


def _assert_equal(got, expected):
  """Same structure, dtypes and bits."""
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("name", CASES)
def test_load_restores_the_model_and_predicts_the_same_bits(name, tmp_path):
  module, arguments, options = CASES[name]
  params = models.draw(functools.partial(module.init, **options), *arguments)
  tca_jax.save(tmp_path / "model", module, params, name=name)
  loaded, restored, info = tca_jax.load(tmp_path / "model")
  assert loaded == module and info == {"name": name}
  _assert_equal(restored, params)
  got, expected = (
    jax.jit(functools.partial(x.apply, **options))(x_params, *arguments)
    for x, x_params in ((loaded, restored), (module, params))
  )
  _assert_equal(got, expected)


HEAD = modules.GaussianHead(1, hidden=4)
HEAD_PARAMS = {
  "params": {
    "MLP_0": {
      "Dense_0": {"kernel": np.ones((3, 4), np.float32), "bias": np.arange(4.0) / 8},
      "Dense_1": {"kernel": np.ones((4, 2), np.float32), "bias": np.zeros(2)},
    }
  }
}
HEAD_PARAMS = jax.tree.map(lambda x: x.astype(np.float32), HEAD_PARAMS)
INFO = {
  "task": "elevation",
  "values": {"mean": 412.5, "std": 31, "unit": "m"},
  "range": [[-0.5, 0.5], [0, 1.25]],
  "holes": None,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A small saved model, which tests copy before they change it."""
  folder = tmp_path_factory.mktemp("saved") / "head"
  tca_jax.save(folder, HEAD, HEAD_PARAMS, **INFO)
  return folder


@pytest.fixture
def copy(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / "copy"))


def _assert_head(folder, **options):
  model, params, info = tca_jax.load(folder, **options)
  assert model == HEAD and info == INFO
  _assert_equal(params, HEAD_PARAMS)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(params))


def _files(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


@pytest.mark.parametrize("kind", ["str", "Path", "epath", "relative", "~", "slash"])
def test_load_and_save_accept_every_kind_of_path(kind, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path))
  folder = {
    "str": str(tmp_path / "a" / "b"),
    "Path": tmp_path / "a" / "b",
    "epath": epath.Path(tmp_path) / "a" / "b",
    "relative": "a/b",
    "~": "~/a/b",
    "slash": "a/../a/b/",
  }[kind]
  tca_jax.save(folder, HEAD, HEAD_PARAMS, **INFO)
  assert (tmp_path / "a" / "b" / "model.json").exists()
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
  _assert_head(folder)


def test_load_read_only_and_moved_folder_writes_nothing(copy, tmp_path):
  folder = copy.rename(tmp_path / "moved")
  before = _files(folder)
  paths = [folder, *folder.rglob("*")]
  for path in paths:
    path.chmod(0o555 if path.is_dir() else 0o444)
  try:
    _assert_head(folder)
  finally:
    for path in paths:
      path.chmod(0o755 if path.is_dir() else 0o644)
  assert _files(folder) == before
  assert not [name for name, data in before.items() if b"/saved" in data]


_DEVICES = """
import sys
import jax
import numpy as np
import tca_jax
folder, out = sys.argv[1:]
model, params, info = tca_jax.load(folder)
devices = np.array(jax.devices())
assert devices.size == 4
assert all(len(x.devices()) == 1 for x in jax.tree.leaves(params))
mesh = jax.sharding.Mesh(devices, ("x",))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
params = jax.tree.map(lambda x: jax.device_put(x, sharding if x.size % 4 else split)
                      if x.shape[0] % 4 == 0 else jax.device_put(x, sharding), params)
tca_jax.save(out, model, params, **info)
"""


def test_load_on_another_number_of_devices_restores_the_same(saved, tmp_path):
  out = tmp_path / "sharded"
  subprocess.run(
    [sys.executable, "-c", _DEVICES, str(saved), str(out)],
    check=True,
    cwd=ROOT,
    env={
      "PATH": "",
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    },
  )
  _assert_head(out)


class MyEmbedder(nn.Module):
  """An embedder of a user, with a module and a function among its fields."""

  inner: nn.Module
  activation: typing.Any = nn.relu
  width: "int" = 4

  def setup(self):
    self.out = nn.Dense(self.width)

  def tokens(self, coords, values):
    return self.out(self.activation(self.inner(jnp.concatenate([coords, values], -1))))

  def queries(self, coords):
    zeros = jnp.zeros((*coords.shape[:-1], 1), coords.dtype)
    return self.tokens(coords, zeros)


def test_load_classes_of_the_caller_need_modules(tmp_path):
  model = modules.ReTreever(
    MyEmbedder(modules.MLP((6,)), nn.tanh),
    modules.CrossAttention(4, **SMALL),
    nn.Dense(2),
  )
  params = models.draw(model.init, X, X[..., :1], X)
  tca_jax.save(tmp_path / "model", model, params)
  mine = [MyEmbedder, nn.Dense]
  loaded, restored, _ = tca_jax.load(tmp_path / "model", modules=mine)
  assert loaded == model
  _assert_equal(restored, params)
  with pytest.raises(ValueError, match=r"embedder has the unknown class 'MyEmbedder'"):
    tca_jax.load(tmp_path / "model")
  with pytest.raises(ValueError, match=r"head has the unknown class 'Dense'; pass"):
    tca_jax.load(tmp_path / "model", modules=[MyEmbedder])
  for wrong in (MyEmbedder(nn.Dense(1)), dict, len, "MyEmbedder"):
    with pytest.raises(ValueError, match="modules must be classes of flax"):
      tca_jax.load(tmp_path / "model", modules=[wrong])


def test_save_two_classes_of_one_name_raises(tmp_path):
  class Encoder(nn.Module):
    pass

  model = modules.ReTreever(**REQUIRED["ReTreever"] | dict(encoder=Encoder()))
  with pytest.raises(ValueError, match="two classes of modules have the name Encoder"):
    tca_jax.save(tmp_path / "model", model, {})
  tca_jax.save(tmp_path / "model", HEAD, HEAD_PARAMS)
  with pytest.raises(ValueError, match="two classes of modules have the name Encoder"):
    tca_jax.load(tmp_path / "model", modules=[Encoder])


@pytest.mark.parametrize(
  "model, message",
  [
    (modules.MLP((3,), lambda x: x), r"^model.activation must be a module, .*<lambda>"),
    (modules.MLP((3,), nn.initializers.zeros), r"^model.activation must be "),
    (modules.MLP({3: 4}), r"^model.features must be .*got \{3: 4\}"),
    (modules.MLP((np.int64(3),)), r"^model.features\[0\] must be "),
    (modules.MLP(("3",)), r"^model.features must be .*Sequence\[int\], got \('3',\)"),
    (modules.MLP((3,), dtype=float), r"^model.dtype must be "),
    (modules.GaussianHead(1, min_std=float("nan")), r"^model.min_std must be "),
    (modules.GaussianHead(1, hidden=4.5), r"^model.hidden must be int, got 4.5"),
    (modules.TreeCrossAttention(order="up"), r"^model.order must be .*got 'up'"),
    (REQUIRED, r"^model must be a flax.linen.Module, got "),
  ],
)
def test_save_field_that_cannot_be_described_raises(model, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    tca_jax.save(tmp_path / "model", model, {})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "params, message",
  [
    (
      {"params": {"w": [1.0]}},
      "^params/params/w must be an array of numbers, got list",
    ),
    ({"params": {"w": None}}, "^params/params/w must be .* got NoneType"),
    ({"w": np.array(["a"])}, "^params/w must be an array of numbers"),
    ({"w": jax.random.key(0)}, "^params/w must be an array of numbers"),
    ({"a": {3: np.ones(2)}}, "^params/a must have names without '/' as keys, got 3"),
    ({"a/b": np.ones(2)}, "^params must have names without '/' as keys, got 'a/b'"),
    (np.ones(3).tolist(), "^params must be an array of numbers, got list"),
  ],
)
def test_save_parameter_that_is_no_array_raises(params, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    tca_jax.save(tmp_path / "model", HEAD, params)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "info, message",
  [
    (dict(mean=np.float32(3)), r"^info\['mean'\] must be JSON data: .* float32"),
    (dict(a=[1, {"b": {1, 2}}]), r"^info\['a'\]\[1\]\['b'\] must be JSON data"),
    (dict(a={1: 2}), r"^info\['a'\] must be JSON data"),
    (dict(std=float("inf")), r"^info\['std'\] must be JSON data"),
    (dict(values=np.ones(2)), r"^info\['values'\] must be JSON data"),
  ],
)
def test_save_info_that_is_no_json_raises(info, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    tca_jax.save(tmp_path / "model", HEAD, HEAD_PARAMS, **info)
  assert not list(tmp_path.iterdir())


def test_save_existing_folder_needs_overwrite(copy, tmp_path):
  before = _files(copy)
  with pytest.raises(FileExistsError, match=r"copy exists; overwrite=True replaces"):
    tca_jax.save(copy, HEAD, HEAD_PARAMS)
  assert _files(copy) == before
  params = jax.tree.map(lambda x: x + 1, HEAD_PARAMS)
  tca_jax.save(copy, HEAD, params, overwrite=True, step=2)
  _, restored, info = tca_jax.load(copy)
  _assert_equal(restored, params)
  assert info == {"step": 2}
  assert [path.name for path in tmp_path.iterdir()] == ["copy"]
  (tmp_path / "empty").mkdir()
  tca_jax.save(tmp_path / "empty", HEAD, HEAD_PARAMS, overwrite=True)


def test_save_never_replaces_other_folders_and_files(tmp_path):
  (tmp_path / "notes").mkdir()
  (tmp_path / "notes" / "text").write_text("important")
  (tmp_path / "file").write_text("important")
  before = _files(tmp_path)
  for name in ("notes", "file"):
    with pytest.raises(
      FileExistsError, match=f"{name} is not replaced, because it has"
    ):
      tca_jax.save(tmp_path / name, HEAD, HEAD_PARAMS, overwrite=True)
  assert _files(tmp_path) == before


@pytest.mark.parametrize("fails", ["orbax", "rename"])
def test_save_that_fails_leaves_everything_as_it_was(
  fails, copy, tmp_path, monkeypatch
):
  before = _files(tmp_path)
  if fails == "orbax":

    def full(*args, **kwargs):
      raise OSError("no space left")

    monkeypatch.setattr(ocp, "save_checkpointables", full)
  else:
    path_class, rename = type(epath.Path(copy)), type(epath.Path(copy)).rename

    def full(path, target):
      if ".part-" in path.name:
        raise OSError("no space left")
      return rename(path, target)

    monkeypatch.setattr(path_class, "rename", full)
  for name in ("copy", "new"):
    with pytest.raises(OSError, match="no space left"):
      tca_jax.save(tmp_path / name, HEAD, HEAD_PARAMS, overwrite=True)
  assert _files(tmp_path) == before
  assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_load_missing_folder_or_other_folder_raises(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"none is missing$"):
    tca_jax.load(tmp_path / "none")
  for folder in (tmp_path, pathlib.Path(__file__)):
    with pytest.raises(
      FileNotFoundError, match=r"has no model.json: it is not a saved"
    ):
      tca_jax.load(folder)


def _set(*keys_and_value):
  *keys, last, value = keys_and_value

  def edit(content):
    part = content
    for key in keys:
      part = part[key]
    part[last] = value

  return edit


def _nest(content):
  for _ in range(600):
    content["model"] = [content["model"]]


def _drop(*keys):
  def edit(content):
    part = content
    for key in keys[:-1]:
      part = part[key]
    del part[keys[-1]]

  return edit


FIELDS = ("model", "fields")
KERNEL = "params/MLP_0/Dense_0/kernel"
HOSTILE = {
  # Edits of the description, and the message that names the edit.
  "class": (_set("model", "class", "os.system"), "unknown class 'os.system'"),
  "private class": (_set("model", "class", "_RelativeReadOut"), "unknown class '_Rel"),
  "data class": (_set("model", "class", "Gaussian"), "unknown class 'Gaussian'"),
  "class no name": (_set("model", "class", ["MLP"]), "model must describe a module or"),
  "no class": (_drop("model", "class"), "model must describe a module or a value"),
  "no fields": (_set("model", "fields", None), "model must describe a module or"),
  "extra key": (_set("model", "call", "eval"), "model must describe a module or"),
  "number": (_set("model", 5), "model must describe a module, got 5"),
  "list": (_set("model", []), r"model must describe a module, got \(\)"),
  "deep": (_nest, "model is nested too deeply"),
  "null": (_set("model", None), "model must describe a module, got None"),
  "field": (_set(*FIELDS, "depth", 3), "unknown field 'depth'; GaussianHead has num_"),
  "parent": (_set(*FIELDS, "parent", None), "unknown field 'parent'"),
  "method": (_set(*FIELDS, "setup", None), "unknown field 'setup'"),
  "required": (_drop(*FIELDS, "num_outputs"), "lacks the field 'num_outputs' of Gau"),
  "text": (_set(*FIELDS, "hidden", "4"), "model.hidden must be int, got '4'"),
  "bool": (_set(*FIELDS, "hidden", True), "model.hidden must be int, got True"),
  "float": (_set(*FIELDS, "hidden", 4.0), "model.hidden must be int, got 4.0"),
  "none": (_set(*FIELDS, "hidden", None), "model.hidden must be int, got None"),
  "nested": (_set(*FIELDS, "hidden", {"a": 1}), "model.hidden must describe a module"),
  "name": (_set(*FIELDS, "name", 3), "model.name must be .*str.*, got 3"),
  "dtype": (_set(*FIELDS, "dtype", {"dtype": "O"}), "model.dtype has the unknown dtype"),
  "function": (
    _set(*FIELDS, "dtype", {"function": "eval"}),
    "model.dtype has the unknown function 'eval'",
  ),
  "class as function": (
    _set(*FIELDS, "dtype", {"function": "MLP"}),
    "model.dtype has the unknown function 'MLP'",
  ),
  "wrong kind": (
    _set("model", {"class": "ReTreever", "fields": {"read_out": {"class": "Encoder", "fields": {}}}}),
    "model.read_out must be ReadOut, got Encoder",
  ),
  "wrong order": (
    _set("model", {"class": "TreeCrossAttention", "fields": {"order": "up"}}),
    "model.order must be .*'kd'.*, got 'up'",
  ),
  "wrong item": (
    _set("model", {"class": "MLP", "fields": {"features": [3, None]}}),
    r"model.features must be .*Sequence\[int\], got \(3, None\)",
  ),
  # Edits of the rest of the file.
  "format": (_set("format", "other"), "does not describe a model of tca_jax"),
  "no format": (_drop("format"), "does not describe a model of tca_jax"),
  "version": (_set("version", 2), "has the format version 2; this version of tca_jax"),
  "no version": (_drop("version"), "has the format version None"),
  "key": (_set("code", "eval"), "is damaged: it must have the keys"),
  "no key": (_drop("files"), "is damaged: it must have the keys"),
  "info": (_set("info", [1]), "is damaged: info must be an object"),
  "parameters": (_set("parameters", [KERNEL]), "parameters must be an object"),
  "files": (_set("files", "all"), "is damaged: files must be an object"),
  "missing leaf": (
    _set("parameters", "params/new", "float32[2]"),
    "lacks the parameter params/new",
  ),
  "unexpected leaf": (
    _drop("parameters", KERNEL),
    f"has the unexpected parameter {KERNEL}",
  ),
  "no leaf": (_set("parameters", {}), "has the unexpected parameter params/MLP_0/"),
  "shape": (
    _set("parameters", KERNEL, "float32[4, 4]"),
    rf"has the parameter {KERNEL} as float32\[3, 4\], the model needs float32\[4, 4\]",
  ),
  "leaf dtype": (
    _set("parameters", KERNEL, "bfloat16[3, 4]"),
    rf"has the parameter {KERNEL} as float32\[3, 4\], the model needs bfloat16\[3, 4\]",
  ),
  "leaf no text": (_set("parameters", KERNEL, 7), f"the parameter {KERNEL} as .*needs 7"),
  "missing file": (_set("files", "../secret", "0"), r"\.\./secret is missing"),
  "checksum": (
    _set("files", "parameters/_CHECKPOINT_METADATA", "0"),
    "parameters/_CHECKPOINT_METADATA is damaged or of another model",
  ),
}  # fmt: skip


def _one_line(error):
  assert len(str(error.value).splitlines()) == 1
  return str(error.value)


@pytest.mark.parametrize("name", HOSTILE)
def test_load_hostile_description_raises_and_names_it(name, copy):
  edit, message = HOSTILE[name]
  content = json.loads((copy / "model.json").read_text())
  edit(content)
  (copy / "model.json").write_text(json.dumps(content))
  with pytest.raises(ValueError, match=message) as error:
    tca_jax.load(copy)
  assert str(copy) in _one_line(error)


@pytest.mark.parametrize(
  "data, message",
  [
    (b"", "is damaged: Expecting value"),
    (b"[1, 2]", "does not describe a model of tca_jax"),
    (b"null", "does not describe a model of tca_jax"),
    (b'{"format": "tca_jax model", "version": 1, ', "is damaged: Expecting property"),
    (b'{"info": NaN}', "is damaged: NaN is not JSON"),
    (b"\xff\xfe\x00", "is damaged: .*decode"),
    (b"[" * 100_000, "is damaged: "),
    (b"\x80\x04\x95cos\nsystem\n", "is damaged: "),
  ],
)
def test_load_damaged_json_raises_and_names_the_file(data, message, copy):
  (copy / "model.json").write_bytes(data)
  with pytest.raises(ValueError, match=message) as error:
    tca_jax.load(copy)
  assert str(copy / "model.json") in _one_line(error)


def _half(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
  data = bytearray(path.read_bytes() or b"x")
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, _half, _flip])
def test_load_any_damaged_file_raises(damage, saved, tmp_path):
  names = [
    name
    for name, data in _files(saved).items()
    if name.parent.name and (data or damage is not _half)
  ]
  assert len(names) > 5
  for name in names:
    folder = tmp_path / "damaged"
    shutil.copytree(saved, folder)
    damage(folder / name)
    problem = "is missing" if damage is pathlib.Path.unlink else "is damaged or of"
    with pytest.raises(ValueError, match=f"{folder / name} {problem}") as error:
      tca_jax.load(folder)
    _one_line(error)
    shutil.rmtree(folder)
  shutil.copytree(saved, tmp_path / "half")
  shutil.rmtree(tmp_path / "half" / "parameters")
  with pytest.raises(ValueError, match="parameters/_CHECKPOINT_METADATA is missing"):
    tca_jax.load(tmp_path / "half")


def test_load_parameters_of_another_model_raises(saved, tmp_path):
  changed = jax.tree.map(lambda x: x + 1, HEAD_PARAMS)
  extra = HEAD_PARAMS | {"batch_stats": {"mean": np.ones(2, np.float32)}}
  wide = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), HEAD_PARAMS)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), HEAD_PARAMS)
  fewer = {"params": {"MLP_0": {"Dense_0": HEAD_PARAMS["params"]["MLP_0"]["Dense_0"]}}}
  for params, message in (
    (changed, "is damaged or of another model"),
    (extra, "has the unexpected parameter batch_stats/mean"),
    (fewer, "lacks the parameter params/MLP_0/Dense_1/bias"),
    (wide, r"Dense_0/bias as float32\[8\], the model needs float32\[4\]"),
    (half, r"Dense_0/bias as bfloat16\[4\], the model needs float32\[4\]"),
  ):
    other, folder = tmp_path / "other", tmp_path / "mixed"
    tca_jax.save(other, HEAD, params)
    content = json.loads((saved / "model.json").read_text())
    if params is not changed:
      content["files"] = json.loads((other / "model.json").read_text())["files"]
    (other / "model.json").write_text(json.dumps(content))
    other.rename(folder)
    with pytest.raises(ValueError, match=message) as error:
      tca_jax.load(folder)
    _one_line(error)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["run[1]", "a*b", "what?", "back\\slash"])
def test_save_path_with_a_pattern_raises_and_other_names_round_trip(name, tmp_path):
  with pytest.raises(ValueError, match="must not contain any of") as error:
    tca_jax.save(tmp_path / name, HEAD, HEAD_PARAMS)
  _one_line(error)
  assert not list(tmp_path.iterdir())
  plain = tmp_path / "ünï 'quoted' \"name\" {x} ~ #1 100%"
  tca_jax.save(plain, HEAD, HEAD_PARAMS)
  _assert_equal(tca_jax.load(plain)[1], HEAD_PARAMS)


def test_load_keeps_dtypes_and_refuses_those_that_jax_would_narrow(tmp_path):
  params = {"a": jnp.ones(3, jnp.bfloat16), "b": {"c": np.int32(4), "d": {}}}
  tca_jax.save(tmp_path / "a", HEAD, params)
  restored = tca_jax.load(tmp_path / "a")[1]
  _assert_equal(restored, params)
  tca_jax.save(tmp_path / "b", HEAD, {"w": np.ones(3, np.float64)})
  if jax.config.read("jax_enable_x64"):
    assert tca_jax.load(tmp_path / "b")[1]["w"].dtype == np.float64
  else:
    with pytest.raises(ValueError, match="of float64; set jax_enable_x64"):
      tca_jax.load(tmp_path / "b")


def test_older_description_without_a_new_field_takes_its_default(copy):
  content = json.loads((copy / "model.json").read_text())
  del content["model"]["fields"]["min_std"]
  (copy / "model.json").write_text(json.dumps(content))
  _assert_head(copy)


def test_module_that_refuses_its_fields_is_named(tmp_path):
  class Even(nn.Module):
    width: int = 2

    def __post_init__(self):
      if self.width % 2:
        raise TypeError(f"width must be even,\ngot {self.width}")
      super().__post_init__()

  tca_jax.save(tmp_path / "model", Even(), {})
  assert tca_jax.load(tmp_path / "model", modules=[Even]) == (Even(), {}, {})
  file = tmp_path / "model" / "model.json"
  file.write_text(file.read_text().replace('"width": 2', '"width": 3'))
  with pytest.raises(ValueError, match="Even cannot be built: width must be ") as error:
    tca_jax.load(tmp_path / "model", modules=[Even])
  _one_line(error)


@pytest.mark.parametrize("package", ["orbax.checkpoint", "etils"])
def test_missing_package_names_the_extra(package, saved, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, package, None)
  message = r'pip install "tca-jax\[checkpoint\]"'
  with pytest.raises(ModuleNotFoundError, match=message):
    tca_jax.load(saved)
  with pytest.raises(ModuleNotFoundError, match=message):
    tca_jax.save(tmp_path / "model", HEAD, HEAD_PARAMS)
