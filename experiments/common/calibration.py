"""Calibration of a classification: confidence against correctness."""

import jax
import jax.numpy as jnp
import numpy as np

from tca_jax import objectives

_BINS = 15


def confidence_gaps(
  logits: jax.Array, labels: jax.Array, where: jax.Array
) -> jax.Array:
  """Correctness minus confidence of predictions, summed in bins of the confidence.

  Args:
    logits: `[..., K]`.
    labels: `[...]` int, in [0, K) where valid.
    where: `[...]` bool, False at padded queries.

  Returns:
    `[15]`, for bins of equal width.
  """
  confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
  correct = objectives.accuracy(logits, jnp.where(where, labels, 0))
  gap = jnp.where(where, correct - confidence, 0)
  bins = jnp.minimum(jnp.int32(confidence * _BINS), _BINS - 1)
  return jnp.zeros(_BINS).at[bins.ravel()].add(gap.ravel())


def calibration_error(gaps: np.ndarray, num_predictions: float) -> float:
  """Expected calibration error: mean size of the gaps, over all predictions.

  Args:
    gaps: `[15]`, the sum of `confidence_gaps` over all predictions.
    num_predictions: number of predictions.
  """
  return float(np.sum(np.abs(gaps)) / num_predictions)
