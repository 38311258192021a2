"""Embedders and their position features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tca_jax
from tca_jax import modules


def test_sequence_embedder_skip_adds_symbols_and_sinusoids(rng):
  coords = jnp.arange(5.0)[None, :, None]
  values = rng.normal(size=(1, 5, 3)).astype(np.float32)
  with_skip = modules.SequenceEmbedder(16, num_features=3)
  without = modules.SequenceEmbedder(16, num_features=3, position_skip=False)
  params = with_skip.init(jax.random.key(0), coords, values, method="tokens")
  outer, inner = (
    embedder.apply(params, coords, values, method="tokens")
    for embedder in (with_skip, without)
  )
  symbols = with_skip.apply(params, values, method=lambda module, x: module.symbol(x))
  skipped = symbols + modules.sinusoids(coords[..., 0], 16)
  np.testing.assert_allclose(outer - inner, skipped, atol=1e-5)


def test_point_embedder_skip_is_shared_by_tokens_and_queries(rng):
  coords = rng.uniform(-1, 1, (1, 5, 2)).astype(np.float32)
  values = rng.normal(size=(1, 5, 3)).astype(np.float32)
  with_skip = modules.PointEmbedder(16, num_frequencies=2, position_skip=True)
  without = modules.PointEmbedder(16, num_frequencies=2)

  def embed(module, coords, values):
    return module.tokens(coords, values), module.queries(coords)

  params = with_skip.init(jax.random.key(0), coords, values, method=embed)
  skipped = with_skip.apply(
    params, method=lambda x: x.place(modules.fourier_features(coords, 2))
  )
  outer, inner = (
    x.apply(params, coords, values, method=embed) for x in (with_skip, without)
  )
  for a, b in zip(outer, inner, strict=True):
    np.testing.assert_allclose(a - b, skipped, atol=1e-5)
  params = without.init(jax.random.key(0), coords, values, method=embed)
  assert "place" not in params["params"]


def test_sequence_embedder_positions_have_distinct_embeddings():
  embedder = modules.SequenceEmbedder(16, num_features=3)
  positions = np.arange(6, dtype=np.float32)[None, :, None]
  values = np.zeros((1, 6, 3), np.float32)
  params = embedder.init(jax.random.key(0), positions, values, method="tokens")
  queries = embedder.apply(params, positions, method="queries")
  assert len(np.unique(np.asarray(queries[0]).round(5), axis=0)) == 6
  tokens = embedder.apply(params, positions, values, method="tokens")
  np.testing.assert_allclose(tokens, queries, rtol=1e-6)


def test_sequence_embedder_odd_width_raises():
  embedder = modules.SequenceEmbedder(7)
  with pytest.raises(ValueError, match="width must be even, got 7"):
    x = jnp.ones((1, 4, 1))
    embedder.init(jax.random.key(0), x, jnp.ones((1, 4, 12)), method="tokens")


def test_sinusoids_equal_numpy_with_squared_norm_of_half_the_width():
  positions = np.arange(6, dtype=np.float32)
  waves = np.asarray(modules.sinusoids(positions, 16))
  np.testing.assert_allclose((waves**2).sum(-1), 8, rtol=1e-5)
  angles = positions[:, None] * 1e4 ** -(np.arange(8) / 8)
  expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
  np.testing.assert_allclose(waves, expected, atol=1e-5)


def test_fourier_features_equal_numpy(rng):
  coords = rng.uniform(-1, 1, (4, 2)).astype(np.float32)
  waves = [f(np.pi * 2**k * coords) for k in range(3) for f in (np.sin, np.cos)]
  expected = np.concatenate([coords, *waves], axis=-1)
  np.testing.assert_allclose(modules.fourier_features(coords, 3), expected, atol=1e-5)
  np.testing.assert_array_equal(modules.fourier_features(coords, 0), coords)


def test_placeless_embedder_sees_no_location(rng):
  coords, values = rng.normal(size=(2, 3, 5, 1)).astype(np.float32)
  for sees_values in (False, True):
    embedder = tca_jax.PlacelessEmbedder(8, sees_values=sees_values)
    params = embedder.init(jax.random.key(0), coords, values, method="tokens")
    tokens = embedder.apply(params, coords, values, method="tokens")
    assert tokens.shape == (3, 5, 8)
    moved = embedder.apply(params, coords + 1, values, method="tokens")
    np.testing.assert_array_equal(moved, tokens)
    other = embedder.apply(params, coords, 2 * values, method="tokens")
    assert np.array_equal(other, tokens) == (not sees_values)
    queries = embedder.apply(params, coords, method="queries")
    assert queries.shape == (3, 5, 8) and np.ptp(queries, axis=(0, 1)).max() == 0
