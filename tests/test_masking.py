"""Masked softmax and mean against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tca_jax import masking
from tests import reference


def _logits_and_mask(scale, rng):
  logits = (scale * rng.normal(size=(6, 8))).astype(np.float32)
  mask = rng.random((6, 8)) < 0.5
  mask[0] = False
  return logits, mask


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_masked_softmax_random_mask_equals_reference(scale, axis, rng):
  logits, mask = _logits_and_mask(scale, rng)
  soft = np.moveaxis(np.asarray(masking.masked_softmax(logits, mask, axis)), axis, -1)
  for row, x, valid in zip(
    soft, np.moveaxis(logits, axis, -1), np.moveaxis(mask, axis, -1), strict=True
  ):
    expected = np.zeros(len(x))
    if valid.any():
      expected[valid] = reference.softmax(x[valid].astype(np.float64))
    np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_masked_log_softmax_random_mask_is_the_log_of_masked_softmax(scale, rng):
  logits, mask = _logits_and_mask(scale, rng)
  soft = masking.masked_softmax(logits, mask)
  log_soft = masking.masked_log_softmax(logits, mask)
  np.testing.assert_allclose(
    np.where(mask, np.exp(log_soft), 0), soft, rtol=1e-5, atol=1e-6
  )
  assert np.all(np.asarray(log_soft)[~mask] == np.float32(masking.MASKED))


@pytest.mark.parametrize(
  "function", [masking.masked_softmax, masking.masked_log_softmax]
)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_masked_softmaxes_any_mask_have_finite_gradients(scale, function, rng):
  logits, mask = _logits_and_mask(scale, rng)
  value, grad = jax.value_and_grad(
    lambda x: jnp.sum(jnp.where(mask, function(x, mask), 0))
  )(logits)
  assert np.isfinite(value) and np.all(np.isfinite(grad))
  assert not np.any(np.asarray(grad)[~mask])


@pytest.mark.parametrize(
  "function, of_members",
  [
    (masking.masked_softmax, masking.softmax_of_members),
    (masking.masked_log_softmax, masking.log_softmax_of_members),
  ],
)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_softmaxes_of_members_equal_those_of_an_array(scale, function, of_members, rng):
  logits, mask = _logits_and_mask(scale, rng)
  weights = rng.normal(size=logits.shape).astype(np.float32)

  def joined(logits):
    return jnp.stack(of_members(list(logits.T), list(mask.T)), axis=-1)

  def loss(function, logits):
    return jnp.sum(jnp.where(mask, weights * function(logits), 0))

  whole = functools.partial(function, mask=mask)
  np.testing.assert_allclose(joined(logits), whole(logits), rtol=1e-6, atol=1e-6)
  grads = [jax.grad(loss, argnums=1)(f, logits) for f in (joined, whole)]
  np.testing.assert_allclose(*grads, rtol=1e-5, atol=1e-6)
  assert np.all(np.isfinite(grads[0]))


def test_masked_mean_random_mask_equals_numpy(rng):
  x = rng.normal(size=(4, 5)).astype(np.float32)
  where = rng.random((4, 5)) < 0.6
  np.testing.assert_allclose(masking.masked_mean(x, where), x[where].mean(), rtol=1e-5)
  np.testing.assert_allclose(masking.masked_mean(x), x.mean(), rtol=1e-5)
  by_row = masking.masked_mean(x, where, axis=1, keepdims=True)
  expected = [[row[valid].mean()] for row, valid in zip(x, where, strict=True)]
  np.testing.assert_allclose(by_row, expected, rtol=1e-5)


def test_masked_mean_smaller_mask_is_broadcast(rng):
  x = rng.normal(size=(4, 5)).astype(np.float32)
  where = np.array([True, False, True, True])[:, None]
  np.testing.assert_allclose(
    masking.masked_mean(x, where, axis=0), x[where[:, 0]].mean(0), rtol=1e-5
  )


def test_masked_mean_without_entries_is_zero():
  x = np.full(3, np.nan, np.float32)
  assert jax.jit(masking.masked_mean)(x, np.zeros(3, bool)) == 0


def test_masked_mean_of_booleans_is_a_fraction():
  mean = masking.masked_mean(jnp.array([True, True, False, False]))
  assert mean == 0.5 and jnp.issubdtype(mean.dtype, jnp.floating)
