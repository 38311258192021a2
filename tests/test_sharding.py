"""Contexts that are split over devices, against those on one device.

The tests need several devices. `test_with_nine_devices_fast_tests_pass` runs them in a
process that has them.
"""

import doctest
import functools
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

import tca_jax
from tca_jax import retrieval
from tca_jax import sharded_building
from tca_jax import sharding
from tests import models

ROOT = pathlib.Path(__file__).parent.parent
NUM_DEVICES = 9
sharded = pytest.mark.skipif(
  jax.device_count() < NUM_DEVICES, reason="needs several devices"
)
SLOW = pytest.mark.slow


@pytest.mark.skipif(jax.device_count() >= NUM_DEVICES, reason="starts the others")
def test_with_nine_devices_fast_tests_pass():
  flags = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
  result = subprocess.run(
    [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "not slow", __file__],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flags}"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stdout[-5_000:] + result.stderr[-2_000:]


def _mesh(**sizes):
  devices = np.array(jax.devices()[: np.prod(list(sizes.values()))])
  return jax.sharding.Mesh(devices.reshape(*sizes.values()), tuple(sizes))


# --- Trees.


@functools.cache
def _builder(num_devices, branch_factor, order):
  def build(coords, mask, number):
    return sharded_building.build_sharded_tree(
      coords,
      mask,
      [number],
      axis_name="context",
      branch_factor=branch_factor,
      order=order,
      axis=-1,
    )

  split = PartitionSpec("context")
  tree = sharding.ShardedTree(
    leaf_index=split, leaf_mask=split, root_count=PartitionSpec(), axis_name="context"
  )
  return jax.jit(
    jax.shard_map(
      build,
      mesh=_mesh(context=num_devices),
      in_specs=split,
      out_specs=(tree, [split, split]),
    )
  )


def _points(kind, num_tokens, num_axes, rng):
  coords = rng.normal(size=(num_tokens, num_axes)).astype(np.float32)
  mask = np.ones(num_tokens, bool)
  if kind == "ties":
    coords = np.round(coords)
    coords[rng.random(coords.shape) < 0.2] = -0.0
  elif kind == "equal":
    coords[:] = 1.5
  elif kind == "masked":
    mask = rng.random(num_tokens) < 0.5
    mask[0] = True
    coords[~mask] = np.nan
  elif kind == "one valid":
    mask[1:] = False
  elif kind == "extreme":
    coords[::3] = np.float32(3e38) * np.sign(coords[::3])
  return coords, mask


def _check_tree(num_devices, branch_factor, num_tokens, num_axes, order, kind):
  rng = np.random.default_rng(num_tokens)
  coords, mask = _points(kind, num_tokens, num_axes, rng)
  number = np.arange(num_tokens, dtype=np.int32)
  build = _builder(num_devices, branch_factor, order)
  found, (found_coords, found_number) = build(coords, mask, number)
  options = dict(branch_factor=branch_factor, order=order, axis=-1)
  expected = tca_jax.build_tree(coords, mask, **options)
  valid = np.asarray(expected.leaf_mask)
  np.testing.assert_array_equal(found.leaf_mask, valid)
  np.testing.assert_array_equal(found.root_count, expected.root_count)
  index = np.asarray(expected.leaf_index)
  np.testing.assert_array_equal(found.leaf_index, index)
  np.testing.assert_array_equal(found_number, np.where(valid, index, 0))
  np.testing.assert_array_equal(
    found_coords, np.where(valid[:, None], coords[index], 0)
  )


KINDS = ("random", "ties", "equal", "masked", "one valid", "extreme")


@sharded
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  "num_devices, branch_factor, num_tokens, num_axes, order",
  [
    (8, 2, 104, 2, "kd"),
    (9, 3, 45, 3, "kd"),
    pytest.param(8, 2, 8, 2, "kd", marks=SLOW),
    pytest.param(4, 2, 36, 1, "kd", marks=SLOW),
    pytest.param(2, 2, 66, 4, "kd", marks=SLOW),
    pytest.param(1, 2, 5, 2, "kd", marks=SLOW),
    pytest.param(3, 3, 30, 2, "kd", marks=SLOW),
    pytest.param(4, 4, 68, 2, "kd", marks=SLOW),
    pytest.param(4, 2, 20, 2, "given", marks=SLOW),
    pytest.param(8, 2, 40, 3, "axis", marks=SLOW),
  ],
)
def test_build_sharded_tree_equals_build_tree(
  num_devices, branch_factor, num_tokens, num_axes, order, kind
):
  _check_tree(num_devices, branch_factor, num_tokens, num_axes, order, kind)


# --- Models.


def _context(num_tokens, num_queries=4, seed=0):
  rng = np.random.default_rng(seed)
  coords = rng.normal(size=(2, num_tokens, 2)).astype(np.float32)
  coords[:, ::4] = np.round(coords[:, ::4])
  values = np.sin(3 * coords[..., :1])
  mask = rng.random((2, num_tokens)) < 0.8
  query_coords = rng.normal(size=(2, num_queries, 2)).astype(np.float32)
  return coords, values, mask, query_coords


