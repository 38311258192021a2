"""Layers: encoder, self-attention and aggregator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tca_jax import masking
from tca_jax.modules import layers
from tests import models


def test_encoder_masked_tokens_are_ignored(rng):
  x = rng.normal(size=(1, 5, 16)).astype(np.float32)
  mask = np.array([[True, True, False, True, False]])
  encoder = layers.Encoder(2, hidden=8)
  params = jax.jit(encoder.init)(jax.random.key(0), x, mask)
  apply = models.compiled(encoder)
  out = apply(params, x, mask)
  other = apply(params, np.where(mask[..., None], x, np.nan), mask)
  np.testing.assert_array_equal(np.asarray(out)[mask], np.asarray(other)[mask])


def test_encoder_without_layers_zeroes_masked_tokens(rng):
  x = rng.normal(size=(1, 3, 16)).astype(np.float32)
  mask = np.array([[True, False, True]])
  out = layers.Encoder(0).apply({}, x, mask)
  np.testing.assert_array_equal(out, np.where(mask[..., None], x, np.float32(0)))


def test_self_attention_small_groups_equals_the_default(rng):
  x = rng.normal(size=(2, 3, 16)).astype(np.float32)
  mask = np.array([[True, True, False], [True, True, True]])
  default = layers.SelfAttention(num_heads=2)
  params = jax.jit(default.init)(jax.random.key(0), x, mask)
  small = layers.SelfAttention(num_heads=2, small_groups=True)
  np.testing.assert_allclose(
    models.compiled(small)(params, x, mask),
    models.compiled(default)(params, x, mask),
    rtol=1e-5,
    atol=1e-5,
  )


def test_aggregator_is_the_masked_mean_of_a_transformer_layer(rng):
  children = rng.normal(size=(5, 2, 16)).astype(np.float32)
  mask = np.array([[True, True], [True, False], [False, True], [True, True], [0, 0]])
  mask = mask.astype(bool)
  aggregator = layers.Aggregator(hidden=8)
  params = jax.jit(aggregator.init)(jax.random.key(0), children, mask)
  layer = layers.TransformerLayer(hidden=8, small_groups=True)
  inner = {"params": params["params"]["TransformerLayer_0"]}
  x = models.compiled(layer)(inner, children, mask)
  expected = masking.masked_mean(x, mask[..., None], axis=-2)
  out = models.compiled(aggregator)(params, children, mask)
  np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
  assert not np.any(out[-1]), "no child is valid"


@pytest.mark.parametrize("small_groups", [False, True])
def test_self_attention_width_not_divisible_raises(small_groups):
  layer = layers.SelfAttention(num_heads=3, small_groups=small_groups)
  with pytest.raises(ValueError, match="multiple of num_heads=3"):
    jax.eval_shape(
      layer.init, jax.random.key(0), jnp.ones((1, 2, 16)), jnp.ones((1, 2), bool)
    )


def test_distance_bias_adds_the_formula_to_the_logits(rng):
  heads, width, axes = 3, 4, 2
  layer = layers.DistanceBias(heads)
  queries = rng.normal(size=(5, heads, width)).astype(np.float32)
  keys = rng.normal(size=(7, heads, width)).astype(np.float32)
  at = rng.normal(size=(5, axes)).astype(np.float32)
  centroid = rng.normal(size=(7, axes)).astype(np.float32)
  sides = rng.random((7, axes)).astype(np.float32)
  count = rng.integers(0, 9, 7).astype(np.int32)
  params = layer.init(jax.random.key(0), queries, at, method="queries")
  weight = np.exp(np.asarray(params["params"]["log_weight"]))
  np.testing.assert_allclose(weight, [0.25, 2, 16], rtol=1e-5)
  other = rng.normal(size=(heads, 2)).astype(np.float32)
  params["params"]["other"] = jnp.asarray(other)
  query = layer.apply(params, queries, at, method="queries")
  key = layer.apply(params, keys, centroid, sides, count, method="keys")
  found = np.einsum("qhd,khd->qkh", query, key) / np.sqrt(key.shape[-1])

  distance = np.sum((at[:, None] - centroid[None]) ** 2, axis=-1)[..., None]
  left_out = np.sum(at**2, axis=-1)[:, None, None]
  expected = np.einsum("qhd,khd->qkh", queries, keys) / np.sqrt(width)
  expected -= weight * (distance - left_out)
  expected += other[:, 0] * np.sum(sides**2, axis=-1)[None, :, None]
  expected += other[:, 1] * np.log(np.maximum(count, 1))[None, :, None]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
