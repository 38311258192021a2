"""Requests of any size, and an exported program that runs without the package."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tca_jax
from tca_jax import serving


@pytest.fixture(scope="module")
def problem():
  """A predict function, a memory of two contexts, and queries."""
  read_out = tca_jax.TreeCrossAttention(width=16, num_heads=2, hidden=8)
  embedder, head = tca_jax.PointEmbedder(16, 2), tca_jax.GaussianHead(1, hidden=8)
  model = tca_jax.ReTreever(embedder=embedder, read_out=read_out, head=head)
  coords = jax.random.normal(jax.random.key(0), (2, 9, 2), "float32")
  values = coords[..., :1]
  queries = jax.random.normal(jax.random.key(1), (2, 11, 2), "float32")
  params = jax.jit(model.init)(jax.random.key(2), coords, values, queries)
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
