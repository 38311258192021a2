r"""The values of a real map, with uncertainty, from 16 to a million of its points.

  python -m experiments.terrain --workdir=runs/terrain --model=relative_tca \
    --summary_width=0 --read_layers=2 --learning_rate=2e-3 --num_steps=20000 \
    --whole_map=0.2 --densest=0.5 --upper_paths=4

This task is not in the paper. It trains on square windows of the map, of all sizes, with
at most 512 context points each. Each window is shifted, reflected and rotated at random,
so that a model cannot memorise the map. The run above took 200 s on an NVIDIA H200, beside
three others; results/terrain_relative_tca.json has its result, and
results/terrain_tca.json that of the published model (--model=tca).

The evaluation uses points that training does not:

  eval.json     metrics in windows, at their true location
  scaling.json  metrics and time on the whole map, against the number of context points,
                with those of linear interpolation and local kriging; with a tree also the
                time to predict a grid of a million locations
  terrain.png   for TCA, the map predicted from 1 % of its points

Coordinates have one scale everywhere: points in the smallest windows are as dense as
100,000 points on the whole map. No model has an encoder, because self-attention among
100,000 tokens needs quadratic time.

--dataset=airports is a map of irregular points, most of them in America. Elevations are
learned on a scale that is logarithmic above 100 m. The results use --whole_map=0.5
(otherwise few windows are as wide and as sparse as the world); those of the published
models also --teacher_temperature=1 and --num_steps=12000. A relative model can see
locations on both sides of the date line as near ones (--periods=1,0); windows are then
shifted and reflected, but not rotated.

--dataset=retina is a photograph of 1,990,921 pixels, whose values are grey levels; see
`elevation.load_points`. With --context_sizes=10000,100000,2000000, the largest context
has all 1,592,737 training points.
"""

import dataclasses
import math
import typing

import numpy as np

from experiments import terrain_scaling
from experiments import window_task
from experiments.common import beam_search
from experiments.common import evaluate as evaluate_lib
from experiments.common import launch
from experiments.common import systems
from experiments.common.config import option
from experiments.common.errors import ConfigError
from experiments.data import elevation
from experiments.data import windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class TerrainConfig(window_task.WindowConfig):
  """Options of the map task."""

  DEFAULTS: typing.ClassVar = dict(
    position_skip=True,
    num_steps=20_000,
    batch_size=8,
    learning_rate=3e-3,
    teacher_temperature=0.5,
    baseline="leaf",
    local_units=True,
  )
  PAPER: typing.ClassVar = dict(window_task.WindowConfig.PAPER, num_frequencies=0)

  dataset: str = option(
    "task",
    "fault",
    "Map: a grid of elevations (fault), elevations of irregular points (airports), or"
    " the grey levels of a photograph (retina).",
    choices=elevation.DATASETS,
  )
  periods: str = option(
    "task",
    "0,0",
    "Period of each coordinate axis, separated by commas; 0: the axis is not periodic."
    " Only for relative models.",
  )
  num_frequencies: int = option(
    "model",
    9,
    "Number of frequencies of the Fourier features of coordinates; 0, as in the paper:"
    " no Fourier features.",
    at_least=0,
  )
  validation: bool = option(
    "training",
    False,
    "A tenth of the training points held out for validation; evaluations then predict"
    " these and not the held-out fifth.",
  )
  context_sizes: str = option(
    "evaluation",
    "1000,10000,100000",
    "Numbers of context points on the whole map, separated by commas; each is limited"
    " by the number of training points, so that a very large one means all of them.",
    needs={"mode": ("train", "eval")},
  )
  baselines: bool = option(
    "evaluation",
    True,
    "Linear interpolation and local kriging from the same points, in scaling.json.",
    needs={"mode": ("train", "eval")},
  )
  map_side: int = option(
    "evaluation",
    1000,
    "Side of the grid of locations that TCA predicts from the largest context.",
    at_least=1,
    models=("tca", "relative_tca"),
    needs={"mode": ("train", "eval")},
  )

  def __post_init__(self):
    super().__post_init__()
    if self.sizes[0] < windows.MIN_CONTEXT:
      raise ConfigError(
        f"context_sizes must be integers of at least {windows.MIN_CONTEXT}, separated"
        f" by commas, got {self.context_sizes!r}"
      )
    if len(self.axis_periods) != 2 or not all(
      0 <= period < math.inf for period in self.axis_periods
    ):
      raise ConfigError(
        "periods must be two numbers of at least 0, separated by commas, got"
        f" {self.periods!r}"
      )

  @property
  def sizes(self) -> list[int]:
    """The numbers in `context_sizes`, ascending; 0 in place of other text."""
    sizes = self.context_sizes.split(",")
    return sorted({int(size) if size.isdecimal() else 0 for size in sizes})

  @property
  def axis_periods(self) -> tuple[float, ...]:
    """The numbers in `periods`; empty in place of other text."""
    try:
      return tuple(float(period) for period in self.periods.split(","))
    except ValueError:
      return ()


_COORD_UNITS = {
  "fault": "402 pixels, from the middle of the map",
  "airports": "360 degrees of longitude and latitude",
  "retina": "1,410 pixels, from the middle of the photograph",
}


class TerrainTask(window_task.WindowTask[TerrainConfig]):
  """The map task, with windows drawn on the device from a map kept there."""

  map: elevation.ValueMap
  evaluators = (
    evaluate_lib.TestMetrics(),
    terrain_scaling.MapScaling(),
    terrain_scaling.MapFigure(),
    beam_search.BeamWidths(),
  )

  def __init__(self, config: TerrainConfig):
    self.config = config
    self.map = elevation.load(config.dataset)
    if config.validation:
      self.map = self.map.for_validation()
    most = len(self.map.train.coords) - windows.NUM_TARGETS
    if config.num_context > most:
      raise ConfigError(
        f"num_context must be at most {most:,}, because {windows.NUM_TARGETS} of the"
        f" training points are targets; got {config.num_context:,}"
      )
    self._prepare(
      config.num_context,
      systems.build_point_embedder(config, config.num_frequencies),
      config.axis_periods,
      swaps=not any(config.axis_periods),
    )

  @property
  def inputs(self) -> dict[str, typing.Any]:
    """As in `Task`; with an asinh_scale, value = asinh(value of the map / asinh_scale)."""
    coords = np.asarray(self.map.train.coords, np.float64)
    limits = np.stack([coords.min(axis=0), coords.max(axis=0)], axis=-1)
    return {
      "coords": {
        "axes": ["east", "north"],
        "range": limits.round(4).tolist(),
        "unit": _COORD_UNITS[self.config.dataset],
      },
      "values": {
        "channels": 1,
        "mean": self.map.mean,
        "std": self.map.std,
        "unit": self.map.unit,
        "asinh_scale": self.map.asinh_scale,
      },
    }


PROGRAM = launch.Program(TerrainConfig, TerrainTask)
train, evaluate = PROGRAM.train, PROGRAM.evaluate

if __name__ == "__main__":
  PROGRAM.main()
