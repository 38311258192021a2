"""The map of a stream: the order of its points, its predictions, and their picture."""

from collections.abc import Sequence
import dataclasses
import typing

from etils import epath
import jax
import numpy as np

from experiments import terrain_baselines
from experiments import terrain_scaling
from experiments.common import evaluate
from experiments.common import interpolation
from experiments.common import tables
from experiments.common import task as task_lib
from experiments.data import elevation
from experiments.figures import stream as stream_figure
import tca_jax

if typing.TYPE_CHECKING:
  from experiments.terrain import TerrainTask

FIGURE_FILE = "stream.png"
_MAPS = "maps"  # folder of the predicted maps

Row = dict[str, typing.Any]


class StreamMap:
  """A map whose training points arrive in random order.

  Attributes:
    map: the map, with its training points in the order in which they arrive.
    targets: the held-out points that are predicted.
  """

  def __init__(
    self,
    restored: task_lib.Restored["TerrainTask"],
    workdir: epath.Path,
    num_targets: int | None,
    num_drawn: int | None,
    seed: int,
  ):
    """Orders the points.

    Args:
      restored: the model.
      workdir: folder of the predicted maps and of the picture.
      num_targets: largest number of held-out points to predict; None: all.
      num_drawn: largest number of points of the map in the picture; None: all.
      seed: random seed of the order.
    """
    self._task, self._params, self._workdir = restored.task, restored.params, workdir
    whole = restored.task.map
    order = np.random.default_rng(seed).permutation(len(whole.train.coords))
    arriving = jax.tree.map(
      lambda x: np.asarray(x)[order], whole.train.take_first(None)
    )
    self.map: elevation.ValueMap = dataclasses.replace(whole, train=arriving)
    self.targets = whole.held_out.take_first(num_targets)
    everything = jax.tree.map(
      lambda *x: np.concatenate(x), whole.held_out.take_first(None), arriving
    )
    self._drawn = everything.take_first(num_drawn)

  def measure(self, size: int, growing: tca_jax.GrowingMemory) -> Row:
    """Predicts the map from its first points, and keeps it for the picture.

    Args:
      size: number of points that have arrived.
      growing: their memory.

    Returns:
      The scores of the held-out points; the same with the prefix "new_", from a new
      memory of the same points; "linear_rmse", the error of linear interpolation; and
      "num_targets".
    """
    targets = self.targets
    count = len(targets.coords)
    coords = np.concatenate([targets.coords, self._drawn.coords])
    everything = self._predict(growing.memory, size, coords)
    output, of_map = (
      jax.tree.map(lambda x, part=part: x[part], everything)
      for part in (slice(count), slice(count, None))
    )
    mean, std = self.map.predicted_in_units(of_map)
    (self._workdir / _MAPS).mkdir(exist_ok=True)
    np.savez(self._map_file(size), mean=np.float32(mean), std=np.float32(std))
    memory, _ = terrain_scaling.index_context(
      self._task.model, self._params, self.map.train.take_first(size)
    )
    new = self._scores(self._predict(memory, size, targets.coords))
    (linear,) = terrain_baselines.rows(self.map, size, targets, processes=False)
    return {
      **self._scores(output),
      **{f"new_{name}": score for name, score in new.items()},
      "linear_rmse": linear["rmse"],
      "num_targets": count,
    }

  def draw(self, rows: Sequence[Row]) -> None:
    """Draws the predicted maps and their errors.

    Args:
      rows: what `measure` has returned, and "num_points".
    """
    maps = []
    for row in rows:
      with np.load(self._map_file(row["num_points"])) as file:
        maps.append((file["mean"], file["std"]))
    streamed = stream_figure.StreamedMap(
      unit=self.map.unit,
      pixel=self.map.pixel,
      coords=np.asarray(self._drawn.coords),
      truth=self.map.to_units(self._drawn.values),
      maps=maps,
      rows=rows,
    )
    stream_figure.plot_stream(streamed, self._workdir / FIGURE_FILE)

  def _predict(
    self, memory: typing.Any, size: int, coords: jax.typing.ArrayLike
  ) -> tca_jax.Regression:
    reader = next(iter(self._task.system.readers.values()))
    output, _, _ = terrain_scaling.predict(
      self._task.model, self._params, memory, size, coords, reader
    )
    return output

  def _scores(self, output: tca_jax.Regression) -> dict[str, float]:
    mean, _ = self.map.predicted_in_units(output)
    error = interpolation.rmse(mean, self.map.to_units(self.targets.values))
    return evaluate.mean_scores(output, self.targets.values) | {"rmse": error}

  def _map_file(self, size: int) -> epath.Path:
    return self._workdir / _MAPS / f"{size}.npz"


def table_of(content: dict[str, typing.Any]) -> str:
  """The rows of stream.json as a table."""
  unit = content["unit"]
  header = ("points", "rebuilds", "log-lik.", "new tree", f"RMSE, {unit}", "new tree")
  return tables.aligned(
    f"{content['settings']['dataset']}, {content['rows'][-1]['num_targets']:,} held-out"
    " points",
    (*header, "linear", "us / point"),
    [
      (
        f"{row['num_points']:,}",
        f"{row['num_rebuilds']}",
        *(f"{row[name]:.3f}" for name in ("log_likelihood", "new_log_likelihood")),
        *(f"{row[name]:.2f}" for name in ("rmse", "new_rmse", "linear_rmse")),
        f"{1e6 * row['seconds'] / row['num_points']:,.0f}",
      )
      for row in content["rows"]
    ],
  )
