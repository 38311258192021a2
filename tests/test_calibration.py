"""Expected calibration error."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import calibration


def _gaps(logits, labels, where):
  """NumPy reference."""
  gaps = np.zeros(15)
  for row, label, valid in zip(logits, labels, where, strict=True):
    p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    if valid:
      gaps[min(int(p.max() * 15), 14)] += (p.argmax() == label) - p.max()
  return gaps


def test_confidence_gaps_equal_the_reference(rng):
  logits = rng.normal(scale=3, size=(8, 40, 5)).astype(np.float32)
  logits[0, 0] = [100, 0, 0, 0, 0]  # a confidence of 1 belongs to the last bin
  labels, where = rng.integers(0, 5, (8, 40)), rng.random((8, 40)) < 0.7
  found = jax.jit(calibration.confidence_gaps)(logits, labels, where)
  expected = _gaps(logits.reshape(-1, 5), labels.ravel(), where.ravel())
  np.testing.assert_allclose(found, expected, atol=1e-4)
  labels = np.where(where, labels, 99)  # labels of padded queries have no effect
  again = calibration.confidence_gaps(logits, labels, where)
  np.testing.assert_allclose(again, found, atol=1e-5)


def test_calibration_error_of_a_calibrated_model_is_small(rng):
  logits = jnp.log(jnp.array([0.7, 0.3])) * jnp.ones((50_000, 1))
  labels = (rng.random(50_000) < 0.3).astype(np.int32)
  where = np.ones(50_000, bool)
  gaps = calibration.confidence_gaps(logits, labels, where)
  assert calibration.calibration_error(np.asarray(gaps), 50_000) < 0.01
  overconfident = calibration.confidence_gaps(3 * logits, labels, where)
  assert calibration.calibration_error(np.asarray(overconfident), 50_000) > 0.2
