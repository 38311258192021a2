"""ReTreever with every read-out: masks, batches, training, data types and errors."""

import functools

import chex
import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest

import tca_jax
from tests import models
from tests.models import BATCH
from tests.models import NUM_AXES
from tests.models import NUM_QUERIES
from tests.models import NUM_TOKENS

# `jax.enable_x64` is new in JAX 0.8; before, it was `jax.experimental.enable_x64`.
_enable_x64 = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64


@pytest.mark.parametrize("name", models.READ_OUTS + models.RELATIVE)
def test_retreever_masked_equals_truncated_and_masked_tokens_are_ignored(name, rng):
  model = models.model(name, num_layers=1)
  coords, values, query_coords, mask = models.inputs(rng, num_valid=7)
  params, apply = models.params(model), models.compiled(model)
  out = apply(params, coords, values, query_coords, mask)
  for junk in (np.nan, 1e30):
    hidden = [
      np.where(mask[..., None], x, junk).astype(np.float32) for x in (coords, values)
    ]
    chex.assert_trees_all_equal(apply(params, *hidden, query_coords, mask), out)
  short = [x[mask].reshape(BATCH, 7, -1) for x in (coords, values)]
  truncated = apply(params, *short, query_coords)
  exact = models.ROUNDED if name in models.RELATIVE else dict(rtol=1e-5, atol=1e-5)
  for field, x in truncated.output.items():
    np.testing.assert_allclose(x, out.output[field], **exact)


@pytest.mark.parametrize("name", models.READ_OUTS + models.RELATIVE)
def test_retreever_examples_and_queries_are_independent(name, rng):
  model, inputs = models.model(name, num_layers=1), models.inputs(rng)
  params, apply = models.params(model), models.compiled(model)
  out = np.asarray(apply(params, *inputs).output.mean)
  others = models.inputs(rng)
  for mine, other in zip(inputs[:2] + inputs[3:], others[:2] + others[3:], strict=True):
    other[1] = mine[1]
  others[2][1, 2] = inputs[2][1, 2]
  np.testing.assert_array_equal(apply(params, *others).output.mean[1, 2], out[1, 2])
  assert not np.any(apply(params, *others).output.mean[0] == out[0])


