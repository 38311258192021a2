"""Heads against their formulas, and distributions against SciPy."""

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats

import tca_jax


def _gaussian_and_targets(rng):
  mean, targets = rng.normal(size=(2, 4, 3)).astype(np.float32)
  std = np.exp(rng.normal(size=(4, 3))).astype(np.float32)
  return tca_jax.Gaussian(mean=mean, std=std), targets


def test_gaussian_log_prob_equals_scipy(rng):
  normal, targets = _gaussian_and_targets(rng)
  expected = scipy.stats.norm.logpdf(targets, normal.mean, normal.std).sum(-1)
  np.testing.assert_allclose(normal.log_prob(targets), expected, rtol=1e-5)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_gaussian_interval_coverage_equals_scipy(level, rng):
  normal, targets = _gaussian_and_targets(rng)
  low, high = scipy.stats.norm.interval(level, normal.mean, normal.std)
  expected = ((low <= targets) & (targets <= high)).mean(-1)
  coverage = normal.interval_coverage(targets, level)
  np.testing.assert_allclose(coverage, expected, rtol=1e-6)
  assert 0 < np.mean(coverage) < 1


def test_gaussian_interval_coverage_calibrated_targets_equals_the_level(rng):
  n = 20_000
  normal = tca_jax.Gaussian(mean=np.zeros((n, 1), "f"), std=np.full((n, 1), 2, "f"))
  targets = (2 * rng.normal(size=(n, 1))).astype(np.float32)
  mean = np.mean(normal.interval_coverage(targets, 0.9))
  assert abs(mean - 0.9) < 5 * np.sqrt(0.9 * 0.1 / n)


def test_categorical_log_prob_and_accuracy_equal_scipy(rng):
  logits = rng.normal(size=(4, 3)).astype(np.float32)
  labels = np.array([0, 2, 1, 1], np.int32)
  categorical = tca_jax.Categorical(logits=logits)
  probabilities = scipy.special.softmax(logits.astype(np.float64), axis=-1)
  one_hot = np.eye(3, dtype=int)[labels]
  expected = scipy.stats.multinomial.logpmf(one_hot, 1, probabilities)
  np.testing.assert_allclose(categorical.log_prob(labels), expected, rtol=1e-5)
  hits = categorical.accuracy(labels)
  np.testing.assert_array_equal(hits, logits.argmax(-1) == labels)
  assert hits.dtype == np.float32


def test_gaussian_head_std_is_bounded_or_exponential(rng):
  x = 100 * rng.normal(size=(2, 5, 16)).astype(np.float32)
  bounded = tca_jax.GaussianHead(1)
  params = bounded.init(jax.random.key(0), x)
  assert np.asarray(bounded.apply(params, x).std).min() >= 0.05
  free = tca_jax.GaussianHead(1, min_std=None).apply(params, x)
  raw = np.log(free.std)
  np.testing.assert_allclose(
    bounded.apply(params, x).std, 0.05 + 0.95 * np.logaddexp(0, raw), rtol=1e-4
  )


def test_classification_head_returns_float32_logits(rng):
  x = rng.normal(size=(2, 16)).astype(np.float32)
  head = tca_jax.ClassificationHead(5, dtype="bfloat16")
  logits = head.apply(head.init(jax.random.key(0), x), x)
  assert logits.shape == (2, 5) and logits.dtype == np.float32


def _mixture_and_targets(rng):
  logits, means, raw = rng.normal(size=(3, 4, 2, 3)).astype(np.float32)
  mixture = tca_jax.GaussianMixture(
    log_weights=jax.nn.log_softmax(logits), means=means, stds=np.exp(raw)
  )
  return mixture, rng.normal(size=(4, 2)).astype(np.float32)


def test_mixture_equals_scipy(rng):
  mixture, targets = _mixture_and_targets(rng)
  weights = np.exp(np.asarray(mixture.log_weights, np.float64))
  parts = scipy.stats.norm(mixture.means, mixture.stds)
  density = (weights * parts.pdf(targets[..., None])).sum(-1)
  np.testing.assert_allclose(
    mixture.log_prob(targets), np.log(density).sum(-1), rtol=1e-4
  )
  mean = (weights * parts.mean()).sum(-1)
  variance = (weights * (parts.var() + (parts.mean() - mean[..., None]) ** 2)).sum(-1)
  np.testing.assert_allclose(mixture.mean, mean, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(mixture.std, np.sqrt(variance), rtol=1e-4)
  below = (weights * parts.cdf(targets[..., None])).sum(-1)
  for level in (0.5, 0.9):
    inside = np.abs(below - 0.5) <= level / 2
    np.testing.assert_allclose(
      mixture.interval_coverage(targets, level), inside.mean(-1)
    )


def test_mixture_of_equal_parts_is_the_gaussian(rng):
  normal, targets = _gaussian_and_targets(rng)
  mixture = tca_jax.GaussianMixture(
    log_weights=np.log(np.full((4, 3, 2), 0.5, np.float32)),
    means=np.repeat(normal.mean[..., None], 2, -1),
    stds=np.repeat(normal.std[..., None], 2, -1),
  )
  np.testing.assert_allclose(
    mixture.log_prob(targets), normal.log_prob(targets), rtol=1e-5
  )
  for level in (0.5, 0.9):
    np.testing.assert_allclose(
      mixture.interval_coverage(targets, level),
      normal.interval_coverage(targets, level),
    )


@pytest.mark.parametrize("make", [_gaussian_and_targets, _mixture_and_targets])
@pytest.mark.parametrize("level", [0.05, 0.5, 0.95])
def test_quantile_has_the_level_below_it(make, level, rng):
  predicted, _ = make(rng)
  found = predicted.quantile(level)
  if make is _gaussian_and_targets:
    below = scipy.stats.norm.cdf(found, predicted.mean, predicted.std)
  else:
    below = scipy.stats.norm.cdf(found[..., None], predicted.means, predicted.stds)
    below = np.sum(np.exp(predicted.log_weights) * below, axis=-1)
  np.testing.assert_allclose(below, np.full(found.shape, level), atol=1e-5)


@pytest.mark.parametrize("make", [_gaussian_and_targets, _mixture_and_targets])
def test_in_units_is_a_change_of_variables(make, rng):
  predicted, targets = make(rng)
  one = np.ones_like(targets)
  units = tca_jax.modules.Units(origin=7 * one, scale=0.5 * one, std_scale=0.5 * one)
  there = predicted.in_units(units)
  moved = 7 + 0.5 * targets
  jacobian = targets.shape[-1] * np.log(0.5)
  np.testing.assert_allclose(
    there.log_prob(moved), predicted.log_prob(targets) - jacobian, rtol=1e-4
  )
  np.testing.assert_allclose(there.mean, 7 + 0.5 * predicted.mean, rtol=1e-5)
  np.testing.assert_allclose(there.std, 0.5 * predicted.std, rtol=1e-4)


def test_mixture_head_weights_sum_to_one_and_stds_have_a_bound(rng):
  head = tca_jax.MixtureHead(num_outputs=2, num_components=3, min_std=0.1)
  x = 30 * rng.normal(size=(5, 8)).astype(np.float32)
  out = head.apply(head.init(jax.random.key(0), x), x)
  assert out.means.shape == (5, 2, 3) and out.mean.shape == (5, 2)
  np.testing.assert_allclose(np.exp(out.log_weights).sum(-1), 1, rtol=1e-5)
  assert np.asarray(out.stds).min() >= 0.1
