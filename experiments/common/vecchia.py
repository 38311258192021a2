"""A Gaussian process in Vecchia's approximation, by the package gpboost.

Each observation depends on its nearest earlier observations only, so that the likelihood
of all observations can be maximised. gpboost is not a dependency; the baseline is
measured where it is installed (requirements-bench.txt).
"""

import dataclasses
import importlib
import importlib.util
import typing

import jax.numpy as jnp
import numpy as np

import tca_jax

NUM_NEIGHBOURS = 30
MAX_OBSERVATIONS = (
  30_000  # with 100,000, a fit takes more than six minutes on two cores
)


def is_installed() -> bool:
  """Whether gpboost can be imported."""
  return importlib.util.find_spec("gpboost") is not None


@dataclasses.dataclass(frozen=True)
class VecchiaProcess:
  """A fitted process.

  Attributes:
    model: the `gpboost.GPModel`, with a Matern-3/2 covariance and a constant mean.
    num_neighbours: number of observations that a prediction depends on.
  """

  model: typing.Any
  num_neighbours: int

  def predict(self, coords: np.ndarray) -> tca_jax.Gaussian:
    """Predicts noisy values at locations `[M, C]`, as a `Gaussian` of `[M, 1]`."""
    found = self.model.predict(
      gp_coords_pred=np.asarray(coords, np.float64),
      X_pred=np.ones((len(coords), 1)),
      predict_var=True,
      predict_response=True,
    )
    return tca_jax.Gaussian(
      mean=jnp.asarray(found["mu"])[:, None], std=jnp.sqrt(found["var"])[:, None]
    )


def fit(coords: np.ndarray, values: np.ndarray) -> VecchiaProcess:
  """Fits length scale, variance, noise and mean by maximum likelihood.

  Args:
    coords: `[N, C]`.
    values: `[N]`.
  """
  gpboost = importlib.import_module("gpboost")
  num_neighbours = min(NUM_NEIGHBOURS, len(coords) - 1)
  model = gpboost.GPModel(
    gp_coords=np.asarray(coords, np.float64),
    cov_function="matern",
    cov_fct_shape=1.5,
    gp_approx="vecchia",
    num_neighbors=num_neighbours,
    likelihood="gaussian",
  )
  model.fit(y=np.asarray(values, np.float64), X=np.ones((len(coords), 1)))
  model.set_prediction_data(
    vecchia_pred_type="order_obs_first_cond_obs_only",
    num_neighbors_pred=num_neighbours,
  )
  return VecchiaProcess(model, num_neighbours)
