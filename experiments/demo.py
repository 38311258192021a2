"""Demo: train, restore and compare the models, and show the nodes that TCA reads.

  python -m experiments.demo        (or: make demo)

Takes a few minutes on two CPU cores. It trains TCA, Transformer + Cross Attention and
Perceiver IO on the copy task and evaluates each from its restored checkpoint. Then it
completes held-out digits, and a real map from 1 % of its points, with the models in
checkpoints/. All results are written to runs/demo; a second run reuses the trained
models there.
"""

from collections.abc import Callable
import dataclasses
import sys
import time
import typing

from absl import app
from absl import flags
from absl import logging
from etils import epath
import jax
import jax.numpy as jnp

from experiments import copy_task
from experiments import image_completion
from experiments import terrain
from experiments import terrain_scaling
from experiments.common import beam_search
from experiments.common import evaluate
from experiments.common import launch
from experiments.common import paths
from experiments.common import provenance
from experiments.common import tables
from experiments.common import task as task_lib
from experiments.common import timing
from experiments.common import train
from experiments.common import workdir as workdir_lib
from experiments.common.systems import PUBLISHED

LONG_CONTEXT = 2**14
_ROOT = epath.Path(__file__).parent.parent


def run(out: epath.Path, copy_steps: int, image_batches: int) -> None:
  """Runs all parts, and prints the paths of all results.

  Args:
    out: folder for all results.
    copy_steps: number of training steps of the copy task.
    image_batches: number of batches of the image evaluation; 0: all held-out digits.

  Raises:
    UserError: if the workdirs in `out` or the checkpoints cannot be used.
  """
  out.mkdir(parents=True, exist_ok=True)
  started = time.monotonic()
  copy, copy_table = copy_part(out, copy_steps)
  image, image_table, completion = image_part(out, image_batches)
  completed_map, map_table, terrain_figure = map_part(out)
  figures = [completion, terrain_figure]
  summary = {
    "copy": copy,
    "image": image,
    "map": completed_map,
    "figures": [str(figure) for figure in figures],
    "seconds": time.monotonic() - started,
    "seed": copy_task.CopyConfig().seed,
    **provenance.provenance(),
  }
  workdir_lib.write_json(out / "summary.json", summary)
  (out / "tables.txt").write_text(
    "\n\n".join((copy_table, image_table, map_table)) + "\n"
  )
  print(f"\ntables:  {out / 'tables.txt'}\nJSON:    {out / 'summary.json'}")
  for figure in figures:
    print(f"picture: {figure}")


def copy_part(out: epath.Path, copy_steps: int) -> tuple[dict[str, typing.Any], str]:
  """Trains and evaluates the models on the copy task, T = 64.

  Args:
    out: folder for the workdirs.
    copy_steps: number of training steps.

  Returns:
    The results by model, and their table.
  """
  results, reads, long_reads = {}, {}, {}
  for name, system in PUBLISHED.items():
    config = copy_task.CopyConfig(model=name, num_steps=copy_steps, save_every=200)
    task = copy_task.CopyTask(config)
    workdir = out / f"copy_{name}"
    print(f"copy task, {system.title}: {config.num_steps} steps of {config.batch_size}")
    train.train(task, workdir)
    results[name] = evaluate.evaluate_workdir(task, workdir)[evaluate.EVAL_FILE]
    params = evaluate.restore(task, workdir).params
    batch = next(task.eval_batches())
    reads[name] = reader(
      task, params, batch.coords[:1], batch.values[:1], batch.query_coords[:1]
    )
    positions = jnp.arange(LONG_CONTEXT + 256, dtype=jnp.float32)[None, :, None]
    values = jax.random.normal(
      jax.random.key(0), (1, LONG_CONTEXT, batch.values.shape[-1])
    )
    long_reads[name] = reader(
      task, params, positions[:, :LONG_CONTEXT], values, positions[:, LONG_CONTEXT:]
    )
  times, long_times = us_per_query(reads), us_per_query(long_reads)
  summary, rows = {}, []
  for name, result in results.items():
    summary[name] = {
      key: result[key]
      for key in ("accuracy", "tokens_fraction", "num_parameters", "train_seconds")
    } | {"us_per_query": times[name], "us_per_query_16384": long_times[name]}
    rows.append(
      (
        PUBLISHED[name].title,
        f"{result['accuracy']:.2%}",
        f"{result['tokens_fraction']:.1%}",
        f"{result['num_parameters']:,}",
        f"{result['train_seconds']:.0f}",
        f"{times[name]:.2f}",
        f"{long_times[name]:.2f}",
      )
    )
  text = tables.table(
    f"Copy task, T = 64, {copy_steps} steps of 32 sequences, one seed",
    (
      "model",
      "accuracy",
      "tokens read",
      "parameters",
      "training s",
      "us/query",
      "us/query, 2^14 tokens",
    ),
    rows,
  )
  return summary, text


