"""Calibration: coverage of intervals and the expected calibration error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.common import evaluate


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_coverage_is_what_scipys_intervals_hold(rng, level):
  mean, std = rng.normal(size=(2, 400, 3)).astype(np.float32)
  std = np.abs(std) + 0.1
  targets = (mean + 1.5 * std * rng.normal(size=mean.shape)).astype(np.float32)
  low, high = stats.norm.interval(level, mean, std)
  expected = ((targets >= low) & (targets <= high)).mean(-1)
  found = evaluate.interval_coverage(mean, std, targets, level)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert 0.05 < level - found.mean() < 0.3, "the intervals are too narrow"


def test_coverage_of_a_calibrated_model_is_the_level(rng):
  mean = rng.normal(size=(20_000, 1)).astype(np.float32)
  std = np.exp(rng.normal(size=mean.shape)).astype(np.float32)
  targets = mean + std * rng.normal(size=mean.shape).astype(np.float32)
  for level in (0.5, 0.9, 0.95):
    found = evaluate.interval_coverage(mean, std, targets, level).mean()
    assert abs(found - level) < 4 * (level * (1 - level) / 20_000) ** 0.5


def _gaps(logits, labels, where):
  """The slow twin."""
  gaps = np.zeros(15)
  for row, label, valid in zip(logits, labels, where, strict=True):
    p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    if valid:
      gaps[min(int(p.max() * 15), 14)] += (p.argmax() == label) - p.max()
  return gaps


def test_confidence_gaps_are_those_of_the_slow_twin(rng):
  logits = rng.normal(scale=3, size=(8, 40, 5)).astype(np.float32)
  logits[0, 0] = [100, 0, 0, 0, 0]  # a confidence of 1 is in the last bin
  labels, where = rng.integers(0, 5, (8, 40)), rng.random((8, 40)) < 0.7
  found = jax.jit(evaluate.confidence_gaps)(logits, labels, where)
  expected = _gaps(logits.reshape(-1, 5), labels.ravel(), where.ravel())
  np.testing.assert_allclose(found, expected, atol=1e-4)
  labels = np.where(where, labels, 99)  # what a padded query holds never matters
  again = evaluate.confidence_gaps(logits, labels, where)
  np.testing.assert_allclose(again, found, atol=1e-5)


def test_confidence_gaps_of_an_honest_coin_are_small(rng):
  logits = jnp.log(jnp.array([0.7, 0.3])) * jnp.ones((50_000, 1))
  labels = (rng.random(50_000) < 0.3).astype(np.int32)
  where = np.ones(50_000, bool)
  gaps = evaluate.confidence_gaps(logits, labels, where)
  assert np.abs(gaps).sum() / 50_000 < 0.01
  overconfident = evaluate.confidence_gaps(3 * logits, labels, where)
  assert np.abs(overconfident).sum() / 50_000 > 0.2
