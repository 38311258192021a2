"""GP regression: sizes, kernels and hyper-parameters drawn, and the exact posterior."""

import chex
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from sklearn import gaussian_process
from sklearn.gaussian_process import kernels

from experiments import gp_regression
from experiments.common import evaluate
from experiments.common import train
from experiments.common.config import ConfigError
from experiments.data import gp


def _draw(size, shape=gp.SHAPES[1], kernel="rbf", sizes="example"):
  return gp.sample(jax.random.key(0), size, shape, kernel, sizes)


def _sklearn(kernel, process, i):
  length_scale, scale = float(process.length_scale[i]), float(process.scale[i])
  if kernel == "rbf":
    return scale**2 * kernels.RBF(length_scale)
  return scale**2 * kernels.Matern(length_scale, nu=2.5)


@pytest.mark.parametrize("sizes", gp.SIZES)
def test_sizes_are_as_published(sizes):
  num_context = []
  for step in range(400):
    shape = gp.draw_shape((3, step))
    batch, _ = jax.eval_shape(lambda s=shape: _draw(4, s))
    assert (batch.mask.shape, batch.query_mask.shape) == ((4, shape[0]), (4, shape[1]))
    num_context.append(shape)
  shares = [num_context.count(shape) / 400 for shape in gp.SHAPES]
  np.testing.assert_allclose(shares, np.array([14, 16, 14]) / 44, atol=0.12)
  for shape in gp.SHAPES:
    batch, _ = _draw(2000, shape, sizes=sizes)
    num_context = np.asarray(batch.mask.sum(1))
    num_targets = np.asarray(batch.query_mask.sum(1))
    if sizes == "batch":
      assert len(set(num_context)) == len(set(num_targets)) == 1
      assert num_targets[0] >= 3 and num_context[0] + num_targets[0] < 50
      continue
    assert num_context.min() == gp.smallest_context(shape)
    assert num_context.max() == shape[0]
    assert np.all(num_context + num_targets == 49)


def test_published_numbers_of_targets_are_uniform():
  shares = []
  for i in range(300):
    key = jax.random.key(i)
    batch, _ = gp.sample(key, 1, gp.SHAPES[1], "rbf", "batch")
    num_context, num_targets = int(batch.mask.sum()), int(batch.query_mask.sum())
    assert 3 <= num_targets < 50 - num_context
    shares.append((num_targets - 3 + 0.5) / (50 - num_context - 3))
  assert abs(np.mean(shares) - 0.5) < 5 * 0.29 / 300**0.5


def test_points_are_sorted_uniform_and_apart():
  batch, process = _draw(2000)
  for coords, valid in (
    (batch.coords, batch.mask),
    (batch.query_coords, batch.query_mask),
  ):
    x, mask = np.asarray(coords[..., 0]), np.asarray(valid)
    assert np.all(np.diff(x)[mask[:, 1:]] >= 0)
    drawn = x[mask]
    assert -2 <= drawn.min() < -1.99 and 1.99 < drawn.max() < 2
    assert abs(drawn.mean()) < 0.03 and abs(drawn.std() - 4 / 12**0.5) < 0.02
  for drawn, low, high in ((process.length_scale, 0.1, 0.6), (process.scale, 0.1, 1)):
    assert low <= drawn.min() and drawn.max() < high
    assert abs(float(drawn.mean()) - (low + high) / 2) < 0.03
  for i in range(50):
    context = set(np.asarray(batch.coords[i, :, 0])[batch.mask[i]].tolist())
    targets = np.asarray(batch.query_coords[i, :, 0])[batch.query_mask[i]]
    assert not context & set(targets.tolist()), "a target is in the context"


