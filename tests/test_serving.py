"""Requests of any size, and an exported program that runs without the package."""

import functools
import subprocess
import sys
import zipfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tca_jax
from tca_jax import serving
from tests import models


@pytest.fixture(scope="module")
def problem():
  """A predict function, a memory of two contexts, and queries."""
  read_out = tca_jax.TreeCrossAttention(width=16, num_heads=2, hidden=8)
  embedder, head = tca_jax.PointEmbedder(16, 2), tca_jax.GaussianHead(1, hidden=8)
  model = tca_jax.ReTreever(embedder=embedder, read_out=read_out, head=head)
  coords = jax.random.normal(jax.random.key(0), (2, 9, 2), "float32")
  values = coords[..., :1]
  queries = jax.random.normal(jax.random.key(1), (2, 11, 2), "float32")
  params = models.draw(model.init, coords, values, queries)
  index = jax.jit(functools.partial(model.apply, method="index"))

  def predict(memory, queries):
    output = model.apply(params, memory, queries, method="read").output
    return {"mean": output.mean, "std": output.std}

  return predict, index(params, coords, values), queries


def test_server_requests_of_any_size_compile_for_the_given_sizes(problem, count_traces):
  predict, memory, queries = problem
  counter, _ = count_traces(predict)
  server = serving.Server(counter, memory, sizes=(4, 1))
  expected = jax.jit(predict)(memory, queries)
  for count in (1, 2, 3, 4, 5, 8, 9, 11, 1, 7):
    answer = server(queries[:, :count])
    for name, x in answer.items():
      np.testing.assert_allclose(x, expected[name][:, :count], rtol=1e-4, atol=1e-5)
  assert counter.traces == 2


@pytest.mark.parametrize("sizes", [(), (0, 4)])
def test_server_bad_sizes_raise(problem, sizes):
  predict, memory, _ = problem
  with pytest.raises(ValueError, match="sizes must be numbers of at least 1"):
    serving.Server(predict, memory, sizes=sizes)


def test_server_request_without_queries_raises(problem):
  predict, memory, queries = problem
  with pytest.raises(ValueError, match=r"M >= 1, got \(2, 0, 2\)"):
    serving.Server(predict, memory)(queries[:, :0])