@functools.cache
def _model(name, **options):
  if name == "relative_tca":
    options = dict(num_kriged=0) | options  # it magnifies rounding
  if name == "own policy":
    name, options = "tca", dict(share_policy=False) | options
  model = models.model(name, **options)
  if name == "relative_tca":
    model = model.clone(read_out=model.read_out.clone(num_layers=1))  # compiles faster
  return model


def _close(found, expected, **tolerance):
  tolerance = tolerance or dict(rtol=1e-5, atol=1e-5)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(x, y, err_msg=jax.tree_util.keystr(path), **tolerance)


@functools.cache
def _readers(name, num_devices, num_paths, query_devices=None, **options):
  """A model, and its compiled predictions from split memories and from whole ones."""
  model = _model(name, **options)
  if query_devices is None:
    mesh, query_axis = _mesh(context=num_devices), None
  else:
    mesh = _mesh(context=num_devices, queries=query_devices)
    query_axis = "queries"

  def split(params, coords, values, mask, query_coords):
    memory = sharding.index(model, params, coords, values, mask, mesh=mesh)
    prediction = sharding.read(
      model,
      params,
      memory,
      query_coords,
      mesh=mesh,
      num_paths=num_paths,
      query_axis=query_axis,
    )
    return prediction, memory.tree

  def whole(params, coords, values, mask, query_coords):
    memory = model.apply(params, coords, values, mask, method="index")
    prediction = model.apply(
      params, memory, query_coords, num_paths=num_paths, method="read"
    )
    return prediction, memory.tree

  return model, split, whole


CASES = [
  # The model, devices, tokens, paths.
  pytest.param("tca", 4, 20, 1, marks=SLOW),
  pytest.param("tca", 8, 40, 3, marks=SLOW),
  ("relative_tca", 4, 20, 2),
  pytest.param("tca", 2, 18, 1, marks=SLOW),
  pytest.param("tca", 8, 104, 1, marks=SLOW),
  pytest.param("tca", 1, 5, 1, marks=SLOW),
  pytest.param("tca", 1, 1, 2, marks=SLOW),
  pytest.param("tca", 8, 8, 2, marks=SLOW),
  pytest.param("own policy", 4, 36, 1, marks=SLOW),
  pytest.param("own policy", 4, 36, 3, marks=SLOW),
  pytest.param("relative_tca", 2, 18, 1, marks=SLOW),
  pytest.param("relative_tca", 8, 104, 1, marks=SLOW),
  pytest.param("relative_tca", 8, 40, 4, marks=SLOW),
  pytest.param("relative_tca", 8, 8, 2, marks=SLOW),
]


@sharded
@pytest.mark.parametrize("name, num_devices, num_tokens, num_paths", CASES)
def test_read_split_memory_equals_whole(name, num_devices, num_tokens, num_paths):
  model, split, whole = _readers(name, num_devices, num_paths)
  params = models.params(model)
  context = _context(num_tokens)
  found, tree = jax.jit(split)(params, *context)
  expected, expected_tree = jax.jit(whole)(params, *context)
  _close(found, expected)
  np.testing.assert_array_equal(tree.leaf_index, expected_tree.leaf_index)


@sharded
@SLOW
@pytest.mark.parametrize("fits_covariance", [False, True])
def test_read_kriged_split_memory_equals_whole_up_to_rounding(fits_covariance):
  options = dict(num_kriged=32, border_tokens=2)
  if fits_covariance:
    options |= models.FITTED
  model, split, whole = _readers("relative_tca", 8, 4, **options)
  params = models.params(model)
  context = _context(104)
  _close(
    jax.jit(split)(params, *context)[0],
    jax.jit(whole)(params, *context)[0],
    **models.ROUNDED,
  )


@sharded
@SLOW
@pytest.mark.parametrize("name, num_paths", [("tca", 1), ("relative_tca", 2)])
def test_read_split_queries_equals_whole(name, num_paths):
  model, split, whole = _readers(name, 4, num_paths, query_devices=2)
  params = models.params(model)
  context = _context(36)
  found, _ = jax.jit(split)(params, *context)
  assert found.output.mean.sharding.spec == PartitionSpec(None, "queries")
  _close(found, jax.jit(whole)(params, *context)[0])


@sharded
@pytest.mark.parametrize(
  "name, num_devices, num_paths",
  [
    pytest.param("tca", 4, 1, marks=SLOW),
    pytest.param("tca", 8, 3, marks=SLOW),
    pytest.param("own policy", 2, 1, marks=SLOW),
    pytest.param("relative_tca", 4, 2, marks=SLOW),
    pytest.param("relative_tca", 8, 1, marks=SLOW),
  ],
)
def test_gradients_of_split_memory_equal_whole(name, num_devices, num_paths):
  model, split, whole = _readers(name, num_devices, num_paths)
  params = models.params(model)
  coords, values, mask, query_coords = _context(5 * num_devices)
  truth = np.cos(query_coords[..., :1])

  def gradient(predict):
    def loss(params, coords, values):
      prediction, _ = predict(params, coords, values, mask, query_coords)
      return jnp.mean(prediction.output.log_prob(truth))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, coords, values)

  for found, expected in zip(gradient(split), gradient(whole), strict=True):
    # Some biases have no effect, and rounding as their gradient.
    largest = max(np.max(np.abs(x)) for x in jax.tree.leaves(expected))
    _close(found, expected, rtol=1e-5, atol=1e-5 * largest)


