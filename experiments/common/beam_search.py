"""Evaluator of quality and time against the beam width."""

import dataclasses
import functools
import typing

from etils import epath
import jax

from experiments.common import evaluate
from experiments.common import systems
from experiments.common import tables
from experiments.common import task as task_lib
from experiments.common import timing
from experiments.common import workdir as workdir_lib

NUM_PATHS = (1, 2, 4, 8)


class BeamWidths(task_lib.Evaluator[task_lib.Task]):
  """Evaluates TCA with several beam widths, and from all leaves; writes paths.json."""

  file = "paths.json"
  needs_tree = True
  shared = True
  mode = "paths"

  def evaluate(
    self, restored: task_lib.Restored[task_lib.Task], path: epath.Path
  ) -> dict[str, typing.Any]:
    """Prints a table; returns "rows", one for each beam width, the last for all leaves.

    Args:
      restored: the trained model.
      path: path of the file.
    """
    task, params = restored.task, restored.params
    metric, rows, full = task.metric, [], 0.0
    for num_paths in NUM_PATHS:
      wider = type(task)(dataclasses.replace(task.config, num_paths=num_paths))
      result = evaluate.evaluate(wider, params)
      rows.append(
        {
          "num_paths": num_paths,
          metric: result[metric],
          "tokens_fraction": result["tokens_fraction"],
          "tokens_fraction_largest": wider.largest_read / wider.max_context,
        }
      )
      full = result["full_" + metric]
    rows.append({"num_paths": "all", metric: full})
    rows[-1] |= {"tokens_fraction": 1.0, "tokens_fraction_largest": 1.0}
    for row, us in zip(rows, _us_per_query(task, params), strict=True):
      row["us_per_query"] = us
    _print(f"{restored.workdir.name}, step {restored.step}: beam widths", metric, rows)
    source = evaluate.result_source(task)
    content = {"rows": rows, "step": restored.step, **source}
    workdir_lib.write_json(path, content)
    return content


def _us_per_query(task: task_lib.Task, params: typing.Any) -> list[float]:
  """Microseconds per query with each of the beam widths, and from all leaves."""
  batch = next(iter(task.eval_batches()))
  memory = task.index(params, batch.coords, batch.values, batch.mask)
  trained = next(iter(task.system.readers.values()))
  readers = [*map(trained.along, NUM_PATHS), systems.FULL]
  reads = {
    reader.title: timed_read(task, params, memory, batch.query_coords, reader)
    for reader in readers
  }
  seconds = timing.interleaved(reads)
  return [1e6 * seconds[reader.title] / batch.query_mask.size for reader in readers]


def timed_read(
  task: task_lib.Task,
  params: typing.Any,
  memory: typing.Any,
  query_coords: jax.Array,
  reader: systems.Reader,
) -> typing.Callable[[], typing.Any]:
  """A compiled call that predicts from memories; it returns only the predictions."""
  read = functools.partial(reader, task.model)
  compiled = jax.jit(lambda *inputs: read(*inputs).output)
  return lambda: compiled(params, memory, query_coords)


def _print(title: str, metric: str, rows: list[dict[str, typing.Any]]) -> None:
  tables.table(
    title,
    ("paths", metric, "tokens read", "at the largest context", "us/query"),
    [
      (
        str(row["num_paths"]),
        f"{row[metric]:.4f}",
        f"{row['tokens_fraction']:.1%}",
        f"{row['tokens_fraction_largest']:.1%}",
        f"{row['us_per_query']:.2f}",
      )
      for row in rows
    ],
  )
