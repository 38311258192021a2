"""Covariance functions, and the choice of one by the values of a context."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tca_jax import covariance_fit
from tca_jax.covariance import Covariance
from tca_jax.covariance import LENGTHS
from tests import reference

_NOISE = 0.01
_log_likelihoods = jax.jit(covariance_fit.log_likelihoods)


def test_covariances_of_averages_equal_numerical_integrals(rng):
  # The mean over normal distributions, by Gauss-Hermite quadrature on one axis.
  changes = rng.normal(size=len(LENGTHS) + 2)
  covariance = Covariance.default().changed(jnp.asarray(changes, jnp.float32))
  points, weights = np.polynomial.hermite_e.hermegauss(40)
  weights /= weights.sum()
  for distance, first, second in ((0.0, 0.3, 0.0), (1.2, 0.5, 0.7), (4.0, 2.0, 0.1)):
    gap = distance + first * points[:, None] - second * points[None]
    one_by_one = covariance.between(
      jnp.asarray(gap.ravel() ** 2, jnp.float32), jnp.zeros(gap.size, jnp.float32), 1
    )
    expected = np.sum(np.outer(weights, weights).ravel() * np.asarray(one_by_one))
    found = covariance.between(
      *(jnp.array([x], jnp.float32) for x in (distance**2, first**2 + second**2)), 1
    )
    np.testing.assert_allclose(found, [expected], rtol=1e-4)


def test_changes_multiply_the_variances(rng):
  covariance = Covariance.default()
  factors = rng.uniform(0.1, 10, size=(3, len(LENGTHS) + 2))
  # The change is limited, by little where it is small.
  changes = 8 * np.arctanh(np.log(factors) / 8)
  found = covariance.changed(jnp.asarray(changes, jnp.float32))
  np.testing.assert_allclose(
    found.variances, np.asarray(covariance.variances) * factors[:, :-2], rtol=1e-4
  )
  np.testing.assert_allclose(found.constant, factors[:, -2], rtol=1e-4)
  np.testing.assert_allclose(
    found.noise, np.asarray(covariance.noise) * factors[:, -1], rtol=1e-4
  )
  most = covariance.changed(jnp.full(len(LENGTHS) + 2, 1e6))
  np.testing.assert_allclose(most.constant, np.exp(8), rtol=1e-4)


def _candidate(number):
  """One candidate, and its value at distances, in float64."""
  weights = jax.nn.one_hot(number, covariance_fit.NUM_CANDIDATES, dtype=jnp.float32)
  covariance = covariance_fit.average(weights, jnp.float32(_NOISE))
  lengths, variances = (
    np.asarray(x, np.float64) for x in (covariance.lengths, covariance.variances)
  )
  return covariance, lambda d: np.exp(-0.5 * (d[..., None] / lengths) ** 2) @ variances


def _candidates():
  """Kind, length and scale of each candidate."""
  shape = (2, len(covariance_fit._CANDIDATE_LENGTHS), len(covariance_fit._SCALES))
  assert np.prod(shape) == covariance_fit.NUM_CANDIDATES
  for number in range(covariance_fit.NUM_CANDIDATES):
    kind, length, scale = np.unravel_index(number, shape)
    yield (
      number,
      kind,
      covariance_fit._CANDIDATE_LENGTHS[length],
      covariance_fit._SCALES[scale],
    )


def test_candidates_are_smooth_and_rough_functions():
  for number, rough, length, scale in _candidates():
    distance = np.linspace(0, 4 * length, 50)
    x = distance / length
    smooth = np.exp(-(x**2) / 2)
    matern = (1 + np.sqrt(3) * x) * np.exp(-np.sqrt(3) * x)
    expected = scale**2 * (matern if rough else smooth)
    # The shortest of the squared exponentials of the shortest rough ones are missing.
    shortest = length == covariance_fit._CANDIDATE_LENGTHS[0]
    tolerance = (0.06 if shortest else 0.015) if rough else 1e-5
    found = _candidate(number)[1](distance)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale**2)


def test_average_weighs_the_candidates(rng):
  weights = rng.dirichlet(np.ones(covariance_fit.NUM_CANDIDATES), 2).astype(np.float32)
  found = covariance_fit.average(jnp.asarray(weights), jnp.float32(_NOISE))
  each = [_candidate(i)[0].variances for i in range(covariance_fit.NUM_CANDIDATES)]
  np.testing.assert_allclose(found.variances, weights @ np.stack(each), rtol=1e-5)
  assert found.constant.shape == found.noise.shape == (2,)


def _tokens(rng, size, axes=1, channels=1, share=1.0):
  location = rng.uniform(-2, 2, (size, axes))
  location = location[np.argsort(location[:, 0])]
  value = np.sin(3 * location[:, :1]) + 0.1 * rng.normal(size=(size, channels))
  valid = rng.random(size) < share
  return tuple(jnp.asarray(x) for x in (np.float32(location), np.float32(value), valid))


def _expected(location, value, valid):
  location, value = (
    np.asarray(x, np.float64)[np.asarray(valid)] for x in (location, value)
  )
  return [
    reference.vecchia(location, value, _candidate(i)[1], _NOISE, covariance_fit._WINDOW)
    for i in range(covariance_fit.NUM_CANDIDATES)
  ]


@pytest.mark.parametrize("size", [1, 3, 12])
@pytest.mark.parametrize("axes, channels", [(1, 1), (2, 3)])
def test_log_likelihoods_equal_the_reference(size, axes, channels, rng):
  for share in (1.0, 0.6):
    tokens = _tokens(rng, size, axes, channels, share)
    found = _log_likelihoods(*tokens, jnp.float32(_NOISE))
    np.testing.assert_allclose(found, _expected(*tokens), rtol=1e-4, atol=1e-3)


def test_log_likelihoods_of_no_token_are_0(rng):
  tokens = _tokens(rng, 5, share=0.0)
  assert not _log_likelihoods(*tokens, jnp.float32(_NOISE)).any()


def test_log_likelihoods_of_a_large_context_leave_tokens_out(rng, monkeypatch):
  tokens = _tokens(rng, 31, share=0.8)
  monkeypatch.setattr(covariance_fit, "_MOST_TOKENS", 11)
  found = covariance_fit.log_likelihoods(*tokens, jnp.float32(_NOISE))
  location, value, valid = tokens
  rest = location[valid][::3], value[valid][::3]
  expected = _expected(*rest, jnp.ones(len(rest[0]), bool))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("cut", [0, 2, 9, 20])
def test_log_likelihoods_of_two_parts_add_up(cut, rng):
  tokens = _tokens(rng, 20, share=0.7)
  first, second = (
    tuple(x[part] for x in tokens) for part in (slice(cut), slice(cut, None))
  )
  noise = jnp.float32(_NOISE)
  total = 0
  if cut:
    total = covariance_fit.log_likelihoods(*first, noise)
  if cut < 20:
    before = covariance_fit.last_tokens(*first)
    total += covariance_fit.log_likelihoods(*second, noise, before)
  np.testing.assert_allclose(
    total, _log_likelihoods(*tokens, noise), rtol=1e-5, atol=1e-3
  )


@pytest.mark.parametrize("number", [20, 62])
def test_the_fit_finds_the_function_that_the_values_are_drawn_from(number, rng):
  size = 200
  location = np.sort(rng.uniform(-10, 10, size))
  among = _candidate(number)[1](np.abs(location[:, None] - location[None]))
  factor = np.linalg.cholesky(among + 1e-4 * np.eye(size))
  value = factor @ rng.normal(size=size)
  tokens = (jnp.asarray(x, jnp.float32)[:, None] for x in (location, value))
  found = _log_likelihoods(*tokens, jnp.ones(size, bool), jnp.float32(1e-4))
  _, rough, length, scale = list(_candidates())[number]
  _, best_rough, best_length, best_scale = list(_candidates())[np.argmax(found)]
  assert best_rough == rough
  assert 0.6 < best_length / length < 1.7
  assert 0.5 < best_scale / scale < 2


def test_gradients_by_the_noise_are_finite(rng):
  location, value, valid = _tokens(rng, 12)
  # Two values at one location contradict each other; the scale is far off.
  location = location.at[5].set(location[4])
  value = 1e3 * value.at[5].set(-value[4])

  def total(log_noise, value):
    return covariance_fit.log_likelihoods(location, value, valid, jnp.exp(log_noise))

  jacobian = jax.jit(jax.jacfwd(total, (0, 1)))
  for log_noise in (-20.0, -6.0, 5.0):
    chex.assert_tree_all_finite(jacobian(log_noise, value))
    chex.assert_tree_all_finite(total(log_noise, value))
