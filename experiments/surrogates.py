"""Surrogates of Bayesian optimisation: they predict a function from its observations."""

import abc
import functools
import importlib.util
import typing
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.errors import CheckpointError
from experiments.common.errors import DataError
import tca_jax

TASK = "black_box"  # the task of the saved model
_CAPACITY = 512  # leaf slots at the start, a power of two
_CROWDED = 0.75  # share of the leaf slots above which a rebuild doubles their number
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
    self._params = params

    def compiled(method: str, **options: typing.Any) -> typing.Any:
      return jax.jit(functools.partial(model.apply, method=method), **options)

    self._index = compiled("index_growing", static_argnames="capacity")
    self._insert = compiled("insert", donate_argnums=1)
    self._rebuild = compiled("rebuild", static_argnames="capacity")
    self._read = compiled("read")

  def start(self, coords: np.ndarray, values: np.ndarray) -> "GrowingReader":
    """Makes the memory of the first observations, `[N, C]` and `[N]`."""
    return GrowingReader(self, coords, values)


class GrowingReader(Surrogate):
  """A trained reader with a memory into which every observation is inserted.

  If an observation is refused, because the leaf slots near it are taken, the tree is
  rebuilt, with twice as many slots if more than three quarters are taken.
  """

  def __init__(self, reader: TrainedReader, coords: np.ndarray, values: np.ndarray):
    self._reader = reader
    inputs = _context(coords, values)
    self._growing = reader._index(reader._params, *inputs, capacity=_CAPACITY)
    self._num_rebuilds = 0

  def predict(self, coords: jax.Array) -> tca_jax.GaussianMixture:
    reader = self._reader
    read = reader._read(reader._params, self._growing.memory, coords[None])
    return jax.tree.map(lambda x: x[0], read.output)

  def observe(self, coords: np.ndarray, value: float) -> None:
    reader, new = self._reader, _context(coords[None], np.array([value]))
    while True:
      self._growing, numbers = reader._insert(reader._params, self._growing, *new)
      if numbers[0, 0] >= 0:
        return
      capacity = self._growing.capacity
      crowded = self.num_observations > _CROWDED * capacity
      self._growing = reader._rebuild(
        reader._params, self._growing, capacity=capacity * (2 if crowded else 1)
      )
      self._num_rebuilds += 1

  @property
  def num_observations(self) -> int:
    """Number of observations in the memory."""
    return int(self._growing.tree.num_valid[0])

  @property
  def description(self) -> dict[str, typing.Any]:
    return {"num_rebuilds": self._num_rebuilds, "capacity": self._growing.capacity}


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


def _context(coords: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """A batch of one context."""
  return coords[None].astype(np.float32), values[None, :, None].astype(np.float32)
