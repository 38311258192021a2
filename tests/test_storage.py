"""Paths of this machine and of buckets, and models saved in a bucket."""

import pathlib

import chex
from etils import epath
import fsspec
import jax.numpy as jnp
import pytest

import tca_jax
from tca_jax import storage
from tests import buckets

HEAD = tca_jax.GaussianHead(2)
PARAMS = {"params": {"w": jnp.arange(6.0), "b": jnp.ones((2, 1))}}


@pytest.fixture
def objects(monkeypatch):
  return buckets.install(monkeypatch)


def _fail(*_, **__):
  raise OSError("the network is down")


@pytest.mark.parametrize(
  "path",
  ["foo://bucket/x", "file:///tmp/x", "s3:/bucket/x", "gs://", "gs:///x", "az://b/x",
   pathlib.Path("gs://bucket/x")],
)  # fmt: skip
def test_to_path_of_another_scheme_raises(path, objects):
  with pytest.raises(ValueError, match=f"gs://bucket/name or s3.* got {path}$"):
    storage.to_path(path)
  with pytest.raises(ValueError, match="a path must be"):
    tca_jax.load(path)


@pytest.mark.parametrize("path", ["a/b", "~/a", "/a", "C:/a", pathlib.Path("a"), "a:b"])
def test_to_path_of_this_machine_is_unchanged(path):
  assert storage.to_path(path) == epath.Path(path)
  assert not storage.in_bucket(path)


@pytest.mark.parametrize("name", storage.SCHEMES)
def test_to_path_without_the_package_of_the_bucket_raises(name, monkeypatch):
  def missing(_):
    raise ImportError("Please install it")

  monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
  with pytest.raises(
    ModuleNotFoundError, match=f"{name}:// .*pip install fsspec {storage.SCHEMES[name]}"
  ):
    storage.to_path(f"{name}://bucket/x")


@pytest.mark.parametrize("name", storage.SCHEMES)
def test_load_from_a_bucket_returns_what_was_saved(
  name, objects, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  folder = f"{name}://bucket/models/head"
  for scale in (1.0, 2.0):
    params = {"params": {x: scale * y for x, y in PARAMS["params"].items()}}
    tca_jax.save(folder, HEAD, params, overwrite=scale > 1, scale=scale)
    model, loaded, info = tca_jax.load(epath.Path(folder))
    assert model == HEAD and info == {"scale": scale}
    chex.assert_trees_all_equal(loaded, params)
  assert all(path.startswith("bucket/models/head/") for path in objects)
  assert not list(tmp_path.iterdir())
  with pytest.raises(FileExistsError, match=folder):
    tca_jax.save(folder, HEAD, PARAMS)


def test_save_in_a_bucket_that_was_interrupted_leaves_no_model(objects, monkeypatch):
  folder = "gs://bucket/head"
  tca_jax.save(folder, HEAD, PARAMS)
  put = buckets.Bucket._open
  with monkeypatch.context() as context:
    context.setattr(
      buckets.Bucket,
      "_open",
      lambda self, path, mode="rb", **x: (
        _fail()
        if path.endswith("model.json") and mode == "wb"
        else put(self, path, mode)
      ),
    )
    with pytest.raises(OSError, match="network"):
      tca_jax.save(folder, HEAD, PARAMS, overwrite=True)
  assert objects
  with pytest.raises(FileNotFoundError, match="gs://bucket/head has no"):
    tca_jax.load(folder)
  tca_jax.save(folder, HEAD, PARAMS, overwrite=True)
  chex.assert_trees_all_equal(tca_jax.load(folder)[1], PARAMS)


def test_load_of_a_damaged_file_in_a_bucket_names_it(objects):
  tca_jax.save("gs://bucket/head", HEAD, PARAMS)
  name = next(x for x in objects if "/d/" in x)
  objects[name] = objects[name][:-1]
  with pytest.raises(ValueError, match=f"gs://{name} is damaged"):
    tca_jax.load("gs://bucket/head")


def test_save_over_other_files_of_a_bucket_raises(objects):
  objects["bucket/head/thesis.tex"] = b"x"
  with pytest.raises(FileExistsError, match="because it has no"):
    tca_jax.save("gs://bucket/head", HEAD, PARAMS, overwrite=True)
  assert list(objects) == ["bucket/head/thesis.tex"]


def test_copy_files_copies_the_marker_last(tmp_path, monkeypatch):
  source, target = epath.Path(tmp_path / "a"), epath.Path(tmp_path / "b")
  (source / "deep").mkdir(parents=True)
  for name in ("a", "marker", "z", "deep/marker"):
    (source / name).write_text(name)
  copied = []
  copy = type(source).copy
  monkeypatch.setattr(
    type(source),
    "copy",
    lambda self, to, **x: copied.append(to) or copy(self, to, **x),
  )
  storage.copy_files(source, target, last="marker")
  assert len(copied) == 4 and copied[-1] == target / "marker"
  assert storage.file_digests(source) == storage.file_digests(target)
