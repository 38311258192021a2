"""Copies a finished run's parameters, config and result to where they are kept.

  python -m experiments.export --workdir=runs/image_tca --name=image_tca

writes checkpoints/image_tca (restored by --mode=eval --workdir=...) and
results/image_tca.json, the eval.json that the run ended with.
"""

import sys

from absl import app
from absl import flags
from absl import logging
from etils import epath

from experiments.common import checkpoints
from experiments.common import config as config_lib
from experiments.common import evaluate

_WORKDIR = flags.DEFINE_string("workdir", None, "A finished run.", required=True)
_NAME = flags.DEFINE_string("name", None, "Of the checkpoint kept.", required=True)


def export(workdir: epath.Path, name: str, root: epath.Path) -> None:
  """Writes `checkpoints/name` and `results/name.json` under a root folder.

  Raises:
    CheckpointError: if there is nothing to copy, or a checkpoint of that name.
  """
  result = workdir / evaluate.EVAL_FILE
  if not result.exists():
    raise checkpoints.CheckpointError(
      f"{workdir} holds no {evaluate.EVAL_FILE}: it is not a finished run"
    )
  kept = root / "checkpoints" / name
  checkpoints.export_params(workdir, kept)
  (workdir / config_lib.CONFIG_FILE).copy(kept / config_lib.CONFIG_FILE)
  (root / "results").mkdir(exist_ok=True)
  result.copy(root / "results" / f"{name}.json", overwrite=True)


def main(argv: list[str]) -> None:
  """Exports the run that the flags name."""
  del argv
  try:
    export(epath.Path(_WORKDIR.value), _NAME.value, epath.Path())
  except checkpoints.CheckpointError as error:
    logging.error("%s", error)
    sys.exit(1)


if __name__ == "__main__":
  app.run(main)
