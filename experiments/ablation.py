"""Ablations: named grids of runs, their table and their learning curves.

  python -m experiments.ablation --grid=recipe --out=runs/ablation

Trains the rows of a grid one after the other, each in its own workdir, evaluates them
on a validation seed, and writes OUT/<grid>.json and OUT/<grid>.png. The same command
resumes a grid that was stopped. The grids "regression" and "relative_functions" use GP
regression, "pixels" image completion and "relative_map" the map; all others use the copy
task.
"""

from collections.abc import Callable
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
from experiments import terrain
from experiments import terrain_scaling
from experiments.common import evaluate
from experiments.common import metrics
from experiments.common import paths
from experiments.common import tables
from experiments.common import task as task_lib
from experiments.common import train
from experiments.common import workdir as workdir_lib
from experiments.common.config import Config
from experiments.common.errors import UserError
from experiments.figures import curves
from experiments.programs import PROGRAMS

VALIDATION_SEED = 2  # evaluations elsewhere use the test seed, 1

Rows = Mapping[str, Config]  # rows of one grid, by name

TASKS: dict[type[Config], type[task_lib.Task]] = {
  program.config_class: program.task_class for program in PROGRAMS.values()
}


def copy_config(
  sequence_length: int = 128, num_steps: int = 400, **options: typing.Any
) -> copy_task.CopyConfig:
  """A row of the copy task."""
  return copy_task.CopyConfig(
    sequence_length=sequence_length, num_steps=num_steps, **options
  )


def published_copy_config(sequence_length: int, num_steps: int) -> copy_task.CopyConfig:
  """A row of the copy task with the paper's recipe, its schedule in fewer steps."""
  return copy_task.CopyConfig.from_recipe(
    "paper", sequence_length=sequence_length, num_steps=num_steps
  )


def digits_config(**options: typing.Any) -> image_completion.ImageConfig:
  """A row of image completion."""
  return image_completion.ImageConfig(num_steps=600, **options)


def functions_config(**options: typing.Any) -> gp_regression.GPConfig:
  """A row of GP regression by a relative model, along one path."""
  row: dict[str, typing.Any] = dict(
    model="relative_tca",
    num_layers=0,
    beam_width=1,
    num_steps=1_000,
    batch_size=16,
    eval_batches=300,
  )
  return gp_regression.GPConfig(**row | options)


def map_config(**options: typing.Any) -> terrain.TerrainConfig:
  """A row of the map by a relative model; it predicts the validation tenth."""
  row: dict[str, typing.Any] = dict(
    model="relative_tca",
    summary_width=0,
    densest=0.5,
    learning_rate=2e-3,
    num_steps=250,
    validation=True,
    baselines=False,
    num_targets=2048,
    map_side=100,
    eval_batches=50,
  )
  return terrain.TerrainConfig(**row | options)


# What nodes show to a query, which nodes it reads, and how: rows of relative models.
RELATIVE: dict[str, dict[str, typing.Any]] = {
  "no kriging": dict(kriged_nodes=0),
  "statistics only": dict(summary_width=0),
  "statistics and learned summaries": dict(summary_width=16),
  "learned summaries only": dict(
    summary_width=16, values_in_tokens=False, local_units=False, kriged_nodes=0
  ),
  "geometry in tokens only": dict(geometry_in_logits=False),
  "geometry in logits only": dict(geometry_in_tokens=False),
  "self-attention among the nodes": dict(self_layers=1),
  "1 border token": dict(border_tokens=1),
  "2 border tokens": dict(border_tokens=2),
  "1 path": dict(beam_width=1),
  "2 paths": dict(beam_width=2),
  "4 paths": dict(beam_width=4),
  "8 paths": dict(beam_width=8),
}


def relative_rows(
  make: Callable[..., Config], others: Mapping[str, dict[str, typing.Any]]
) -> dict[str, Config]:
  """The rows `RELATIVE` that differ from the default of a task, and others."""
  default = make()
  rows = {name: make(**options) for name, options in {**RELATIVE, **others}.items()}
  return {"default": default} | {k: row for k, row in rows.items() if row != default}


