"""Local kriging, the baseline of spatial regression that practitioners use.

A prediction is that of a Gaussian process from the nearest observations only: ordinary
kriging, with an unknown constant mean and a Matern-3/2 covariance. Length scale,
variance and noise maximise the likelihood of some observations, each predicted from its
neighbours.
"""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
from scipy import optimize
from scipy import spatial

import tca_jax

NUM_NEIGHBOURS = 48
_NUM_FIT = 400  # observations whose likelihood is maximised
_NUM_FIT_NEIGHBOURS = 24
_LENGTHS = (0.003, 0.02, 0.1)  # starts of the optimisation, as shares of the extent
_RANGE = 20.0  # of the logarithms of the parameters; a length could go to 0
_CHUNK = 512  # locations whose linear systems are solved together
_JITTER = 1e-9  # smallest noise, relative to the variance


@dataclasses.dataclass(frozen=True)
class LocalKriging:
  """A fitted model.

  Attributes:
    tree: k-d tree of the locations of the observations, `[N, C]`.
    values: `[N]` float64, the observations.
    length: length scale of the covariance, in units of the coordinates.
    variance: variance of the process.
    noise: variance of the observations' noise.
  """

  tree: spatial.KDTree
  values: np.ndarray
  length: float
  variance: float
  noise: float

  @property
  def num_neighbours(self) -> int:
    """Number of observations that a prediction depends on."""
    return min(NUM_NEIGHBOURS, self.tree.n)

  def predict(self, coords: np.ndarray) -> tca_jax.Gaussian:
    """Predicts noisy values at locations `[M, C]`, as a `Gaussian` of `[M, 1]`."""
    coords = np.asarray(coords, np.float64)
    distance, index = _neighbours(self.tree, coords, self.num_neighbours)
    moments = [
      self._moments(distance[i : i + _CHUNK], index[i : i + _CHUNK])
      for i in range(0, len(coords), _CHUNK)
    ]
    mean, variance = (np.concatenate(x)[:, None] for x in zip(*moments, strict=True))
    return tca_jax.Gaussian(mean=jnp.asarray(mean), std=jnp.sqrt(variance))

  def _moments(
    self, distance: np.ndarray, index: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance at `[M]` locations with neighbours `[M, n]`."""
    points, values = self.tree.data[index], self.values[index]
    among = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    covariance = self._covariance(among)
    noise = self.noise + _JITTER * self.variance
    covariance += noise * np.eye(index.shape[1])
    to_query = self._covariance(distance)
    ones = np.ones_like(values)
    solved = np.linalg.solve(covariance, np.stack([to_query, ones, values], axis=-1))
    weights, ones_solved, values_solved = np.moveaxis(solved, -1, 0)
    # The generalised least-squares estimate of the constant mean, and its variance.
    precision = np.sum(ones_solved, axis=1)
    constant = np.sum(values_solved, axis=1) / precision
    mean = constant + np.sum(weights * (values - constant[:, None]), axis=1)
    explained = np.sum(weights * to_query, axis=1)
    missing = 1 - np.sum(weights, axis=1)
    variance = self.variance + noise - explained + missing**2 / precision
    return mean, np.maximum(variance, _JITTER * self.variance)

  def _covariance(self, distance: np.ndarray) -> np.ndarray:
    scaled = np.sqrt(3) * distance / self.length
    return self.variance * (1 + scaled) * np.exp(-scaled)


def fit(coords: np.ndarray, values: np.ndarray, seed: int = 0) -> LocalKriging:
  """Fits local kriging to observations.

  Args:
    coords: `[N, C]`, distinct locations, N at least 2.
    values: `[N]`.
    seed: random seed of the observations whose likelihood is maximised.
  """
  tree = spatial.KDTree(np.asarray(coords, np.float64))
  values = np.asarray(values, np.float64)
  chosen = np.random.default_rng(seed).permutation(tree.n)[:_NUM_FIT]
  num = min(_NUM_FIT_NEIGHBOURS + 1, tree.n)
  # The nearest neighbour of an observation is itself.
  distance, index = (x[:, 1:] for x in _neighbours(tree, tree.data[chosen], num))

  def loss(parameters: np.ndarray) -> float:
    model = LocalKriging(tree, values, *np.exp(parameters))
    mean, variance = model._moments(distance, index)
    square = (values[chosen] - mean) ** 2 / variance
    return float(np.mean(square + np.log(variance)) / 2)

  extent, variance = np.max(tree.maxes - tree.mins), np.var(values)
  starts = itertools.product(
    np.log(np.multiply(extent, _LENGTHS)), [np.log(variance)], [np.log(1e-3 * variance)]
  )
  options = dict(maxiter=120)
  limits = [np.log(extent), np.log(variance), np.log(variance)]
  bounds = [(limit - _RANGE, limit + _RANGE) for limit in limits]
  found = [
    optimize.minimize(loss, start, method="Nelder-Mead", bounds=bounds, options=options)
    for start in starts
  ]
  best = min(found, key=lambda result: result.fun)
  return LocalKriging(tree, values, *map(float, np.exp(best.x)))


def _neighbours(
  tree: spatial.KDTree, queries: np.ndarray, num: int
) -> tuple[np.ndarray, np.ndarray]:
  """Distances and indices of the nearest observations, `[M, num]`."""
  return tree.query(queries, np.arange(1, num + 1), workers=-1)
