"""Test functions of global optimisation, on the unit cube, with known minima.

Branin and Hartmann-6 are from Dixon and Szegö, Towards Global Optimisation 2 (1978);
Ackley is from Ackley, A Connectionist Machine for Genetic Hillclimbing (1987).
"""

from collections.abc import Callable
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Function:
  """A function to minimise.

  Attributes:
    title: name in tables and figures.
    low: `[C]`, the smallest coordinates of the domain.
    high: `[C]`, the largest.
    minimum: the smallest value.
    minimisers: `[n, C]`, where it is reached, in coordinates of the domain.
    formula: from `[n, C]` in the domain to `[n]`.
  """

  title: str
  low: tuple[float, ...]
  high: tuple[float, ...]
  minimum: float
  minimisers: tuple[tuple[float, ...], ...]
  formula: Callable[[np.ndarray], np.ndarray]

  @property
  def num_inputs(self) -> int:
    """C, the number of inputs."""
    return len(self.low)

  def __call__(self, unit: np.ndarray) -> np.ndarray:
    """Evaluates at points of the unit cube, `[n, C] -> [n]` float64."""
    low, high = np.array(self.low), np.array(self.high)
    return self.formula(low + (high - low) * np.asarray(unit, np.float64))


def _branin(x: np.ndarray) -> np.ndarray:
  x1, x2 = x.T
  valley = x2 - 5.1 / (4 * np.pi**2) * x1**2 + 5 / np.pi * x1 - 6
  return valley**2 + 10 * (1 - 1 / (8 * np.pi)) * np.cos(x1) + 10


_HARTMANN_HEIGHTS = np.array([1.0, 1.2, 3.0, 3.2])
_HARTMANN_WIDTHS = np.array(
  [
    [10, 3, 17, 3.5, 1.7, 8],
    [0.05, 10, 17, 0.1, 8, 14],
    [3, 3.5, 1.7, 10, 17, 8],
    [17, 8, 0.05, 10, 0.1, 14],
  ]
)
_HARTMANN_CENTRES = 1e-4 * np.array(
  [
    [1312, 1696, 5569, 124, 8283, 5886],
    [2329, 4135, 8307, 3736, 1004, 9991],
    [2348, 1451, 3522, 2883, 3047, 6650],
    [4047, 8828, 8732, 5743, 1091, 381],
  ]
)


def _hartmann(x: np.ndarray) -> np.ndarray:
  square = np.sum(_HARTMANN_WIDTHS * (x[:, None] - _HARTMANN_CENTRES) ** 2, axis=-1)
  return -np.exp(-square) @ _HARTMANN_HEIGHTS


def _ackley(x: np.ndarray) -> np.ndarray:
  far = -20 * np.exp(-0.2 * np.sqrt(np.mean(x**2, axis=1)))
  return far - np.exp(np.mean(np.cos(2 * np.pi * x), axis=1)) + 20 + np.e


FUNCTIONS: dict[str, Function] = {
  "branin": Function(
    title="Branin, 2 inputs",
    low=(-5, 0),
    high=(10, 15),
    minimum=10 / (8 * np.pi),
    minimisers=((-np.pi, 12.275), (np.pi, 2.275), (3 * np.pi, 2.475)),
    formula=_branin,
  ),
  "ackley": Function(
    title="Ackley, 5 inputs",
    low=(-32.768,) * 5,
    high=(32.768,) * 5,
    minimum=0.0,
    minimisers=((0.0,) * 5,),
    formula=_ackley,
  ),
  "hartmann": Function(
    title="Hartmann, 6 inputs",
    low=(0.0,) * 6,
    high=(1.0,) * 6,
    minimum=-3.322368011415515,
    minimisers=((0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573),),
    formula=_hartmann,
  ),
}
