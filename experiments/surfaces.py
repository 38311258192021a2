r"""Pretraining of a model that predicts from tables that it has never seen.

  python -m experiments.surfaces --workdir=runs/surfaces

This task is not in the paper. It trains one relative model on random surfaces of many
kinds (`data/random_surfaces.py`) and on windows of real maps (`data/elevation.py`). With
the default options, the predictions follow any shift and scale of coordinates, and any
shift and scale of values: the model sees both in the units of the nodes near a query. So
it can predict from a table of two coordinates in any units, with uncertainty and without
training:

  python -m experiments.points --mode=predict --table=my.csv --coords=lon,lat --target=t \
    --at=places.csv --out=predictions.csv

The evaluation uses surfaces, and points of the maps, that training does not:

  eval.json     metrics of surfaces and windows together, in the proportion --synthetic
  kinds.json    metrics of surfaces and of the windows of each map

`experiments.zero_shot` compares the model with interpolation and kriging on tables that
are not a part of the training.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import typing

from etils import epath
import jax
import jax.numpy as jnp

from experiments import window_task
from experiments.common import beam_search
from experiments.common import evaluate as evaluate_lib
from experiments.common import launch
from experiments.common import systems
from experiments.common import task as task_lib
from experiments.common import workdir as workdir_lib
from experiments.common.batch import Batch
from experiments.common.config import option
from experiments.common.errors import ConfigError
from experiments.data import augmentation
from experiments.data import elevation
from experiments.data import random_surfaces
from experiments.data import windows

_SYNTHETIC = "synthetic"  # the name of random surfaces among the maps
_LARGEST_STRETCH = 4.0  # of one axis relative to the other


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurfacesConfig(window_task.WindowConfig):
  """Options of the pretraining on surfaces."""

  DEFAULTS: typing.ClassVar = dict(
    window_task.RELATIVE_RECIPE, sees_scale=False, num_steps=6_000
  )

  UNUSED: typing.ClassVar = {
    **window_task.WindowConfig.UNUSED,
    "num_targets": "surfaces, which are evaluated in windows only",
  }

  maps: str = option(
    "task",
    ",".join(elevation.DATASETS),
    "Names of the real maps, separated by commas; empty: only random surfaces.",
  )
  synthetic: float = option(
    "training",
    0.7,
    "Fraction of random surfaces in a batch; the others are windows of one of the maps.",
    at_least=0,
  )

  def __post_init__(self):
    super().__post_init__()
    if not systems.SYSTEMS[self.model].is_relative:
      raise ConfigError(
        f"model must be relative_tca or relative_ca for surfaces, got {self.model!r}"
      )
    others = set(self.map_names) - set(elevation.DATASETS)
    if others:
      raise ConfigError(
        f"maps must have names of {', '.join(elevation.DATASETS)}, got {min(others)!r}"
      )
    if self.synthetic > 1 or (self.synthetic < 1 and not self.map_names):
      raise ConfigError(
        f"synthetic must be at most 1, and 1 without maps, got {self.synthetic}"
      )
    if 0 < self.synthetic < 1 and not 0 < self.num_synthetic < self.batch_size:
      raise ConfigError(
        f"synthetic must be 0, 1, or at least one of the {self.batch_size} examples of a"
        f" batch and not all, got {self.synthetic}"
      )

  @property
  def map_names(self) -> list[str]:
    """The names in `maps`."""
    return [name.strip() for name in self.maps.split(",") if name.strip()]

  @property
  def num_synthetic(self) -> int:
    """Number of random surfaces in a batch."""
    return round(self.synthetic * self.batch_size)


class Kinds(task_lib.Evaluator["SurfacesTask"]):
  """Metrics of random surfaces, and of the windows of each map; writes kinds.json."""

  file = "kinds.json"
  shared = True

  def evaluate(
    self, restored: task_lib.Restored["SurfacesTask"], path: epath.Path
  ) -> dict[str, typing.Any]:
    """Evaluates each kind on as many batches as eval.json.

    Returns:
      "rows", the metrics of `evaluate.evaluate` for each kind.
    """
    rows = []
    for name in (_SYNTHETIC, *restored.task.config.map_names):
      task = restored.task.of_kind(name)
      rows.append({"kind": name, **evaluate_lib.evaluate(task, restored.params)})
    content = {"rows": rows, **evaluate_lib.result_source(restored.task)}
    workdir_lib.write_json(path, content)
    return content


class SurfacesTask(window_task.WindowTask[SurfacesConfig]):
  """Random surfaces and windows of real maps."""

  evaluators = (evaluate_lib.TestMetrics(), Kinds(), beam_search.BeamWidths())

  def __init__(self, config: SurfacesConfig):
    self.config = config
    embedder = systems.build_point_embedder(config, num_frequencies=0)
    self._build_model(config.num_context, embedder, periods=(), num_outputs=1)
    self._maps = {}
    for name in config.map_names:
      points = elevation.load(name)
      parts = points.train, points.held_out
      self._maps[name] = [windows.with_blocks(part) for part in parts]

  def of_kind(self, name: str) -> "SurfacesTask":
    """The same task with examples of one kind only: "synthetic", or a map's name."""
    synthetic = name == _SYNTHETIC
    config = dataclasses.replace(
      self.config, maps="" if synthetic else name, synthetic=float(synthetic)
    )
    return type(self)(config)

  def train_batch(self, rng: jax.Array, step: int) -> Batch:
    draw_rng, vary_rng = jax.random.split(rng)
    parts = self._draw_parts(draw_rng, step, False, **self._shares(step))
    return _join(vary_rng, parts)

  def eval_batches(self) -> Iterator[Batch]:
    for i in range(self.config.eval_batches):
      yield _join(None, self._draw_parts(self.eval_rng(i), i, True))

  @property
  def inputs(self) -> dict[str, typing.Any]:
    """As in `Task`; coordinates and values may have any unit."""
    return {
      "coords": {
        "axes": ["x", "y"],
        "range": [[-0.5, 0.5], [-0.5, 0.5]],
        "unit": "any",
      },
      "values": {"channels": 1, "unit": "any"},
    }

  def _draw_parts(
    self,
    rng: jax.Array,
    i: int,
    held_out: bool,
    full_context: float = 0.0,
    **shares: float,
  ) -> list[Batch]:
    """Random surfaces, and windows of one map: that of the number i."""
    surface_rng, window_rng = jax.random.split(rng)
    config, parts = self.config, []
    shared = dict(
      num_context=config.num_context,
      num_targets=windows.NUM_TARGETS,
      full_context=full_context,
    )
    num_windows = config.batch_size - config.num_synthetic
    if config.num_synthetic:
      parts.append(
        _draw_surfaces(surface_rng, batch_size=config.num_synthetic, **shared)
      )
    if num_windows:
      train, others = self._maps[config.map_names[i % len(config.map_names)]]
      parts.append(
        _draw_windows(
          window_rng,
          train,
          others if held_out else None,
          batch_size=num_windows,
          **shared,
          **shares,
        )
      )
    return parts


@jax.jit
def _join(rng: jax.Array | None, parts: Sequence[Batch]) -> Batch:
  """Joins batches; with a key, moves and stretches their examples at random."""
  batch = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
  if rng is None:
    return batch
  move_rng, stretch_rng = jax.random.split(rng)
  batch = augmentation.random_rigid_motion(move_rng, batch)
  return augmentation.random_stretch(stretch_rng, batch, _LARGEST_STRETCH)


# Compiled once for all tasks of a process.
_SIZES = ("batch_size", "num_context", "num_targets", "full_context")
_draw_surfaces = jax.jit(random_surfaces.sample, static_argnames=_SIZES)
_draw_windows = jax.jit(windows.sample, static_argnames=(*_SIZES, "densest"))

PROGRAM = launch.Program(SurfacesConfig, SurfacesTask)
train, evaluate = PROGRAM.train, PROGRAM.evaluate

if __name__ == "__main__":
  PROGRAM.main()
