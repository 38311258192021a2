"""Cross attention and sibling attention against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tca_jax import attention
from tests import cases
from tests import reference

SIZES = (1, 2, 3, 7, 8, 9, 100)

_cross_attention = jax.jit(attention.cross_attention)


def _inputs(n, rng, heads=2, width=3):
  query = rng.normal(size=(heads, width)).astype(np.float32)
  keys, values = cases.levels((n, n), heads, width, rng)
  return query, keys, values


@pytest.mark.parametrize("n", SIZES)
def test_cross_attention_any_mask_equals_reference(n, rng):
  query, keys, values = _inputs(n, rng)
  for kind in cases.MASKS:
    mask = cases.mask(kind, n, rng)
    out = _cross_attention(query, keys, values, mask)
    expected = reference.attend(query, keys[mask], values[mask])
    np.testing.assert_allclose(out.output, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out.weights.sum(-1), 1, rtol=1e-5)
    assert not np.any(np.asarray(out.weights)[:, ~mask])


def test_cross_attention_many_queries_equals_each(rng):
  _, keys, values = _inputs(9, rng)
  queries = rng.normal(size=(4, 2, 3)).astype(np.float32)
  together = _cross_attention(queries, keys, values)
  for i, query in enumerate(queries):
    one = _cross_attention(query, keys, values)
    np.testing.assert_allclose(together.output[i], one.output, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together.weights[i], one.weights, rtol=1e-5, atol=1e-6)


def test_cross_attention_masked_tokens_are_ignored(rng):
  query, keys, values = _inputs(33, rng)
  mask = cases.mask("random", 33, rng)
  other = np.where(mask[:, None, None], keys, 1e20).astype(np.float32)
  a = _cross_attention(query, keys, values, mask)
  b = _cross_attention(query, other, values, mask)
  np.testing.assert_array_equal(a.output, b.output)


def test_cross_attention_without_valid_token_is_zero_with_finite_gradients(rng):
  query, keys, values = _inputs(5, rng)

  def total(query, keys, values):
    mask = jnp.zeros(5, bool)
    return attention.cross_attention(query, keys, values, mask).output.sum()

  value_and_grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))
  value, grads = value_and_grad(query, keys, values)
  assert value == 0
  assert all(np.all(np.isfinite(g)) for g in grads)


def test_cross_attention_bfloat16_keeps_the_dtype_and_is_close(rng):
  query, keys, values = _inputs(33, rng)
  exact = _cross_attention(query, keys, values).output
  low = _cross_attention(*(jnp.asarray(x, jnp.bfloat16) for x in (query, keys, values)))
  assert low.output.dtype == jnp.bfloat16 and low.weights.dtype == jnp.float32
  np.testing.assert_allclose(low.output.astype(np.float32), exact, atol=0.05)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(keys=np.ones((2, 3), np.float32)), r"\[H, Dh\] or \[M, H, Dh\]"),
    (dict(values=np.ones((4, 2), np.float32)), r"\[N, H, Dh\], \[N, H, Dv\]"),
    (dict(mask=np.ones(3, bool)), r"mask must be \(4,\)"),
    (dict(values=np.ones((4, 2, 3), np.int32)), "values must be floating point"),
  ],
)
def test_cross_attention_bad_input_raises(change, message):
  x = np.ones((4, 2, 3), np.float32)
  with pytest.raises(ValueError, match=message):
    attention.cross_attention(**dict(query=x[0], keys=x, values=x) | change)


def test_split_heads_width_not_divisible_raises():
  with pytest.raises(ValueError, match="multiple of num_heads=4"):
    attention.split_heads(jnp.ones(6), 4)


def test_merge_heads_of_split_heads_is_the_input(rng):
  x = rng.normal(size=(5, 6)).astype(np.float32)
  split = attention.split_heads(x, 2)
  np.testing.assert_array_equal(split[:, 1], x[:, 3:])
  np.testing.assert_array_equal(attention.merge_heads(split), x)


def test_sibling_attention_random_mask_equals_attention_in_each_group(rng):
  keys, values, queries = rng.normal(size=(3, 5, 3, 2, 4)).astype(np.float32)
  mask = rng.random((5, 3)) < 0.6
  mask[0] = False
  out = jax.jit(attention.sibling_attention)(queries, keys, values, mask)
  for i in range(5):
    for j in range(3):
      expected = reference.attend(queries[i, j], keys[i, mask[i]], values[i, mask[i]])
      if not mask[i].any():
        expected = 0
      np.testing.assert_allclose(out[i, j], expected, rtol=1e-5, atol=1e-5)