# Published batches are larger than ours. The published recipe gets fewer steps, so that
# it sees as many sequences or functions and takes about as long.
GRIDS: dict[str, Rows] = {
  "recipe": {
    "default": copy_config(),
    "no skip connection for positions": copy_config(position_skip=False),
    "no routing loss": copy_config(routing_weight=0.0),
    "teacher temperature 1": copy_config(teacher_temperature=1.0),
    "no REINFORCE": copy_config(lambda_rl=0.0),
    "no leaf loss": copy_config(lambda_ca=0.0),
    "no gradient through the tree": copy_config(tree_gradient=False),
    "baseline 0": copy_config(baseline="constant"),
    "baseline from the leaves": copy_config(baseline="leaf"),
    "reward: likelihood": copy_config(reward="likelihood"),
    "policy shares the attention's weights": copy_config(share_policy=True),
    "dropout 0.1": copy_config(dropout=0.1),
    "learning rate 5e-4": copy_config(learning_rate=5e-4),
    "published recipe": published_copy_config(128, 100),
    "published recipe, 8x the sequences": published_copy_config(128, 800),
  },
  "tree": {
    "given order, b = 2": copy_config(),
    "k-d tree": copy_config(order="kd"),
    "random order": copy_config(order="random"),
    "b = 4": copy_config(branch_factor=4),
    "b = 8": copy_config(branch_factor=8),
  },
  "latents": {
    "TCA": copy_config(),
    "Cross Attention": copy_config(model="ca"),
    **{
      f"Perceiver IO, {n} latents": copy_config(model="perceiver", num_latents=n)
      for n in (7, 16, 32, 64, 128)
    },
  },
  "sensitivity": {
    "default": copy_config(),
    **{
      f"lambda_RL = {weight:g}": copy_config(lambda_rl=weight)
      for weight in (0.0, 0.1, 10.0)
    },
    **{
      f"learning rate {rate:g}": copy_config(learning_rate=rate)
      for rate in (1e-3, 4e-3)
    },
  },
  "length": {
    "default": copy_config(256, 500),
    "no skip connection for positions": copy_config(256, 500, position_skip=False),
    "teacher temperature 1": copy_config(256, 500, teacher_temperature=1.0),
    "published recipe": published_copy_config(256, 125),
  },
  "regression": {
    "default": gp_regression.GPConfig(num_steps=6_000, eval_batches=600),
    "published recipe": gp_regression.GPConfig.from_recipe(
      "paper", num_steps=3_000, eval_batches=300
    ),
  },
  "pixels": {
    "k-d tree": digits_config(),
    "one axis": digits_config(order="axis"),
    "random projection": digits_config(order="random_projection"),
    "random order": digits_config(order="random"),
    "k-d tree, b = 4": digits_config(branch_factor=4),
  },
  "relative_functions": relative_rows(
    functions_config,
    {
      "all tokens": dict(model="relative_ca"),
      "encoder of 6 layers": dict(num_layers=6),
      "learned policy that sees distances": dict(model="tca", sees_distance=True),
      "published TCA without encoder": dict(model="tca"),
    },
  ),
  "relative_map": relative_rows(
    map_config,
    {
      "1 path, 2 border tokens": dict(border_tokens=2, beam_width=1),
      "2 paths, 2 border tokens": dict(border_tokens=2, beam_width=2),
      "learned policy that sees distances": dict(model="tca", sees_distance=True),
      "published TCA": dict(model="tca"),
    },
  ),
}


def run(rows: Rows, folder: epath.Path) -> list[dict[str, typing.Any]]:
  """Trains the rows that are not finished, and evaluates all.

  Args:
    rows: rows of a grid.
    folder: folder for the workdirs.

  Returns:
    For each row: its name ("row"), the content of eval.json, the number of training
    examples ("examples") and "curve", a list of (examples, seconds, reward). For a map
    also "map_num_context", "map_log_likelihood", "map_rmse" and "unit", of predictions
    from the largest context.
  """
  results = []
  for name, config in rows.items():
    workdir = folder / name.replace(" ", "_").replace(":", "").replace(",", "")
    task_class = TASKS[type(config)]
    task = task_class(dataclasses.replace(config, eval_seed=VALIDATION_SEED))
    train.train(task, workdir)
    contents = evaluate.evaluate_workdir(task, workdir)
    batch_size = config.batch_size
    results.append(
      {
        "row": name,
        **contents[evaluate.EVAL_FILE],
        **_on_the_whole_map(contents),
        "examples": config.num_steps * batch_size,
        "curve": [
          [record["step"] * batch_size, record["seconds"], record["reward"]]
          for record in metrics.read_metrics(workdir)
        ],
      }
    )
  return results


def _on_the_whole_map(
  contents: Mapping[str, dict[str, typing.Any]],
) -> dict[str, typing.Any]:
  """From the largest context of a map: "map_log_likelihood", "map_rmse", "unit"."""
  scaling = contents.get(terrain_scaling.MapScaling.file)
  if scaling is None:
    return {}
  largest = max(row["num_context"] for row in scaling["rows"])
  row = next(row for row in scaling["rows"] if row["num_context"] == largest)
  scores = {f"map_{key}": row[key] for key in ("num_context", "log_likelihood", "rmse")}
  return scores | {"unit": scaling["unit"]}


def run_grid(name: str, out: epath.Path) -> None:
  """Runs a grid, prints its table and writes its JSON and figure.

  Args:
    name: key of `GRIDS`.
    out: folder for workdirs and results.
  """
  results = run(GRIDS[name], out / name)
  header, rows = tables.of_grid(results)
  tables.table(f"Grid {name!r}, validation seed, one seed", header, rows)
  workdir_lib.write_json(out / f"{name}.json", results)
  curves.plot_curves(results, out / f"{name}.png")


def main(argv: list[str]) -> None:
  """Runs the grid that the flags name."""
  del argv
  logging.set_verbosity(logging.WARNING)
  try:
    run_grid(flags.FLAGS.grid, paths.to_path(flags.FLAGS.out, "--out"))
  except UserError as error:
    logging.error("%s", error)
    sys.exit(1)


if __name__ == "__main__":
  flags.DEFINE_enum("grid", "recipe", list(GRIDS), "Name of the grid to run.")
  flags.DEFINE_string("out", "runs/ablation", "Folder for workdirs and results.")
  app.run(main)