@pytest.mark.parametrize("kernel", gp.KERNELS)
def test_values_have_the_covariance_of_the_kernel(kernel):
  """Whitened by scikit-learn's covariance they are standard normal."""
  batch, process = _draw(300, gp.SHAPES[0], kernel)
  white = []
  for i in range(300):
    x = np.concatenate([batch.coords[i], batch.query_coords[i]]).astype(np.float64)
    y = np.concatenate([batch.values[i], batch.targets[i]]).astype(np.float64)
    covariance = _sklearn(kernel, process, i)(x) + gp.NOISE**2 * np.eye(len(x))
    white.append(np.linalg.solve(np.linalg.cholesky(covariance), y[:, 0]))
  white = np.concatenate(white)
  assert abs(white.mean()) < 5 / len(white) ** 0.5
  assert abs(white.std() - 1) < 0.02


@pytest.mark.parametrize("kernel", gp.KERNELS)
def test_the_ceiling_is_the_exact_posterior(kernel):
  batch, process = _draw(20, kernel=kernel)
  mean, std = gp.predictive(batch, process, kernel)
  assert mean.dtype == np.float64
  for i in range(20):
    model = gaussian_process.GaussianProcessRegressor(
      _sklearn(kernel, process, i), alpha=gp.NOISE**2, optimizer=None
    )
    valid = np.asarray(batch.mask[i])
    x, y = np.asarray(batch.coords[i])[valid], np.asarray(batch.values[i])[valid]
    model.fit(x.astype(np.float64), y.astype(np.float64)[:, 0])
    expected, spread = model.predict(
      np.asarray(batch.query_coords[i], np.float64), return_std=True
    )
    np.testing.assert_allclose(mean[i], expected, atol=1e-6)
    np.testing.assert_allclose(std[i] ** 2, spread**2 + gp.NOISE**2, atol=1e-6)


def test_unknown_options_are_refused():
  with pytest.raises(ValueError, match=r"kernel must be one of .*got 'cosine'"):
    _draw(2, kernel="cosine")
  with pytest.raises(ValueError, match=r"sizes must be one of .*got 'all'"):
    _draw(2, sizes="all")
  with pytest.raises(ConfigError, match=r"kernel must be one of .*got 'cosine'"):
    gp_regression.GPConfig(kernel="cosine")


def test_batches_are_a_function_of_seed_and_step():
  def task(**kwargs):
    return gp_regression.GPTask(
      gp_regression.GPConfig(batch_size=2, eval_batches=5, **kwargs)
    )

  a, b = task(seed=3), task(seed=3, kernel="matern52")
  for step in (0, 7):
    chex.assert_trees_all_equal(a.train_batch(step), b.train_batch(step))
  drawn = [a.train_batch(0), a.train_batch(1), task(seed=4).train_batch(0)]
  drawn += [*task(seed=3, eval_seed=3).eval_batches()]
  seen = {np.asarray(batch.targets).tobytes() for batch in drawn}
  assert len(seen) == len(drawn), "streams share a batch"
  for batch in drawn[3:]:
    sizes = np.asarray([batch.mask.sum(1), batch.query_mask.sum(1)])
    assert np.all(sizes == sizes[:, :1]), "evaluation has one size a batch"
    assert np.all(np.isfinite(batch.ceiling))


def test_no_prediction_beats_the_ceiling():
  """Of a mean or a std that is off, whatever the direction."""
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


def test_end_to_end(tmp_path):
  config = gp_regression.GPConfig(
    num_layers=1, num_steps=1, batch_size=2, eval_batches=1, kernel="matern52"
  )
  task = gp_regression.GPTask(config)
  workdir = epath.Path(tmp_path / "run")
  train.train(task, workdir)
  result = evaluate.evaluate_workdir(task, workdir)
  assert result["ceiling_log_likelihood"] > result["log_likelihood"]
  assert result["num_examples"] == 2
  covered = [result[f"coverage_{level}"] for level in evaluate.INTERVALS]
  assert covered == sorted(covered) and 0 <= covered[0] <= covered[-1] <= 1
  assert result["tokens_fraction_largest"] == 7 / 46
  assert Image.open(workdir / "functions.png").size[0] > 800
