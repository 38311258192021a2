"""Surrogates of Bayesian optimisation: they predict a function from its observations."""

import abc
import functools
import importlib.util
import typing
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import growing
from experiments.common.errors import CheckpointError
from experiments.common.errors import DataError
import tca_jax

TASK = "black_box"  # the task of the saved model
_CAPACITY = 512  # leaf slots at the start, a power of two
_GROWTH = 1.1  # of the observations, until a Gaussian process is fitted again


class Surrogate(abc.ABC):
  """Predicts a function from observations that arrive one by one."""

  @abc.abstractmethod
  def predict(self, coords: jax.Array) -> tca_jax.GaussianMixture:
    """Predicts at `[M, C]` points; distributions of `[M, 1]` values."""

  @abc.abstractmethod
  def observe(self, coords: np.ndarray, value: float) -> None:
    """Adds the value at a point `[C]`."""

  @property
  def description(self) -> dict[str, typing.Any]:
    """Facts for the result file."""
    return {}


class TrainedReader:
  """A model of `experiments.black_box`, compiled once for all functions.

  Attributes:
    num_axes: C, the largest number of inputs of a function.
    step: number of its training steps.
  """

  def __init__(self, folder: typing.Any):
    """Loads the model.

    Raises:
      CheckpointError: if the folder has no model of `experiments.black_box`.
    """
    try:
      model, params, info = tca_jax.load(folder)
    except (OSError, ValueError) as error:
      raise CheckpointError(f"{folder} has no saved model: {error}") from error
    if info.get("task") != TASK:
      raise CheckpointError(
        f"{folder} must have a model of experiments.{TASK}, got one of"
        f" {info.get('task')!r}"
      )
    self.num_axes, self.step = len(info["coords"]["axes"]), info["step"]
    self._model: typing.Any = model
    self._params = params
    self._read = jax.jit(functools.partial(model.apply, method="read"))

  def start(self, coords: np.ndarray, values: np.ndarray) -> "GrowingReader":
    """Makes the memory of the first observations, `[N, C]` and `[N]`."""
    return GrowingReader(self, coords, values)

  def grow(self) -> growing.GrowingContext:
    """A context without observations."""
    return growing.GrowingContext(
      self._model, self._params, batch_size=1, capacity=_CAPACITY
    )

  def read(self, memory: typing.Any, coords: jax.Array) -> tca_jax.GaussianMixture:
    """Predicts at `[M, C]` points; distributions of `[M, 1]` values."""
    read = self._read(self._params, memory, coords[None])
    return jax.tree.map(lambda x: x[0], read.output)


class GrowingReader(Surrogate):
  """A trained reader with a memory into which every observation is inserted."""

  def __init__(self, reader: TrainedReader, coords: np.ndarray, values: np.ndarray):
    self._reader, self._context = reader, reader.grow()
    self._insert(coords, values)

  def predict(self, coords: jax.Array) -> tca_jax.GaussianMixture:
    known: typing.Any = self._context.growing
    return self._reader.read(known.memory, coords)

  def observe(self, coords: np.ndarray, value: float) -> None:
    self._insert(coords[None], np.array([value]))

  @property
  def num_observations(self) -> int:
    """Number of observations in the memory."""
    return self._context.num_points

  @property
  def description(self) -> dict[str, typing.Any]:
    known: typing.Any = self._context.growing
    return {"num_rebuilds": self._context.num_rebuilds, "capacity": known.capacity}

  def _insert(self, coords: np.ndarray, values: np.ndarray) -> None:
    """Inserts `[K, C]` points and `[K]` values."""
    self._context.insert(coords.astype(np.float32), values[:, None].astype(np.float32))


class GaussianProcess(Surrogate):
  """The Gaussian process of scikit-learn: Matern-5/2, with a length scale for each input.

  Its hyper-parameters maximise the likelihood. They are fitted again whenever the number
  of observations has grown by a tenth, from where they are; in between, only the
  covariance matrix is factorised again.
  """

  def __init__(self, coords: np.ndarray, values: np.ndarray):
    """Fits the process to the first observations, `[N, C]` and `[N]`.

    Axes along which these do not differ are not inputs.
    """
    self._used = np.ptp(coords, axis=0) > 0
    gaussian_process: typing.Any = importlib.import_module("sklearn.gaussian_process")
    kernels = gaussian_process.kernels
    exceptions: typing.Any = importlib.import_module("sklearn.exceptions")
    self._warning = exceptions.ConvergenceWarning
    self._regressor = functools.partial(
      gaussian_process.GaussianProcessRegressor, alpha=1e-8, normalize_y=True
    )
    num_inputs = np.sum(self._used)
    self._kernel: typing.Any = kernels.ConstantKernel(
      1.0, (1e-3, 1e6)
    ) * kernels.Matern(
      np.full(num_inputs, 0.5), (1e-2, 1e2), nu=2.5
    ) + kernels.WhiteKernel(1e-4, (1e-8, 1.0))
    self._coords = coords
    self._values = values
    self._num_fitted = 0
    self._num_fits = 0
    self._fit()

  def predict(self, coords: jax.Array) -> tca_jax.GaussianMixture:
    inputs = np.asarray(coords, np.float64)[:, self._used]
    found: typing.Any = self._process.predict(inputs, return_std=True)
    mean, std = (jnp.asarray(x, jnp.float32)[:, None, None] for x in found)
    return tca_jax.GaussianMixture(
      log_weights=jnp.zeros_like(mean), means=mean, stds=jnp.maximum(std, 1e-12)
    )

  def observe(self, coords: np.ndarray, value: float) -> None:
    self._coords = np.concatenate([self._coords, coords[None]])
    self._values = np.append(self._values, value)
    self._fit()

  @property
  def description(self) -> dict[str, typing.Any]:
    return {"num_fits": self._num_fits, "kernel": str(self._process.kernel_)}

  def _fit(self) -> None:
    if len(self._values) >= _GROWTH * self._num_fitted:
      process = self._regressor(kernel=self._kernel)
      self._num_fitted = len(self._values)
      self._num_fits += 1
    else:
      process = self._regressor(kernel=self._kernel, optimizer=None)
    with warnings.catch_warnings():  # about hyper-parameters at their bounds
      warnings.simplefilter("ignore", self._warning)
      self._process = process.fit(self._coords[:, self._used], self._values)
    self._kernel = process.kernel_


def check_sklearn() -> None:
  """Raises DataError if scikit-learn, which `GaussianProcess` needs, is not installed."""
  if importlib.util.find_spec("sklearn") is None:
    raise DataError(
      "the method gp needs scikit-learn; run `pip install scikit-learn`, or choose other"
      " --methods"
    )