def test_retreever_one_example_and_one_query_equals_the_batch(rng):
  model, inputs = models.model("tca", num_layers=1), models.inputs(rng)
  params, apply = models.params(model), models.compiled(model)
  out = apply(params, *inputs).output.mean
  coords, values, query_coords, mask = inputs
  one = apply(params, coords[1:2], values[1:2], query_coords[1:2, 2:3], mask[1:2])
  np.testing.assert_allclose(one.output.mean[0, 0], out[1, 2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", models.READ_OUTS + models.RELATIVE)
def test_retreever_empty_context_under_jit_is_ignored_with_finite_gradients(name, rng):
  model = models.model(name, num_layers=1)
  params = models.params(model)
  coords, values, query_coords, _ = models.inputs(rng)
  coords, values = coords[:, :5], values[:, :5]
  empty = np.zeros((BATCH, 5), bool)

  def loss(params, coords, values):
    rngs = {"policy": jax.random.key(0)}
    out = model.apply(
      params, coords, values, query_coords, empty, train=True, rngs=rngs
    )
    return out.output.mean.sum() + out.output.std.sum(), out

  grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
  (value, out), grads = grad(params, coords, values)
  assert np.isfinite(value)
  chex.assert_tree_all_finite(grads)
  assert not np.any(out.reading.num_read)
  (_, other), _ = grad(params, coords + 1, values + 1)
  chex.assert_trees_all_equal(other.output, out.output)
  with pytest.raises(ValueError, match="at least one valid token"):
    model.apply(params, coords, values, query_coords, empty)


def test_retreever_training_also_predicts_from_all_leaves(rng):
  model, inputs = models.model("tca"), models.inputs(rng)
  params = models.params(model)
  coords, values, query_coords, mask = inputs
  memory = models.compiled(model, "index")(params, coords, values, mask)
  train = models.compiled(model, "read", train=True)
  out = train(params, memory, query_coords, rngs={"policy": jax.random.key(1)})
  assert type(out) is tca_jax.TrainingPrediction
  assert type(out.reading) is tca_jax.TrainingReading
  full = models.compiled(model, "read_leaves")(params, memory, query_coords)
  assert type(full) is tca_jax.Prediction
  np.testing.assert_allclose(
    out.leaf_output.mean, full.output.mean, rtol=1e-5, atol=1e-5
  )
  np.testing.assert_array_equal(
    full.reading.num_read, np.tile(mask.sum(-1, keepdims=True), NUM_QUERIES)
  )


@pytest.mark.parametrize("name", ["ca", "perceiver"])
def test_retreever_training_without_tree_returns_a_prediction(name, rng):
  model, params = models.model(name), models.params(models.model(name))
  coords, values, query_coords, mask = models.inputs(rng)
  memory = models.compiled(model, "index")(params, coords, values, mask)
  out = models.compiled(model, "read", train=True)(params, memory, query_coords)
  assert type(out) is tca_jax.Prediction and type(out.reading) is tca_jax.Reading


def test_retreever_num_paths_reaches_the_read_out(rng):
  model = models.model("tca")
  params = models.params(model)
  coords, values, query_coords, mask = models.inputs(rng)
  memory = models.compiled(model, "index")(params, coords, values, mask)
  full = models.compiled(model, "read_leaves")(params, memory, query_coords)
  counts = []
  for num_paths in (1, 2, memory.tree.num_leaves):
    read = models.compiled(model, "read", num_paths=num_paths)
    out = read(params, memory, query_coords)
    counts.append(int(out.reading.num_read.sum()))
  assert counts == sorted(set(counts))
  assert counts[-1] == full.reading.num_read.sum()
  np.testing.assert_allclose(out.output.mean, full.output.mean, rtol=1e-5, atol=1e-5)
  read = functools.partial(model.apply, params, memory, query_coords, method="read")
  with pytest.raises(ValueError, match="num_paths must be at least 1, got 0"):
    read(num_paths=0)
  with pytest.raises(ValueError, match="num_paths must be 1 in training, got 2"):
    read(num_paths=2, train=True)


def test_retreever_without_tree_refuses_trees_paths_and_leaves(rng):
  model = models.model("ca")
  coords, values, query_coords, _ = models.inputs(rng)
  apply = functools.partial(model.apply, models.params(model))
  message = "read_out must have a tree, such as TreeCrossAttention, got CrossAttention"
  with pytest.raises(ValueError, match=message):
    apply(coords, values, tree=jax.vmap(tca_jax.build_tree)(coords), method="index")
  memory = models.compiled(model, "index")(models.params(model), coords, values)
  with pytest.raises(ValueError, match=message):
    apply(memory, query_coords, method="read_leaves")
  with pytest.raises(ValueError, match="num_paths must be 1 for CrossAttention"):
    apply(memory, query_coords, num_paths=2, method="read")


@pytest.mark.parametrize("name", models.READ_OUTS)
def test_retreever_without_queries_returns_an_empty_prediction(name, rng):
  coords, values, query_coords, mask = models.inputs(rng)
  model = models.model(name)
  params = models.params(model)
  memory = models.compiled(model, "index")(params, coords, values, mask)
  read = models.compiled(model, "read")
  prediction = read(params, memory, query_coords[:, :0])
  assert prediction.output.mean.shape == (BATCH, 0, 1)


def test_retreever_64_bits_change_neither_dtypes_nor_walks(rng):
  coords, values, query_coords, mask = models.inputs(rng)
  coords, values, mask = coords[:, :5], values[:, :5], mask[:, :5]
  model = models.model("tca")
  params = models.params(model)

  def run(params):
    memory = model.apply(params, coords, values, mask, method="index")
    read = functools.partial(model.apply, params, memory, query_coords, method="read")
    return read(), read(train=True, rngs={"policy": jax.random.key(1)})

  found = {}
  for x64 in (False, True):
    with _enable_x64(x64):
      found[x64] = jax.jit(run)(params)
  for out, expected in zip(found[True], found[False], strict=True):
    assert out.output.mean.dtype == jnp.float32
    np.testing.assert_array_equal(out.reading.walk.path, expected.reading.walk.path)
    chex.assert_trees_all_close(out.output, expected.output, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
  jax.config.jax_numpy_dtype_promotion == "strict",
  reason="LayerNorm of Flax multiplies bfloat16 by float32",
)
@pytest.mark.parametrize("name", models.READ_OUTS)
def test_retreever_bfloat16_is_close_with_float32_parameters(name, rng):
  inputs = models.inputs(rng)
  exact = models.model(name, num_layers=1)
  params = models.params(exact)
  low = models.compiled(models.model(name, 1, jnp.bfloat16))(params, *inputs)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
  assert low.reading.output.dtype == jnp.bfloat16
  expected = models.compiled(exact)(params, *inputs).output.mean
  np.testing.assert_allclose(low.output.mean, expected, atol=0.15)


@pytest.mark.parametrize("name", models.READ_OUTS)
@pytest.mark.parametrize(
  "change, message",
  [
    (dict(coords=np.ones((BATCH, NUM_TOKENS), "f")), r"coords must be \[B, N, C\]"),
    (dict(values=np.ones((BATCH, 12, 1), "f")), r"values must be \(3, 11\)"),
    (dict(values=np.full((BATCH, NUM_TOKENS, 1), np.nan, "f")), "values must be fin"),
    (dict(coords=np.full((BATCH, NUM_TOKENS, 2), np.inf, "f")), "coords must be fin"),
    (dict(values=np.ones((BATCH, NUM_TOKENS, 1), np.int32)), "values must be floating"),
    (dict(mask=np.ones((BATCH, NUM_TOKENS), np.float32)), "mask must be bool"),
    (dict(mask=np.ones((BATCH, NUM_TOKENS + 1), bool)), "mask must be"),
    (dict(mask=np.zeros((BATCH, NUM_TOKENS), bool)), "at least one valid token"),
  ],
)
def test_index_bad_context_raises(name, change, message, rng):
  names = ("coords", "values", "query_coords", "mask")
  inputs = dict(zip(names, models.inputs(rng), strict=True)) | change
  with pytest.raises(ValueError, match=message):
    models.model(name).init(jax.random.key(0), **inputs)


@pytest.mark.parametrize("name", models.READ_OUTS)
@pytest.mark.parametrize(
  "query_coords, message",
  [
    (np.ones((BATCH + 1, 4, NUM_AXES), np.float32), r"queries must be \[3, M"),
    (np.ones((BATCH, 4, NUM_AXES), np.int32), "query_coords must be floating"),
    (np.full((BATCH, 4, NUM_AXES), np.nan, np.float32), "query_coords must be finite"),
  ],
)
def test_read_bad_query_coordinates_raise(name, query_coords, message, rng):
  model = models.model(name)
  params = models.params(model)
  coords, values, _, mask = models.inputs(rng)
  memory = models.compiled(model, "index")(params, coords, values, mask)
  methods = ("read", "read_leaves") if name == "tca" else ("read",)
  for method in methods:
    with pytest.raises(ValueError, match=message):
      model.apply(params, memory, query_coords, method=method)


def test_retreever_token_width_differs_from_the_read_out_raises(rng):
  model = models.model("tca").clone(embedder=tca_jax.PointEmbedder(8, 2))
  with pytest.raises(ValueError, match=r"tokens must be \[B, N, 16\]"):
    jax.eval_shape(model.init, jax.random.key(0), *models.inputs(rng))