def test_export_read_runs_without_the_package_for_any_number_of_queries(
  problem, tmp_path
):
  predict, memory, queries = problem
  (tmp_path / "read.bin").write_bytes(serving.export_read(predict, memory, queries))
  np.savez(tmp_path / "memory.npz", *jax.tree.leaves(memory))
  np.save(tmp_path / "queries.npy", queries)
  code = """
import sys, jax, jax.export, numpy as np
program = jax.export.deserialize(bytearray(open("read.bin", "rb").read()))
memory, queries = list(np.load("memory.npz").values()), np.load("queries.npy")
for count in (1, 7):
  np.save(f"mean{count}.npy", program.call(memory, queries[:, :count])["mean"])
assert not any(name.startswith(("tca_jax", "flax")) for name in sys.modules)
"""
  subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
  expected = jax.jit(predict)(memory, queries)["mean"]
  for count in (1, 7):
    found = np.load(tmp_path / f"mean{count}.npy")
    np.testing.assert_allclose(found, expected[:, :count], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_load_read_returns_what_save_read_saved(dtype, problem, tmp_path):
  predict, memory, queries = problem
  memory = jax.tree.map(
    lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, memory
  )
  file = tmp_path / "read.npz"
  serving.save_read(file, serving.export_read(predict, memory, queries), memory)
  program, arrays = serving.load_read(file)
  for found, saved in zip(arrays, jax.tree.leaves(memory), strict=True):
    assert found.dtype == saved.dtype and found.shape == saved.shape
    assert np.array_equal(found, saved)
  expected = jax.jit(predict)(memory, queries)["mean"]
  found = program.call(arrays, queries)["mean"]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert [path.name for path in tmp_path.iterdir()] == ["read.npz"]


@pytest.mark.parametrize(
  "damage", [lambda x: x[:50], lambda x: b"", lambda x: x[:-200]]
)
def test_load_read_damaged_file_raises(damage, problem, tmp_path):
  predict, memory, queries = problem
  file = tmp_path / "read.npz"
  serving.save_read(file, serving.export_read(predict, memory, queries), memory)
  file.write_bytes(damage(file.read_bytes()))
  with pytest.raises(
    ValueError, match=r"read.npz is damaged or not a file of save_read"
  ):
    serving.load_read(file)
  with pytest.raises(FileNotFoundError):
    serving.load_read(tmp_path / "none.npz")


# --- Memories that grow, and files of memories.


@pytest.fixture(scope="module")
def growth():
  """A model with a growing memory of two contexts, and its compiled methods."""
  model = models.model("tca")
  params = models.params(model)
  coords, values, queries, _ = models.inputs(np.random.default_rng(0))
  method = functools.partial(models.compiled, model)
  growing = method("index_growing", capacity=8)(params, coords[:, :4], values[:, :4])
  new = coords[:, 4:6], values[:, 4:6]

  def predict(memory, queries):
    return model.apply(params, memory, queries, method="read").output.mean

  def insert(growing):
    return method("insert")(params, growing, *new)[0]

  def rebuild(growing):
    return method("rebuild")(params, growing)

  return growing, insert, rebuild, predict, queries


def test_server_update_to_a_grown_memory_compiles_only_for_another_capacity(
  growth, count_traces
):
  growing, insert, rebuild, predict, queries = growth
  counter, _ = count_traces(predict)
  server = serving.Server(counter, growing.memory, sizes=(queries.shape[1],))
  read = jax.jit(predict)
  steps = ((growing, 1), (insert(growing), 1), (rebuild(insert(growing)), 2))
  for memory, traces in steps:
    server.update(memory.memory)
    expected = read(memory.memory, queries)
    np.testing.assert_allclose(server(queries), expected, rtol=1e-5, atol=1e-5)
    assert counter.traces == traces
  first = np.asarray(read(growing.memory, queries))
  assert not np.allclose(server(queries), first, atol=1e-3)


def test_server_update_to_another_class_or_after_donation_raises(growth):
  growing, _, _, predict, queries = growth
  server = serving.Server(predict, growing.memory, sizes=(4,))
  with pytest.raises(ValueError, match=r"memory must have the structure .*TreeMemory"):
    server.update(growing.memory.tree)
  copy = jax.tree.map(jnp.copy, growing.memory)
  server.update(copy)
  jax.tree.map(lambda x: x.delete(), copy)  # as donation does
  with pytest.raises(ValueError, match=r"memory was donated .* update"):
    server(queries)
  server.update(growing.memory)
  assert np.all(np.isfinite(server(queries)))


def test_server_requests_from_several_threads_take_turns():
  # Two Cholesky factorisations at once can stop a process for good: use one of its own.
  code = """
from concurrent import futures
import jax.numpy as jnp
import numpy as np
from tca_jax import serving

memory = jnp.tile(4 * jnp.eye(32), (1, 256, 1, 1))
servers = [
  serving.Server(lambda memory, x: jnp.linalg.cholesky(memory), memory, sizes=(256,))
  for _ in range(2)
]
queries = np.zeros((1, 256, 1), np.float32)
with futures.ThreadPoolExecutor(4) as pool:
  answers = list(pool.map(lambda i: servers[i % 2](queries), range(2000)))
assert all(np.array_equal(x[0, -1], 2 * np.eye(32)) for x in answers)
"""
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_exported_program_reads_a_grown_memory_of_its_capacity(growth):
  growing, insert, rebuild, predict, queries = growth
  program = jax.export.deserialize(
    bytearray(serving.export_read(predict, growing.memory, queries))
  )
  grown = insert(growing)
  found = program.call(jax.tree.leaves(grown.memory), queries)
  expected = jax.jit(predict)(grown.memory, queries)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match=r"[Ss]hape"):
    program.call(jax.tree.leaves(rebuild(grown).memory), queries)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_load_memory_returns_what_save_memory_saved_and_goes_on_alike(
  dtype, growth, tmp_path
):
  growing, insert = growth[:2]
  growing = jax.tree.map(
    lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, insert(growing)
  )
  file = tmp_path / "memory.npz"
  serving.save_memory(file, growing, num_points=6)
  loaded, info = serving.load_memory(file)
  assert info == {"num_points": 6} and type(loaded) is tca_jax.GrowingMemory
  chex.assert_trees_all_equal_shapes_and_dtypes(loaded, growing)
  chex.assert_trees_all_equal(loaded, growing)
  if dtype == jnp.float32:
    chex.assert_trees_all_equal(insert(loaded), insert(growing))
  assert [path.name for path in tmp_path.iterdir()] == ["memory.npz"]


def test_load_memory_of_each_class_returns_it(problem, tmp_path):
  memory = problem[1]
  file = tmp_path / "memory.npz"
  for saved in (memory, tca_jax.memory.leaves(memory), memory.tree):
    serving.save_memory(file, saved)
    loaded, _ = serving.load_memory(file)
    assert type(loaded) is type(saved)
    chex.assert_trees_all_equal(loaded, saved)


def test_save_memory_of_another_class_or_info_raises_and_keeps_the_file(
  problem, tmp_path
):
  memory, file = problem[1], tmp_path / "memory.npz"
  serving.save_memory(file, memory)
  before = file.read_bytes()
  with pytest.raises(ValueError, match=r"classes .*GrowingMemory.*, got dict"):
    serving.save_memory(file, {"memory": memory})
  with pytest.raises(ValueError, match="info must be JSON data"):
    serving.save_memory(file, memory, rate=np.ones(2))
  assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def _rewrite(file, name, change):
  """Changes one part of a file, with a new checksum."""
  with zipfile.ZipFile(file) as old:
    parts = {part: old.read(part) for part in old.namelist()}
  parts[name] = change(parts[name])
  with zipfile.ZipFile(file, "w") as new:
    for part, data in parts.items():
      new.writestr(part, data)


@pytest.mark.parametrize(
  "damage",
  [
    lambda file: file.write_bytes(file.read_bytes()[:-200]),
    lambda file: file.write_bytes(b"text"),
    lambda file: _rewrite(file, "bytes_0.npy", lambda x: x[:-4]),
    lambda file: _rewrite(
      file, "description.npy", lambda x: x.replace(*(c.encode("utf-32-le") for c in ("TreeMemory", "TreeMagic_")))
    ),
    lambda file: serving.save_read(file, b"program", ()),
  ],
)  # fmt: skip
def test_load_memory_damaged_file_raises(damage, problem, tmp_path):
  file = tmp_path / "memory.npz"
  serving.save_memory(file, problem[1])
  damage(file)
  with pytest.raises(ValueError, match="is damaged or not a file of save_memory"):
    serving.load_memory(file)
  with pytest.raises(FileNotFoundError):
    serving.load_memory(tmp_path / "none.npz")
