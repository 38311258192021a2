"""The main job: train, restore and compare the systems, and show what TCA reads.

  python -m experiments.demo        (or: make demo)

A few minutes on 2 CPU cores. Trains TCA, Transformer + Cross Attention and
Perceiver IO on the copy task, evaluates each from its restored checkpoint, and
completes held-out real digits with the checkpoints in checkpoints/. All it
makes is under runs/demo; a second run finds its training done.
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
from experiments.common import checkpoints
from experiments.common import config as config_lib
from experiments.common import evaluate
from experiments.common import launch
from experiments.common import measure
from experiments.common import task as task_lib
from experiments.common import train

_OUT = flags.DEFINE_string("out", "runs/demo", "Where everything goes.")
_COPY_STEPS = flags.DEFINE_integer("copy_steps", 500, "Training steps of copy.")
_IMAGE_BATCHES = flags.DEFINE_integer(
  "image_batches", 0, "Batches of the image evaluation; 0: all held-out digits."
)

LONG_CONTEXT = 2**14
_ROOT = epath.Path(__file__).parent.parent


def main(argv: list[str]) -> None:
  """Runs both parts and prints where everything is."""
  del argv
  launch.quiet_libraries()
  out = epath.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  started = time.monotonic()
  try:
    copy, copy_table = copy_part(out)
    image, image_table, figure = image_part(out)
  except launch.EXPECTED as error:
    logging.error("%s", error)
    sys.exit(1)
  summary = {
    "copy": copy,
    "image": image,
    "figures": [str(figure)],
    "seconds": time.monotonic() - started,
    "seed": copy_task.CopyConfig().seed,
    **measure.provenance(),
  }
  config_lib.write_json(out / "summary.json", summary)
  (out / "tables.txt").write_text(f"{copy_table}\n\n{image_table}\n")
  print(f"\ntables:  {out / 'tables.txt'}\nJSON:    {out / 'summary.json'}")
  print(f"picture: {figure}")


def copy_part(out: epath.Path) -> tuple[dict[str, typing.Any], str]:
  """Trains and evaluates the systems on copy, T = 64; results and their table."""
  results, reads, long_reads = {}, {}, {}
  for name, title in config_lib.NAMES.items():
    config = copy_task.CopyConfig(
      model=name, num_steps=_COPY_STEPS.value, save_every=200
    )
    task = copy_task.CopyTask(config)
    workdir = out / f"copy_{name}"
    print(f"copy task, {title}: {config.num_steps} steps of {config.batch_size}")
    train.train(task, workdir)
    results[name] = evaluate.evaluate_workdir(task, workdir)
    _, params = checkpoints.restore_params(workdir, train.init_params(task))
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
        config_lib.NAMES[name],
        f"{result['accuracy']:.2%}",
        f"{result['tokens_fraction']:.1%}",
        f"{result['num_parameters']:,}",
        f"{result['train_seconds']:.0f}",
        f"{times[name]:.2f}",
        f"{long_times[name]:.2f}",
      )
    )
  text = measure.table(
    f"Copy task, T = 64, {_COPY_STEPS.value} steps of 32 sequences, one seed",
    (
      "system",
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


def image_part(out: epath.Path) -> tuple[dict[str, typing.Any], str, epath.Path]:
  """Evaluates the shipped checkpoints on held-out digits; results, table, figure."""
  summary, rows = {}, []
  figure = out / "image_tca" / image_completion.FIGURE
  for name, title in config_lib.NAMES.items():
    workdir = _ROOT / "checkpoints" / f"image_{name}"
    config = config_lib.load(image_completion.ImageConfig, workdir)
    config = dataclasses.replace(
      config, eval_batches=_IMAGE_BATCHES.value, data_dir=str(out / "data")
    )
    task = image_completion.ImageTask(config)
    target = out / f"image_{name}"
    target.mkdir(exist_ok=True)
    print(f"digits, {title}: restoring {workdir.name}, evaluating")
    result = evaluate.evaluate_workdir(task, workdir, target)
    keys = ("log_likelihood", "tokens_fraction", "tokens_fraction_largest")
    summary[name] = {key: result[key] for key in keys}
    if name == "tca":
      summary[name]["full_log_likelihood"] = result["full_log_likelihood"]
    rows.append(
      (
        title,
        f"{result['log_likelihood']:.3f}",
        f"{result['tokens_fraction']:.1%}",
        f"{result['tokens_fraction_largest']:.1%}",
        f"{result['step']:,}",
      )
    )
  text = measure.table(
    "Completion of held-out MNIST digits 0-4, shipped checkpoints, one seed",
    ("system", "log-likelihood", "tokens read", "at 196 tokens", "steps trained"),
    rows,
  )
  return summary, text, figure


def reader(
  task: task_lib.Task,
  params: typing.Any,
  coords: jax.Array,
  values: jax.Array,
  query_coords: jax.Array,
) -> tuple[Callable[[], typing.Any], int]:
  """A function that reads one context's memory, compiled; and its queries."""
  memory = task_lib.jitted(task, "index")(params, coords, values)
  return task_lib.reader(task, params, memory, query_coords), query_coords.shape[1]


def us_per_query(
  reads: dict[str, tuple[Callable[[], typing.Any], int]],
) -> dict[str, float]:
  """Median microseconds per query of each read, taken in turn."""
  seconds = measure.interleaved({name: read for name, (read, _) in reads.items()})
  return {name: 1e6 * seconds[name] / n for name, (_, n) in reads.items()}


if __name__ == "__main__":
  app.run(main)
