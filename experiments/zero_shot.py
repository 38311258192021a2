"""The pretrained model on real tables that it has never seen, beside baselines.

  python -m experiments.zero_shot

predicts the rows of each table in `data/shipped_tables.py` from others, a fifth at a
time, by the model of `experiments.surfaces` without training, by linear interpolation
and by local kriging. Of a large table it predicts only one fifth, and also from 1,000
rows only. It writes results/zero_shot.json, and takes a few minutes on two CPU cores.
The packages with the tables must be installed; their command is in
`data/shipped_tables.py`.
"""

from collections.abc import Sequence
import sys
import time
import typing

from absl import app
from absl import flags
from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from experiments import points_evaluation
from experiments import points_prediction
from experiments.common import flags as flags_lib
from experiments.common import launch
from experiments.common import provenance
from experiments.common import systems
from experiments.common import workdir as workdir_lib
from experiments.common.errors import CheckpointError
from experiments.data import point_sets
from experiments.data import shipped_tables
from experiments.data import windows

_HELD_OUT = 0.2
_FEW = 1000  # context points of a large table, beside all of them
_LARGE = 5000  # training points of a large table
_NUM_FOLDS = 5  # of the others


def compare(
  names: Sequence[str],
  model_folder: epath.PathLike = points_prediction.PRETRAINED,
  num_targets: int = 8192,
) -> dict[str, typing.Any]:
  """Compares the pretrained model with the baselines, and prints a table for each table.

  Args:
    names: keys of `shipped_tables.TABLES`.
    model_folder: folder of the saved model.
    num_targets: largest number of held-out rows to predict at a time.

  Returns:
    "tables", by name, what is known of each table; "rows", one for each table, context
    size and method, as those of scores.json; "step", the training steps of the model;
    "seconds", of all; and the origin of the result.

  Raises:
    CheckpointError: if the folder has no pretrained model.
    ConfigError: if a name is unknown.
    DataError: if the package of a table is not installed.
  """
  flags_lib.check_names("tables", names, shipped_tables.TABLES)
  started = time.monotonic()
  model, params, info = points_prediction.load_model(model_folder)
  if info.get("task") != points_prediction.SURFACES:
    raise CheckpointError(
      f"{model_folder} is not a model of experiments.surfaces: it was trained on a table"
    )
  loaded = {name: shipped_tables.TABLES[name].load() for name in names}
  reader = points_evaluation.pretrained_reader()
  described, rows = {}, []
  for name, table in loaded.items():
    shipped = shipped_tables.TABLES[name]
    points = point_sets.build(table, shipped.columns, _HELD_OUT, "error")
    described[name] = {
      "title": shipped.title,
      "requirement": shipped.requirement,
      "licence": shipped.licence,
      "unit": shipped.unit,
      "num_rows": len(points.coords),
      "value_std": float(points.values[:, 0].std()),
    }
    found = []
    for folds in _splits(points, num_targets):
      scored = [
        points_evaluation.score(
          model,
          params,
          reader,
          points.scaling,
          context,
          held_out,
          systems.PRETRAINED,
        )
        for context, held_out in folds
      ]
      found += [_pool(rows_of_folds) for rows_of_folds in zip(*scored, strict=True)]
    rows += [{"table": name, **row} for row in found]
    print(f"\n{points_evaluation.table_of(shipped.title, found)}\n", flush=True)
  return {
    "tables": described,
    "rows": rows,
    "step": info["step"],
    "seconds": time.monotonic() - started,
    **provenance.provenance(),
  }


def _splits(
  points: point_sets.PointSet, num_targets: int
) -> list[list[tuple[windows.Points, windows.Points]]]:
  """The contexts and held-out points of a table, a list of folds for each context size.

  A small table has five folds, in which every point is held out once; otherwise its
  scores would depend on few points. A large one has a fold, and two context sizes.
  """
  most = len(points.train.coords)
  if most > _LARGE:
    held_out = points.held_out.take_first(num_targets)
    return [[(points.train.take_first(size), held_out)] for size in (_FEW, most)]
  every = jax.tree.map(
    lambda *x: jnp.concatenate(x),
    points.train.take_first(None),
    points.held_out.take_first(None),
  )
  fold = np.arange(len(every.coords)) * _NUM_FOLDS // len(every.coords)
  # Every fold has a context of one size.
  size = len(fold) - int(np.bincount(fold).max())
  folds = []
  for i in range(_NUM_FOLDS):
    known, held_out = (
      jax.tree.map(lambda x, part=part: x[part], every)
      for part in (np.flatnonzero(fold != i), np.flatnonzero(fold == i))
    )
    folds.append((known.take_first(size), held_out.take_first(num_targets)))
  return [folds]


def _pool(rows: Sequence[dict[str, typing.Any]]) -> dict[str, typing.Any]:
  """The row of all folds from the rows of one method."""
  counts = [row["num_queries"] for row in rows]

  def mean(values: Sequence[float]) -> float:
    return float(np.average(values, weights=counts))

  pooled = dict(rows[0], num_queries=sum(counts), num_folds=len(rows))
  for name, value in rows[0].items():
    if isinstance(value, float):
      pooled[name] = mean([row[name] for row in rows])
  pooled["rmse"] = mean([row["rmse"] ** 2 for row in rows]) ** 0.5
  return pooled


def main(argv: list[str]) -> None:
  """Compares on the tables that the flags name."""
  del argv
  logging.set_verbosity(logging.WARNING)
  values = flags.FLAGS

  def program() -> None:
    out = workdir_lib.writable_file(values.out, "--out")
    names = [name.strip() for name in values.tables.split(",") if name.strip()]
    content = compare(names, values.model, values.num_targets)
    workdir_lib.write_json(out, content)
    print(out)

  sys.exit(launch.report(program))


if __name__ == "__main__":
  flags.DEFINE_string(
    "tables", ",".join(shipped_tables.TABLES), "Names of tables, separated by commas."
  )
  flags.DEFINE_string(
    "model",
    str(points_prediction.PRETRAINED),
    "Folder of the saved model of experiments.surfaces.",
  )
  flags.DEFINE_integer(
    "num_targets",
    8192,
    "Largest number of held-out rows of a table to predict.",
    lower_bound=1,
  )
  flags.DEFINE_string("out", "results/zero_shot.json", "JSON file to write.")
  app.run(main)
