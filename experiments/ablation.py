"""Ablations: named grids of runs, their learning curves and their table.

  python -m experiments.ablation --grid=recipe --out=runs/ablation

trains the rows of a grid one after the other, each in a workdir of its own, evaluates
each on the validation seed, and writes OUT/<grid>.json and .png once all are done. The
same command goes on where it stopped. The grid "regression" is of GP regression and
"pixels" of image completion; all others are of the copy task.
"""

from collections.abc import Mapping
import dataclasses
import sys
import typing

from absl import app
from absl import flags
from absl import logging
from etils import epath

from experiments import copy_task
from experiments import gp_regression
from experiments import image_completion
from experiments.common import config as config_lib
from experiments.common import evaluate
from experiments.common import launch
from experiments.common import measure
from experiments.common import metrics
from experiments.common import plots
from experiments.common import task as task_lib
from experiments.common import train

VALIDATION_SEED = 2  # the evaluation's default is the test seed

Rows = Mapping[str, config_lib.Config]  # of one task, by name

TASKS: dict[type[config_lib.Config], type[task_lib.Task]] = {
  copy_task.CopyConfig: copy_task.CopyTask,
  gp_regression.GPConfig: gp_regression.GPTask,
  image_completion.ImageConfig: image_completion.ImageTask,
}


def _copy(
  sequence_length: int = 128, num_steps: int = 400, **options: typing.Any
) -> copy_task.CopyConfig:
  return copy_task.CopyConfig(
    sequence_length=sequence_length, num_steps=num_steps, **options
  )


def _published(sequence_length: int, num_steps: int) -> copy_task.CopyConfig:
  """The paper's recipe, its schedule compressed to fewer steps."""
  return copy_task.CopyConfig.paper(
    sequence_length=sequence_length, num_steps=num_steps
  )


def _digits(**options: typing.Any) -> image_completion.ImageConfig:
  return image_completion.ImageConfig(num_steps=600, **options)


# Published batches are larger than ours: fewer steps take as many sequences or
# functions, and about as long.
GRIDS: dict[str, Rows] = {
  "recipe": {
    "default": _copy(),
    "positions go through the MLP alone": _copy(position_skip=False),
    "no routing loss": _copy(routing_weight=0.0),
    "teacher temperature 1": _copy(teacher_temperature=1.0),
    "no REINFORCE": _copy(lambda_rl=0.0),
    "no leaf loss": _copy(lambda_ca=0.0),
    "no gradient through the tree": _copy(tree_gradient=False),
    "baseline 0": _copy(baseline="constant"),
    "baseline from the leaves": _copy(baseline="leaf"),
    "reward: likelihood": _copy(reward="likelihood"),
    "policy shares the attention's weights": _copy(share_policy=True),
    "dropout 0.1": _copy(dropout=0.1),
    "learning rate 5e-4": _copy(learning_rate=5e-4),
    "published recipe": _published(128, 100),
    "published recipe, 8x the sequences": _published(128, 800),
  },
  "tree": {
    "given order, b = 2": _copy(),
    "k-d tree": _copy(tree_order="kd"),
    "random order": _copy(tree_order="random"),
    "b = 4": _copy(branch_factor=4),
    "b = 8": _copy(branch_factor=8),
  },
  "latents": {
    "TCA": _copy(),
    "Cross Attention": _copy(model="ca"),
    **{
      f"Perceiver IO, {n} latents": _copy(model="perceiver", num_latents=n)
      for n in (7, 16, 32, 64, 128)
    },
  },
  "sensitivity": {
    "default": _copy(),
    **{
      f"lambda_RL = {weight:g}": _copy(lambda_rl=weight) for weight in (0.0, 0.1, 10.0)
    },
    **{f"learning rate {rate:g}": _copy(learning_rate=rate) for rate in (1e-3, 4e-3)},
  },
  "length": {
    "default": _copy(256, 500),
    "positions go through the MLP alone": _copy(256, 500, position_skip=False),
    "teacher temperature 1": _copy(256, 500, teacher_temperature=1.0),
    "published recipe": _published(256, 125),
  },
  "regression": {
    "default": gp_regression.GPConfig(num_steps=6_000, eval_batches=600),
    "published recipe": gp_regression.GPConfig.paper(num_steps=3_000, eval_batches=300),
  },
  "pixels": {
    "k-d tree": _digits(),
    "one axis": _digits(tree_order="axis"),
    "random projection": _digits(tree_order="random_projection"),
    "random order": _digits(tree_order="random"),
    "k-d tree, b = 4": _digits(branch_factor=4),
  },
}


def run(rows: Rows, folder: epath.Path) -> list[dict[str, typing.Any]]:
  """Trains the rows that are not finished, and evaluates all; a result for each."""
  results = []
  for name, config in rows.items():
    workdir = folder / name.replace(" ", "_").replace(":", "").replace(",", "")
    task_class = TASKS[type(config)]
    task = task_class(dataclasses.replace(config, eval_seed=VALIDATION_SEED))
    train.train(task, workdir)
    result = evaluate.evaluate_workdir(task, workdir)
    logged = metrics.read_metrics(workdir)
    batch_size = config.batch_size
    results.append(
      {
        "row": name,
        **result,
        "examples": config.num_steps * batch_size,
        "curve": [
          [record["step"] * batch_size, record["seconds"], record["reward"]]
          for record in logged
        ],
      }
    )
  return results


HEADER = ("row", "quality", "ReTreever-Full", "tokens read", "examples", "seconds")


def cells(result: dict[str, typing.Any]) -> list[str]:
  """What a table tells of a row: see `HEADER`."""
  return [
    result["row"],
    measure.quality(result),
    measure.quality(result, "full_"),
    f"{result['tokens_fraction']:.1%}",
    f"{result['examples']:,}",
    f"{result['train_seconds']:.0f}",
  ]


def main(argv: list[str]) -> None:
  """Runs the grid that the flags name."""
  del argv
  launch.quiet_libraries()
  name, out = flags.FLAGS.grid, epath.Path(flags.FLAGS.out)
  try:
    results = run(GRIDS[name], out / name)
  except launch.EXPECTED as error:
    logging.error("%s", error)
    sys.exit(1)
  measure.table(
    f"Grid {name!r}, validation seed, one seed",
    HEADER,
    [tuple(cells(result)) for result in results],
  )
  config_lib.write_json(out / f"{name}.json", results)
  plots.plot_curves(results, out / f"{name}.png")


if __name__ == "__main__":
  flags.DEFINE_enum("grid", "recipe", list(GRIDS), "Which.")
  flags.DEFINE_string("out", "runs/ablation", "Where everything goes.")
  app.run(main)
