"""Masked softmax and full cross attention against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tca_jax import attention
from tests import cases
from tests import reference

_cross_attention = jax.jit(attention.cross_attention)


def _inputs(n, rng, heads=2, width=3):
  query = rng.normal(size=(heads, width)).astype(np.float32)
  keys, values = cases.levels((n, n), heads, width, rng)
  return query, keys, values


@pytest.mark.parametrize("n", cases.SIZES)
def test_cross_attention_equals_reference(n, rng):
  query, keys, values = _inputs(n, rng)
  for kind in cases.MASKS:
    mask = cases.mask(kind, n, rng)
    out = _cross_attention(query, keys, values, mask)
    expected = reference.attend(query, keys[mask], values[mask])
    np.testing.assert_allclose(out.output, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out.weights.sum(-1), 1, rtol=1e-5)
    assert not np.any(np.asarray(out.weights)[:, ~mask])


def test_masked_tokens_never_matter(rng):
  query, keys, values = _inputs(33, rng)
  mask = cases.mask("random", 33, rng)
  other = np.where(mask[:, None, None], keys, 1e20).astype(np.float32)
  a = _cross_attention(query, keys, values, mask)
  b = _cross_attention(query, other, values, mask)
  np.testing.assert_array_equal(a.output, b.output)


def test_nothing_to_read_gives_zeros_and_finite_gradients(rng):
  query, keys, values = _inputs(5, rng)

  def total(query, keys, values):
    mask = jnp.zeros(5, bool)
    return attention.cross_attention(query, keys, values, mask).output.sum()

  value, grads = jax.value_and_grad(total, argnums=(0, 1, 2))(query, keys, values)
  assert value == 0
  assert all(np.all(np.isfinite(g)) for g in grads)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_masked_softmaxes_agree_and_are_finite(scale, rng):
  logits = (scale * rng.normal(size=(6, 8))).astype(np.float32)
  mask = rng.random((6, 8)) < 0.5
  mask[0] = False
  soft = attention.masked_softmax(logits, mask)
  log_soft = attention.masked_log_softmax(logits, mask)
  np.testing.assert_allclose(
    np.where(mask, np.exp(log_soft), 0), soft, rtol=1e-5, atol=1e-6
  )
  grad = jax.grad(
    lambda x: jnp.sum(jnp.where(mask, attention.masked_log_softmax(x, mask), 0))
  )(logits)
  assert np.all(np.isfinite(grad)) and np.all(np.isfinite(log_soft))


def test_bfloat16_keeps_the_dtype_and_stays_close(rng):
  query, keys, values = _inputs(33, rng)
  exact = attention.cross_attention(query, keys, values).output
  low = attention.cross_attention(
    *(jnp.asarray(x, jnp.bfloat16) for x in (query, keys, values))
  )
  assert low.output.dtype == jnp.bfloat16 and low.weights.dtype == jnp.float32
  np.testing.assert_allclose(low.output.astype(np.float32), exact, atol=0.05)


def test_bad_shapes_are_named():
  x = jnp.ones((2, 3))
  with pytest.raises(ValueError, match=r"\[H, Dh\] or \[M, H, Dh\]"):
    attention.cross_attention(x, x, x)
  with pytest.raises(ValueError, match=r"mask must be \(4,\)"):
    keys = jnp.ones((4, 2, 3))
    attention.cross_attention(x, keys, keys, jnp.ones(3, bool))
  with pytest.raises(ValueError, match=r"\[N, H, Dh\], \[N, H, Dv\]"):
    attention.cross_attention(x, keys, keys[..., 0])
  with pytest.raises(
    ValueError, match="values must be floating point, got dtype int32"
  ):
    attention.cross_attention(x, keys, keys.astype(int))
  with pytest.raises(ValueError, match="multiple of num_heads=4"):
    attention.split_heads(jnp.ones(6), 4)
