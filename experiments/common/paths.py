"""Quality and time against the number of paths that a query follows at once."""

import dataclasses
import typing

from etils import epath

from experiments.common import config as config_lib
from experiments.common import evaluate
from experiments.common import measure
from experiments.common import task as task_lib

PATHS_FILE = "paths.json"
NUM_PATHS = (1, 2, 4, 8)


def evaluate_paths(
  task: task_lib.Task, workdir: epath.Path, out: epath.Path
) -> list[dict[str, typing.Any]]:
  """Evaluates a run of TCA along more and more paths, and from all leaves.

  Prints a table and writes `paths.json`.

  Args:
    task: what was trained there.
    workdir: holds the checkpoints.
    out: where the file goes.

  Returns:
    A row for each number of paths, the last for all leaves.

  Raises:
    ConfigError: if the run is of another system.
    CheckpointError: if no checkpoint can be restored.
  """
  if task.config.model != "tca":
    raise config_lib.ConfigError(
      f"only TCA follows paths, {workdir} holds the model {task.config.model!r}"
    )
  step, params = evaluate.restore(task, workdir)
  metric, rows, reads, full = task.metric, [], {}, 0.0
  batch = next(task.eval_batches())
  index = task_lib.jitted(task, "index")
  memory = index(params, batch.coords, batch.values, batch.mask)
  for num_paths in NUM_PATHS:
    config = dataclasses.replace(task.config, num_paths=num_paths)
    own = type(task)(config)
    result = evaluate.evaluate(own, params)
    rows.append(
      {
        "num_paths": num_paths,
        metric: result[metric],
        "tokens_fraction": result["tokens_fraction"],
        "tokens_fraction_largest": own.largest_read / own.max_context,
      }
    )
    reads[num_paths] = task_lib.reader(own, params, memory, batch.query_coords)
    full = result["full_" + metric]
  rows.append({"num_paths": "all", metric: full})
  rows[-1] |= {"tokens_fraction": 1.0, "tokens_fraction_largest": 1.0}
  reads["all"] = task_lib.reader(
    task, params, memory, batch.query_coords, "read_leaves"
  )
  seconds = measure.interleaved(reads)
  for row in rows:
    row["us_per_query"] = 1e6 * seconds[row["num_paths"]] / batch.query_mask.size
  measure.table(
    f"{workdir.name}, step {step}: paths followed at once",
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
  config = dataclasses.asdict(task.config)
  content = {"rows": rows, "step": step, **measure.provenance(), "config": config}
  config_lib.write_json(out / PATHS_FILE, content)
  return rows
