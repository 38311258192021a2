"""Dot-product attention over masked tokens.

The core is unbatched: queries of H heads against the tokens of one context;
`jax.vmap` it over contexts at the edge. Logits and softmax are
float32 whatever the dtype of keys and values.
"""

import chex
import jax
import jax.numpy as jnp

from tca_jax import tree as tree_lib

# Stands for -inf in logits and log-probabilities: finite, so that no masked
# entry can turn into NaN in a gradient, yet exp(MASKED - x) is 0 for any x.
MASKED = -1e30


def masked_log_softmax(logits: jax.Array, mask: jax.Array, axis: int = -1) -> jax.Array:
  """Log-softmax over the entries where mask is True; `MASKED` elsewhere.

  Args:
    logits: `[...]` floating point.
    mask: bool, broadcastable to logits. May be False everywhere.
    axis: the axis that is normalised.

  Returns:
    `[...]` as logits, finite everywhere and with finite gradients.
  """
  shifted = jnp.where(mask, logits, MASKED)
  peak = jax.lax.stop_gradient(jnp.max(shifted, axis=axis, keepdims=True))
  shifted = jnp.where(mask, shifted - peak, 0)
  total = jnp.sum(jnp.where(mask, jnp.exp(shifted), 0), axis, keepdims=True)
  log_total = jnp.log(jnp.where(total > 0, total, 1))
  return jnp.where(mask, shifted - log_total, MASKED)


def masked_softmax(logits: jax.Array, mask: jax.Array, axis: int = -1) -> jax.Array:
  """Softmax over the entries where mask is True; zeros elsewhere.

  >>> masked_softmax(jnp.zeros(3), jnp.array([True, True, False])).tolist()
  [0.5, 0.5, 0.0]
  """
  shifted = jnp.where(mask, logits, MASKED)
  peak = jax.lax.stop_gradient(jnp.max(shifted, axis=axis, keepdims=True))
  weights = jnp.where(mask, jnp.exp(jnp.where(mask, shifted - peak, 0)), 0)
  total = jnp.sum(weights, axis, keepdims=True)
  return weights / jnp.where(total > 0, total, 1)


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
  """`[..., H * Dh] -> [..., H, Dh]`; ValueError if H does not divide."""
  if x.shape[-1] % num_heads:
    raise ValueError(
      f"the width must be a multiple of num_heads={num_heads}, got {x.shape}"
    )
  return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)


def merge_heads(x: jax.Array) -> jax.Array:
  """`[..., H, Dh] -> [..., H * Dh]`."""
  return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def head_logits(query: jax.Array, keys: jax.Array) -> jax.Array:
  """Scaled dot products, `q . k / sqrt(Dh)`, in float32.

  Args:
    query: `[H, Dh]`.
    keys: `[N, H, Dh]`.

  Returns:
    `[H, N]` float32.
  """
  return jnp.einsum(
    "hd,nhd->hn", query, keys, preferred_element_type=jnp.float32
  ) / jnp.sqrt(jnp.float32(query.shape[-1]))


@chex.dataclass(frozen=True)
class CrossAttentionOutput:
  """What `cross_attention` returns.

  Attributes:
    output: `[M, H, Dv]`, the attended values; zeros if no token is valid.
    weights: `[M, H, N]` float32, the attention weights, 0 at masked tokens.
  """

  output: jax.Array
  weights: jax.Array


def cross_attention(
  query: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  mask: jax.Array | None = None,
) -> CrossAttentionOutput:
  """Attention over all N tokens of a context, by one query or by M of them.

  Args:
    query: `[H, Dh]`, or `[M, H, Dh]` for one matrix product of all M.
    keys: `[N, H, Dh]`.
    values: `[N, H, Dv]`.
    mask: `[N]` bool, True at valid tokens; None means all. A masked token's
      keys and values must be finite; apart from that they never matter.

  Returns:
    A `CrossAttentionOutput`, without the leading M if the query has none;
    zeros where no token is valid.

  Raises:
    ValueError: if the shapes do not fit together, or an array is not floating point.

  >>> out = cross_attention(jnp.ones((1, 2)), jnp.ones((4, 1, 2)), jnp.ones((4, 1, 2)))
  >>> out.output.tolist(), out.weights.tolist()
  ([[1.0, 1.0]], [[0.25, 0.25, 0.25, 0.25]])
  """
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
  tree_lib.check_floating(query=query, keys=keys, values=values)
  if mask is None:
    mask = jnp.ones(keys.shape[0], bool)
  if mask.shape != keys.shape[:1]:
    raise ValueError(f"mask must be {keys.shape[:1]}, got {mask.shape}")
  if query.ndim == 2:
    out = cross_attention(query[None], keys, values, mask)
    return CrossAttentionOutput(output=out.output[0], weights=out.weights[0])
  # Heads lead, so that each is one plain matrix product; weights are normalised
  # behind the second product, where they are fewer.
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
  """Self-attention within many small groups, such as the children of a node.

  A few elementwise products of whole arrays rather than many tiny matrices.

  Args:
    queries: `[..., b, H, Dh]`.
    keys: `[..., b, H, Dh]`.
    values: `[..., b, H, Dv]`.
    mask: `[..., b]` bool, True at valid members.

  Returns:
    `[..., b, H, Dv]`.
  """
  scale = jnp.sqrt(jnp.float32(queries.shape[-1]))
  members = range(queries.shape[-3])
  split_keys = [keys[..., i, :, :] for i in members]
  split_values = [values[..., i, :, :] for i in members]
  outputs = []
  for i in members:
    query = queries[..., i, :, :]
    logits = [jnp.sum(query * key, axis=-1, dtype=jnp.float32) for key in split_keys]
    logits = jnp.stack(logits, axis=-1) / scale  # [..., H, b]
    weights = masked_softmax(logits, mask[..., None, :]).astype(values.dtype)
    weights = [weights[..., j, None] for j in members]
    outputs.append(sum(w * v for w, v in zip(weights, split_values, strict=True)))
  return jnp.stack(outputs, axis=-3)
