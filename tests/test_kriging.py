"""Local kriging: against dense algebra, and what it can and cannot fit."""

import numpy as np
import pytest
from scipy import spatial

from experiments.common import kriging
from experiments.common import vecchia


def _dense(model, coords):
  """Ordinary kriging from all observations, by the textbook's linear system."""

  def covariance(a, b):
    r = np.sqrt(3) * np.linalg.norm(a[:, None] - b[None], axis=-1) / model.length
    return model.variance * (1 + r) * np.exp(-r)

  n = len(model.tree.data)
  system = np.ones((n + 1, n + 1))
  system[:n, :n] = covariance(model.tree.data, model.tree.data) + model.noise * np.eye(
    n
  )
  system[n, n] = 0
  right = np.ones((n + 1, len(coords)))
  right[:n] = covariance(model.tree.data, coords)
  weights = np.linalg.solve(system, right)
  mean = weights[:n].T @ model.values
  variance = model.variance + model.noise - np.sum(weights * right, axis=0)
  return mean, variance


def test_predict_equals_the_kriging_system(rng):
  coords, values = rng.random((30, 2)), rng.normal(size=30)  # fewer than the neighbours
  model = kriging.LocalKriging(
    spatial.KDTree(coords), values, length=0.3, variance=2.0, noise=0.1
  )
  queries = rng.random((7, 2))
  found = model.predict(queries)
  mean, variance = _dense(model, queries)
  np.testing.assert_allclose(found.mean[:, 0], mean, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found.std[:, 0], np.sqrt(variance), rtol=1e-5)


def test_predict_in_parts_equals_predict_at_once(rng, monkeypatch):
  coords, values = rng.random((100, 2)), rng.normal(size=100)
  model = kriging.LocalKriging(
    spatial.KDTree(coords), values, length=0.2, variance=1.0, noise=0.01
  )
  queries = rng.random((20, 2))
  expected = model.predict(queries)
  monkeypatch.setattr(kriging, "_CHUNK", 7)
  found = model.predict(queries)
  np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
  np.testing.assert_allclose(found.std, expected.std, rtol=1e-6)


@pytest.fixture
def quick_fit(monkeypatch):
  monkeypatch.setattr(kriging, "_NUM_FIT", 100)


def test_fit_predicts_a_smooth_function_with_calibrated_intervals(quick_fit, rng):
  coords, queries = rng.random((600, 2)), rng.random((500, 2))

  def truth(x):
    return np.sin(6 * x[:, 0]) * np.cos(5 * x[:, 1])

  noise = 0.05
  model = kriging.fit(coords, truth(coords) + noise * rng.normal(size=600))
  targets = (truth(queries) + noise * rng.normal(size=500))[:, None]
  found = model.predict(queries)
  assert np.sqrt(np.mean((np.asarray(found.mean) - targets) ** 2)) < 1.3 * noise
  inside = np.asarray(found.interval_coverage(targets.astype(np.float32), 0.9))
  assert inside.mean() == pytest.approx(0.9, abs=0.05)


def test_vecchia_process_agrees_with_local_kriging(rng):
  pytest.importorskip("gpboost", reason="an optional baseline of the benchmarks")
  coords, queries = rng.random((400, 2)), rng.random((50, 2))
  values = np.sin(6 * coords[:, 0]) + 0.1 * rng.normal(size=400)
  found = vecchia.fit(coords, values).predict(queries)
  truth = np.sin(6 * queries[:, :1])
  assert np.sqrt(np.mean((np.asarray(found.mean) - truth) ** 2)) < 0.1
  expected = kriging.fit(coords, values).predict(queries)
  np.testing.assert_allclose(found.mean, expected.mean, atol=0.1)


def test_fit_values_without_any_pattern_stays_finite(quick_fit, rng):
  """On a grid of few days and hours, any short length has the same likelihood."""
  coords = rng.permutation(np.stack(np.divmod(np.arange(600), 24), axis=-1) / [364, 23])
  model = kriging.fit(coords, rng.normal(size=600))
  found = model.predict(coords[:9] + 0.01)
  assert np.all(np.isfinite(found.mean)) and np.all(np.isfinite(found.std))
  assert model.length > 0