def image_part(
  out: epath.Path, image_batches: int
) -> tuple[dict[str, typing.Any], str, epath.Path]:
  """Evaluates the shipped image models on held-out digits.

  Args:
    out: folder for results and the prepared data set.
    image_batches: number of evaluation batches; 0: all held-out digits.

  Returns:
    The results by model, their table, and the path of the figure.
  """
  summary, rows = {}, []
  figure = out / "image_tca" / image_completion.CompletionFigure.file
  for name, system in PUBLISHED.items():
    workdir = _ROOT / "checkpoints" / f"image_{name}"
    config = workdir_lib.load(image_completion.ImageConfig, workdir)
    config = dataclasses.replace(
      config, eval_batches=image_batches, data_dir=str(out / "data")
    )
    task = image_completion.ImageTask(config)
    print(f"digits, {system.title}: restoring {workdir.name}, evaluating")
    contents = evaluate.evaluate_workdir(task, workdir, out / f"image_{name}")
    result = contents[evaluate.EVAL_FILE]
    keys = ("log_likelihood", "tokens_fraction", "tokens_fraction_largest")
    keys += ("full_log_likelihood",) if system.has_tree else ()
    summary[name] = {key: result[key] for key in keys}
    rows.append(
      (
        system.title,
        f"{result['log_likelihood']:.3f}",
        f"{result['tokens_fraction']:.1%}",
        f"{result['tokens_fraction_largest']:.1%}",
        f"{result['step']:,}",
      )
    )
  text = tables.table(
    "Completion of held-out MNIST digits 0-4, shipped checkpoints, one seed",
    ("model", "log-likelihood", "tokens read", "at 196 tokens", "steps trained"),
    rows,
  )
  return summary, text, figure


def map_part(
  out: epath.Path,
) -> tuple[list[dict[str, typing.Any]], str, epath.Path]:
  """Completes a map from 1 % of its points with the shipped relative model.

  Args:
    out: folder for results.

  Returns:
    The rows of the model, of local kriging and of linear interpolation; their table;
    and the path of the figure.
  """
  workdir = _ROOT / "checkpoints" / "terrain_relative_tca"
  config = workdir_lib.load(terrain.TerrainConfig, workdir)
  sizes = dict(context_sizes="1386", map_side=100, eval_batches=1)
  task = terrain.TerrainTask(dataclasses.replace(config, **sizes))
  print(f"map, {task.system.title}: restoring {workdir.name}, evaluating")
  contents = evaluate.evaluate_workdir(task, workdir, out / "map")
  content = contents[terrain_scaling.SCALING_FILE]
  rows = [content["rows"][0], *reversed(content["baselines"])]
  title = "Elevation (fault) from 1,386 of its points, held-out points, one seed"
  text = terrain_scaling.table_of(title, task.map.unit, rows)
  keys = ("system", "log_likelihood", "rmse", "us_per_query")
  summary = [{key: row[key] for key in keys if key in row} for row in rows]
  return summary, text, out / "map" / terrain_scaling.MapFigure.file


def reader(
  task: task_lib.Task,
  params: typing.Any,
  coords: jax.Array,
  values: jax.Array,
  query_coords: jax.Array,
) -> tuple[Callable[[], typing.Any], int]:
  """A compiled function that reads the memory of one context; its number of queries."""
  memory = task.index(params, coords, values)
  config_reader = task.system.evaluation_reader(task.config)
  read = beam_search.timed_read(task, params, memory, query_coords, config_reader)
  return read, query_coords.shape[1]


def us_per_query(
  reads: dict[str, tuple[Callable[[], typing.Any], int]],
) -> dict[str, float]:
  """Median microseconds per query of each read, timed in turn."""
  seconds = timing.interleaved({name: read for name, (read, _) in reads.items()})
  return {name: 1e6 * seconds[name] / n for name, (_, n) in reads.items()}


def main(argv: list[str]) -> None:
  """Runs the demo with the flags of this process."""
  del argv
  logging.set_verbosity(logging.WARNING)
  values = flags.FLAGS
  out, steps, batches = values.out, values.copy_steps, values.image_batches

  def program() -> None:
    paths.check_local(out, "--out")  # it contains prepared data sets
    run(epath.Path(out), steps, batches)

  sys.exit(launch.report(program))


if __name__ == "__main__":
  flags.DEFINE_string("out", "runs/demo", "Folder for all results.")
  flags.DEFINE_integer(
    "copy_steps", 500, "Number of training steps of the copy task.", lower_bound=1
  )
  flags.DEFINE_integer(
    "image_batches",
    0,
    "Number of batches of the image evaluation; 0: all held-out digits.",
    lower_bound=0,
  )
  app.run(main)
