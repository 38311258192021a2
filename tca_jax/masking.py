"""Softmax and mean over the valid entries of an array.

`jax.nn.softmax(where=...)` gives NaN where nothing is valid. These functions return
finite values and finite gradients under any mask.
"""

from collections.abc import Callable
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tca_jax.checks import as_array
from tca_jax.checks import check_mask

__all__ = [
  "MASKED",
  "masked_log_softmax",
  "masked_mean",
  "masked_softmax",
  "merge_children",
]

# Replaces -inf in logits and log-probabilities. It is finite, so that a masked entry
# never becomes NaN in a gradient, and exp(MASKED - x) is still 0 for any x.
MASKED = -1e30


def masked_log_softmax(logits: jax.Array, mask: jax.Array, axis: int = -1) -> jax.Array:
  """Computes the log-softmax over valid entries; masked entries become `MASKED`.

  Args:
    logits: `[...]` floating point.
    mask: bool, broadcastable to logits. May be False everywhere.
    axis: the axis that is normalised.

  Returns:
    `[...]` with the dtype of logits, finite everywhere and with finite gradients.

  Raises:
    ValueError: if the mask is not bool.

  >>> masked_log_softmax(jnp.zeros(3), jnp.array([True, False, False])).tolist()[0]
  0.0
  """
  logits, mask = as_array("logits", logits), as_array("mask", mask)
  check_mask(mask)
  shifted = jnp.where(mask, logits, MASKED)
  peak = jax.lax.stop_gradient(jnp.max(shifted, axis=axis, keepdims=True))
  shifted = jnp.where(mask, shifted - peak, 0)
  total = jnp.sum(jnp.where(mask, jnp.exp(shifted), 0), axis, keepdims=True)
  log_total = jnp.log(jnp.where(total > 0, total, 1))
  return jnp.where(mask, shifted - log_total, MASKED)


def masked_softmax(logits: jax.Array, mask: jax.Array, axis: int = -1) -> jax.Array:
  """Computes the softmax over valid entries; masked entries become 0.

  Args:
    logits: `[...]` floating point.
    mask: bool, broadcastable to logits. May be False everywhere.
    axis: the axis that is normalised.

  Returns:
    `[...]` with the dtype of logits, finite everywhere and with finite gradients.

  Raises:
    ValueError: if the mask is not bool.

  >>> masked_softmax(jnp.zeros(3), jnp.array([True, True, False])).tolist()
  [0.5, 0.5, 0.0]
  """
  logits, mask = as_array("logits", logits), as_array("mask", mask)
  check_mask(mask)
  shifted = jnp.where(mask, logits, MASKED)
  peak = jax.lax.stop_gradient(jnp.max(shifted, axis=axis, keepdims=True))
  weights = jnp.where(mask, jnp.exp(jnp.where(mask, shifted - peak, 0)), 0)
  total = jnp.sum(weights, axis, keepdims=True)
  return weights / jnp.where(total > 0, total, 1)


def masked_mean(
  x: jax.Array,
  where: jax.Array | None = None,
  axis: int | Sequence[int] | None = None,
  keepdims: bool = False,
) -> jax.Array:
  """Computes the mean over the entries where `where` is True, or 0 without any.

  Args:
    x: `[...]`.
    where: bool, broadcastable to x; None means all entries. Entries of x where it is
      False are ignored, also if they are NaN.
    axis: the axes of the mean, as in `jnp.mean`; None means all axes.
    keepdims: whether the reduced axes stay, with size 1.

  Returns:
    The mean, without the reduced axes unless keepdims is True.

  Raises:
    ValueError: if where is not bool.

  >>> masked_mean(jnp.array([1.0, 3.0, 8.0]), jnp.array([True, True, False])).item()
  2.0
  """
  x = jnp.asarray(x)
  where = jnp.ones(x.shape, bool) if where is None else as_array("where", where)
  check_mask(where, name="where")
  where = jnp.broadcast_to(where, x.shape)
  zero = jnp.zeros((), x.dtype)
  total = jnp.sum(jnp.where(where, x, zero), axis=axis, keepdims=keepdims)
  count = jnp.sum(where, axis=axis, keepdims=keepdims)
  return total / jnp.maximum(count, 1).astype(total.dtype)


def merge_children(
  aggregate_fn: Callable[..., jax.Array],
  children: jax.Array,
  mask: jax.Array,
  *features: jax.Array,
) -> jax.Array:
  """Computes the values of nodes from those of their children (Sec. 3.1).

  Args:
    aggregate_fn: see `tree.aggregate`.
    children: `[..., b, D]`, 0 where masked.
    mask: `[..., b]` bool, True at valid children.
    *features: arguments of aggregate_fn after the mask.

  Returns:
    `[..., D]`. A node with one valid child has the value of that child; one without is
    0.

  >>> x = jnp.array([[[1.0], [0.0]], [[1.0], [3.0]]])
  >>> merge_children(lambda x, mask: jnp.max(x, axis=-2), x, x[..., 0] > 0).tolist()
  [[1.0], [3.0]]
  """
  summary = aggregate_fn(children, mask, *features)
  only_child = jnp.sum(children, axis=-2)
  several = jnp.sum(mask, axis=-1, keepdims=True) > 1
  return jnp.where(several, summary, only_child).astype(children.dtype)
