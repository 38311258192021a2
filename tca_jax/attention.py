"""Dot-product attention over masked tokens.

The functions take one context: queries with H heads against the tokens of the
context. Batch them with `jax.vmap`. Logits and softmax are float32 whatever the dtype
of keys and values.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from tca_jax.checks import as_array
from tca_jax.checks import check_floating
from tca_jax.checks import check_mask
from tca_jax.masking import MASKED
from tca_jax.masking import masked_log_softmax  # noqa: F401
from tca_jax.masking import masked_softmax  # noqa: F401
from tca_jax.masking import softmax_of_members

__all__ = [
  "CrossAttentionOutput",
  "cross_attention",
  "merge_heads",
  "sibling_attention",
  "split_heads",
]


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
  """Splits the last axis into heads.

  Args:
    x: `[..., H * Dh]`.
    num_heads: H.

  Returns:
    `[..., H, Dh]`.

  Raises:
    ValueError: if the width is not a multiple of num_heads.

  >>> split_heads(jnp.ones((5, 6)), 2).shape
  (5, 2, 3)
  """
  if x.shape[-1] % num_heads:
    raise ValueError(
      f"the width must be a multiple of num_heads={num_heads}, got {x.shape}"
    )
  return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)


def merge_heads(x: jax.Array) -> jax.Array:
  """Joins the heads into one axis; inverse of `split_heads`.

  Args:
    x: `[..., H, Dh]`.

  Returns:
    `[..., H * Dh]`.

  >>> merge_heads(jnp.ones((5, 2, 3))).shape
  (5, 6)
  """
  return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


@chex.dataclass(frozen=True)
class CrossAttentionOutput:
  """The result of `cross_attention`.

  If the query has no axis M, these arrays have none.

  Attributes:
    output: `[M, H, Dv]`, the attended values; 0 if no token is valid.
    weights: `[M, H, N]` float32, the attention weights; 0 at masked tokens.
  """

  output: jax.Array
  weights: jax.Array


def cross_attention(
  query: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  mask: jax.Array | None = None,
) -> CrossAttentionOutput:
  """Computes attention of one query, or of M queries, over all N tokens.

  Args:
    query: `[H, Dh]` or `[M, H, Dh]`; M queries share one matrix product per head.
    keys: `[N, H, Dh]`.
    values: `[N, H, Dv]`.
    mask: `[N]` bool, True at valid tokens; None means that all are valid. Keys and
      values of masked tokens are ignored but must be finite.

  Returns:
    A `CrossAttentionOutput`.

  Raises:
    ValueError: if the shapes do not fit together, if an array is not floating point, or
      if the mask is not bool.

  >>> out = cross_attention(jnp.ones((1, 2)), jnp.ones((4, 1, 2)), jnp.ones((4, 1, 2)))
  >>> out.output.tolist(), out.weights.tolist()
  ([[1.0, 1.0]], [[0.25, 0.25, 0.25, 0.25]])
  """
  query, keys, values = (
    as_array(name, x)
    for name, x in (("query", query), ("keys", keys), ("values", values))
  )
  if (
    query.ndim not in (2, 3)
    or keys.ndim != 3
    or values.ndim != 3
    or keys.shape[1:] != query.shape[-2:]
    or values.shape[:2] != keys.shape[:2]
  ):
    raise ValueError(
      "query, keys, values must be [H, Dh] or [M, H, Dh], [N, H, Dh], [N, H, Dv],"
      f" got {query.shape}, {keys.shape}, {values.shape}"
    )
  check_floating(query=query, keys=keys, values=values)
  mask = jnp.ones(keys.shape[0], bool) if mask is None else as_array("mask", mask)
  check_mask(mask, keys.shape[:1])
  if query.ndim == 2:
    out = cross_attention(query[None], keys, values, mask)
    return CrossAttentionOutput(output=out.output[0], weights=out.weights[0])
  # With heads as the leading axis, each head is one plain matrix product. Weights are
  # normalised after the second product, on the smaller array.
  scale = jnp.sqrt(jnp.float32(query.shape[-1])).astype(query.dtype)
  queries = jnp.swapaxes(query / scale, 0, 1)
  logits = jnp.matmul(
    queries,
    jnp.transpose(keys, (1, 2, 0)),
    preferred_element_type=jnp.float32,
  )
  logits = jnp.where(mask, logits, MASKED)
  peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  weights = jnp.where(mask, jnp.exp(logits - peak), 0)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  total = jnp.where(total > 0, total, 1)
  output = jnp.matmul(
    weights.astype(values.dtype),
    jnp.swapaxes(values, 0, 1),
    preferred_element_type=jnp.float32,
  )
  return CrossAttentionOutput(
    output=jnp.swapaxes(output / total, 0, 1).astype(values.dtype),
    weights=jnp.swapaxes(weights / total, 0, 1),
  )


def sibling_attention(
  queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array
) -> jax.Array:
  """Computes self-attention in many small groups, such as the children of a node.

  It uses elementwise products of whole arrays, which are faster than many products of
  tiny matrices.

  Args:
    queries: `[..., b, H, Dh]`.
    keys: `[..., b, H, Dh]`.
    values: `[..., b, H, Dv]`.
    mask: `[..., b]` bool, True at valid members.

  Returns:
    `[..., b, H, Dv]`; 0 in groups without a valid member.

  >>> x = jnp.ones((4, 2, 1, 3))
  >>> sibling_attention(x, x, x, jnp.ones((4, 2), bool)).shape
  (4, 2, 1, 3)
  """
  members = range(queries.shape[-3])
  split_keys = [keys[..., i, :, :] for i in members]
  split_values = [values[..., i, :, :] for i in members]
  split_mask = [mask[..., i, None] for i in members]
  # Softmax does not change if a number is subtracted from all logits of a query: here
  # the logit of the first member, which then needs no product.
  offsets = [key - split_keys[0] for key in split_keys[1:]]
  scale = jnp.sqrt(jnp.float32(queries.shape[-1])).astype(queries.dtype)
  outputs = []
  for i in members:
    query = queries[..., i, :, :] / scale
    logits = [jnp.sum(query * offset, axis=-1, dtype=jnp.float32) for offset in offsets]
    logits = [jnp.zeros(query.shape[:-1], jnp.float32), *logits]
    weights = softmax_of_members(logits, split_mask)
    weighted = [
      weight[..., None].astype(values.dtype) * value
      for weight, value in zip(weights, split_values, strict=True)
    ]
    outputs.append(functools.reduce(jnp.add, weighted))
  return jnp.stack(outputs, axis=-3)
