"""Benchmark of whole maps: the shipped models and interpolation, timed in turn.

  python -m benchmarks.maps --maps=fault --num_context=1000,10000,100000

All of them predict the same held-out points of a map from the same context. What they
compute once for a context, such as a memory or a fit, is not timed.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
import typing

from absl import flags
import jax
import numpy as np

from benchmarks import common
from experiments import terrain
from experiments import terrain_scaling
from experiments.common import interpolation
from experiments.common import kriging
from experiments.common import tables
from experiments.common import timing
from experiments.common.systems import TITLES
from experiments.common.task import Restored
from experiments.report_pages.ratios import Row

# The shipped models of each map start with this.
CHECKPOINTS = {
  "fault": "checkpoints/terrain",
  "airports": "checkpoints/terrain_airports",
}
MODELS = ("relative_tca", "tca", "ca", "perceiver")


def measure(
  name: str,
  restored: Mapping[str, Restored[terrain.TerrainTask]],
  num_context: int,
  num_targets: int,
  repeats: int,
) -> list[Row]:
  """Measures the time and the error of all predictions from one context.

  Args:
    name: the map, of `CHECKPOINTS`.
    restored: its shipped models, by `MODELS`.
    num_context: the largest number of points in the context.
    num_targets: the largest number of points to predict.
    repeats: the number of rounds of timing.

  Returns:
    A row for each of `MODELS`, for local kriging and for linear interpolation.
  """
  points = restored[MODELS[0]].task.map
  context = points.train.take_first(num_context)
  targets = points.held_out.take_first(num_targets)
  known, queries = np.asarray(context.coords), np.asarray(targets.coords)
  predict: dict[str, Callable[[], typing.Any]] = {}
  for model, found in restored.items():
    inputs = found.task.model, found.params
    memory, _ = terrain_scaling.index_context(*inputs, context)
    reader = found.task.system.evaluation_reader(found.task.config)
    sizes = len(known), len(queries)
    server = terrain_scaling.make_server(*inputs, memory, *sizes, reader)
    predict[model] = functools.partial(server, queries[None])
  fit = kriging.fit(known, np.asarray(context.values)[:, 0])
  predict["kriging"] = functools.partial(fit.predict, queries)
  predict["linear"] = functools.partial(
    interpolation.triangulate(known).interpolate,
    points.to_units(context.values),
    queries,
  )

  def in_units(system: str) -> np.ndarray:
    """The mean that a system predicts, in the units of the map."""
    found = predict[system]()
    if system == "linear":
      return found
    if system in MODELS:
      found = jax.tree.map(lambda x: x[0], found[0])
    return points.predicted_in_units(found)[0]

  truth = points.to_units(targets.values)
  seconds = timing.interleaved(predict, repeats)
  return [
    {
      "map": name,
      "system": system,
      "num_tokens": len(known),
      "num_queries": len(queries),
      "us_per_query": 1e6 * seconds[system] / len(queries),
      "rmse": interpolation.rmse(in_units(system), truth),
      "unit": points.unit,
    }
    for system in predict
  ]


def summarise(rows: list[Row]) -> str:
  """Makes the table of times and errors."""
  lines = [
    (
      row["map"],
      f"{row['num_tokens']:,}",
      TITLES[row["system"]],
      f"{row['us_per_query']:,.1f}",
      f"{row['rmse']:.1f} {row['unit']}",
    )
    for row in rows
  ]
  return tables.table("maps", ("map", "points", "model", "us / query", "RMSE"), lines)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of the benchmark."""
  common.define_names(values, "maps", list(CHECKPOINTS), "Maps")
  sizes = "Largest numbers of points in the context"
  common.define_ints(values, "num_context", [1_000, 10_000, 100_000], sizes)
  targets = "Largest number of held-out points to predict."
  common.define_counts(values, ("num_targets", 8192, targets))
  common.define_shared_flags(values)


def main(values: flags.FlagValues) -> None:
  """Measures all maps and sizes, and writes maps.json and .txt."""
  rows: list[Row] = []
  for name in values.maps:
    restored = {
      model: terrain.PROGRAM.restore(f"{CHECKPOINTS[name]}_{model}") for model in MODELS
    }
    for num_context in common.ints(values, "num_context"):
      rows += measure(name, restored, num_context, values.num_targets, values.repeats)
      common.keep(values, "maps", rows)
      print(f"{name}, {rows[-1]['num_tokens']:,} points", flush=True)
  common.finish(values, "maps", rows, summarise(rows))


if __name__ == "__main__":
  common.launch(define_flags, main)
