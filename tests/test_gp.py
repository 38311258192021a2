"""Gaussian processes: the sizes and functions drawn, and the exact posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import gaussian_process
from sklearn.gaussian_process import kernels

from experiments.data import gp

_jitted_sample = jax.jit(gp.sample, static_argnums=(1, 2, 3, 4))


def _draw(size, shape=gp.SHAPES[1], kernel="rbf", sizes="example"):
  return _jitted_sample(jax.random.key(0), size, shape, kernel, sizes)


def _sklearn(kernel, process, i):
  length_scale, scale = float(process.length_scale[i]), float(process.scale[i])
  if kernel == "rbf":
    return scale**2 * kernels.RBF(length_scale)
  return scale**2 * kernels.Matern(length_scale, nu=2.5)


def test_draw_shape_has_the_published_distribution():
  drawn = [gp.draw_shape((3, step)) for step in range(400)]
  assert set(drawn) == set(gp.SHAPES)
  shares = [drawn.count(shape) / 400 for shape in gp.SHAPES]
  np.testing.assert_allclose(shares, np.array([14, 16, 14]) / 44, atol=0.12)
  for shape in gp.SHAPES:
    batch, _ = jax.eval_shape(lambda s=shape: _draw(4, s))
    assert (batch.mask.shape, batch.query_mask.shape) == ((4, shape[0]), (4, shape[1]))


@pytest.mark.parametrize("shape", gp.SHAPES)
@pytest.mark.parametrize("sizes", gp.SIZES)
def test_sample_sizes_have_the_published_limits(sizes, shape):
  batch, _ = _draw(2000, shape, sizes=sizes)
  num_context = np.asarray(batch.mask.sum(1))
  num_targets = np.asarray(batch.query_mask.sum(1))
  if sizes == "batch":
    assert len(set(num_context)) == len(set(num_targets)) == 1
    assert num_targets[0] >= 3 and num_context[0] + num_targets[0] < 50
  else:
    assert num_context.min() == gp.smallest_context(shape)
    assert num_context.max() == shape[0]
    assert np.all(num_context + num_targets == 49)


def test_sample_published_numbers_of_targets_are_uniform():
  shares = []
  for i in range(300):
    batch, _ = _jitted_sample(jax.random.key(i), 1, gp.SHAPES[1], "rbf", "batch")
    num_context, num_targets = (
      int(np.sum(mask)) for mask in jax.device_get((batch.mask, batch.query_mask))
    )
    assert 3 <= num_targets < 50 - num_context
    shares.append((num_targets - 3 + 0.5) / (50 - num_context - 3))
  assert abs(np.mean(shares) - 0.5) < 5 * 0.29 / 300**0.5


def test_sample_points_are_sorted_uniform_and_distinct():
  batch, process = jax.device_get(_draw(2000))
  for coords, mask in (
    (batch.coords, batch.mask),
    (batch.query_coords, batch.query_mask),
  ):
    x = coords[..., 0]
    assert np.all(np.diff(x)[mask[:, 1:]] >= 0)
    drawn = x[mask]
    assert -2 <= drawn.min() < -1.99 and 1.99 < drawn.max() < 2
    assert abs(drawn.mean()) < 0.03 and abs(drawn.std() - 4 / 12**0.5) < 0.02
  for drawn, low, high in ((process.length_scale, 0.1, 0.6), (process.scale, 0.1, 1)):
    assert low <= drawn.min() and drawn.max() < high
    assert abs(float(drawn.mean()) - (low + high) / 2) < 0.03
  for i in range(50):
    context = set(batch.coords[i, :, 0][batch.mask[i]].tolist())
    targets = batch.query_coords[i, :, 0][batch.query_mask[i]]
    assert not context & set(targets.tolist()), "a target is in the context"


@pytest.mark.parametrize("kernel", gp.KERNELS)
def test_sample_values_have_the_covariance_of_the_kernel(kernel):
  """Values whitened by the covariance of scikit-learn are standard normal."""
  batch, process = jax.device_get(_draw(300, gp.SHAPES[0], kernel))
  whitened = []
  for i in range(300):
    x = np.concatenate([batch.coords[i], batch.query_coords[i]]).astype(np.float64)
    y = np.concatenate([batch.values[i], batch.targets[i]]).astype(np.float64)
    covariance = _sklearn(kernel, process, i)(x) + gp.NOISE**2 * np.eye(len(x))
    whitened.append(np.linalg.solve(np.linalg.cholesky(covariance), y[:, 0]))
  whitened = np.concatenate(whitened)
  assert abs(whitened.mean()) < 5 / len(whitened) ** 0.5
  assert abs(whitened.std() - 1) < 0.02


@pytest.mark.parametrize("kernel", gp.KERNELS)
def test_predictive_matches_scikit_learn(kernel):
  batch, process = jax.device_get(_draw(20, kernel=kernel))
  mean, std = gp.predictive(batch, process, kernel)
  assert mean.dtype == np.float64
  for i in range(20):
    model = gaussian_process.GaussianProcessRegressor(
      _sklearn(kernel, process, i), alpha=gp.NOISE**2, optimizer=None
    )
    valid = batch.mask[i]
    x, y = batch.coords[i][valid], batch.values[i][valid]
    model.fit(x.astype(np.float64), y.astype(np.float64)[:, 0])
    expected, spread = model.predict(
      batch.query_coords[i].astype(np.float64), return_std=True
    )
    np.testing.assert_allclose(mean[i], expected, atol=1e-6)
    np.testing.assert_allclose(std[i] ** 2, spread**2 + gp.NOISE**2, atol=1e-6)


def test_sample_unknown_option_raises():
  with pytest.raises(ValueError, match=r"kernel must be one of .*got 'cosine'"):
    _draw(2, kernel="cosine")
  with pytest.raises(ValueError, match=r"sizes must be one of .*got 'all'"):
    _draw(2, sizes="all")


def test_predictive_changed_mean_or_std_lowers_the_log_likelihood():
  batch, process = _draw(2000)
  mean, std = gp.predictive(batch, process, "rbf")
  targets = np.asarray(batch.targets[..., 0], np.float64)
  where = np.asarray(batch.query_mask)

  def score(mean, std):
    density = -0.5 * ((targets - mean) / std) ** 2 - np.log(std)
    return density[where].mean()

  best = score(mean, std)
  for other in ((mean + 0.1 * std, std), (mean, 1.1 * std), (mean, 0.9 * std)):
    assert score(*other) < best
  assert jnp.isfinite(best)