@sharded
@SLOW
@pytest.mark.parametrize("sampled", [False, True])
def test_attend_split_memory_equals_whole(sampled):
  model = _model("own policy")
  params = models.params(model)
  coords, values, mask, _ = (x[:1] for x in _context(40))
  queries = np.random.default_rng(1).normal(size=(5, 4, 4)).astype(np.float32)
  rngs = jax.random.split(jax.random.key(0), 5)

  def attend(memory):
    memory = jax.tree.map(lambda x: x[0], memory)

    def one(query, rng):
      rng = rng if sampled else None
      return retrieval.attend(query, memory, rng=rng, policy_query=query + 1)

    return jax.vmap(one)(queries, rngs)

  def split(values):
    def run(coords, values, mask):
      memory = model.apply(
        params, coords, values, mask, axis_name="context", method="index_sharded"
      )
      return attend(memory)

    specs = dict(in_specs=PartitionSpec(None, "context"), out_specs=PartitionSpec())
    mesh = _mesh(context=8)
    return jax.shard_map(run, mesh=mesh, **specs)(coords, values, mask)

  def whole(values):
    return attend(model.apply(params, coords, values, mask, method="index"))

  def gradient(run):
    def loss(values):
      found = run(values)
      return jnp.sum(found.output**2) + jnp.sum(found.log_prob) + jnp.sum(found.entropy)

    return jax.jit(jax.grad(loss))(values)

  _close(jax.jit(split)(values), jax.jit(whole)(values))
  _close(gradient(split), gradient(whole))


@sharded
@SLOW
@pytest.mark.parametrize("name", ["tca", "relative_tca"])
def test_index_has_no_array_of_all_tokens_on_a_device(name):
  model = _model(name)
  num_tokens, num_leaves = 1016, 1024
  coords, values, mask, _ = _context(num_tokens)
  index = jax.jit(functools.partial(sharding.index, model, mesh=_mesh(context=8)))
  compiled = index.lower(models.params(model), coords, values, mask).compile()
  shapes = re.findall(r"\w\d+\[([\d,]+)\]", compiled.as_text())
  sizes = {int(size) for shape in shapes for size in shape.split(",")}
  assert {num_tokens // 8, num_leaves // 8} <= sizes
  assert not {num_tokens, num_leaves} & sizes


# --- Inputs.


@sharded
def test_place_context_pads_and_splits():
  coords, values, _, _ = _context(10)
  placed = sharding.place_context(coords, values, mesh=_mesh(context=4))
  for x, y in zip(placed, (coords, values, np.ones((2, 10), bool)), strict=True):
    assert {part.data.shape[1] for part in x.addressable_shards} == {3}
    np.testing.assert_array_equal(x[:, :10], y)
    assert not np.any(np.asarray(x[:, 10:]))


@sharded
def test_bad_arguments_raise_value_errors():
  coords, values, mask, query_coords = _context(12)
  model = _model("tca")
  params = models.params(model)
  mesh = _mesh(context=3, queries=3)
  four = _mesh(context=4)

  def index(model, coords, mesh=four, **options):
    return sharding.index(model, params, coords, values, mask, mesh=mesh, **options)

  with pytest.raises(ValueError, match="power of branch_factor=2 devices, got 3"):
    index(model, coords, mesh)
  with pytest.raises(ValueError, match=r"must be an axis of the mesh.*got 'model'"):
    index(model, coords, axis_name="model")
  with pytest.raises(ValueError, match=r"coords must be .* multiple of the 4 devices"):
    index(model, coords[:, :11])
  with pytest.raises(ValueError, match="order must be one of"):
    index(_model("tca", order="random"), coords)
  with pytest.raises(ValueError, match="encoder must be None"):
    index(models.model("tca", num_layers=1), coords)
  with pytest.raises(ValueError, match="read_out must have a tree"):
    index(models.model("ca"), coords)
  with pytest.raises(ValueError, match="at least one valid token"):
    sharding.place_context(coords, values, mask & False, mesh=four)
  memory = jax.eval_shape(lambda: index(model, coords))
  with pytest.raises(ValueError, match=r"query_coords must be .* of the 3 devices"):
    sharding.read(model, params, memory, query_coords, mesh=mesh, query_axis="queries")


@sharded
@SLOW
def test_read_leaves_split_memory_raises_value_error():
  model = _model("tca")
  params = models.params(model)
  context = _context(12)
  index = functools.partial(sharding.index, model, mesh=_mesh(context=4))
  memory = jax.eval_shape(index, params, *context[:3])
  with pytest.raises(ValueError, match="memory must be on one device"):
    model.apply(params, memory, context[3], method="read_leaves")


@sharded
@SLOW
def test_docs_page_examples_give_their_results():
  page = ROOT / "docs" / "concepts" / "sharding.md"
  assert not doctest.testfile(str(page), module_relative=False).failed
