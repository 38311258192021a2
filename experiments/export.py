"""Copies a finished run's parameters, config and result to where they are kept.

  python -m experiments.export --workdir=runs/image_tca --name=image_tca

writes checkpoints/image_tca (restored by --mode=eval --workdir=...) and
results/image_tca.json, the eval.json that the run ended with; of a run of the
elevation task also results/scaling_<name>.json.
"""

import json
import sys

from absl import app
from absl import flags
from absl import logging
from etils import epath

from experiments import terrain
from experiments.common import checkpoints
from experiments.common import config as config_lib
from experiments.common import evaluate
from experiments.common import launch

_WORKDIR = flags.DEFINE_string("workdir", None, "A finished run.", required=True)
_NAME = flags.DEFINE_string("name", None, "Of the checkpoint kept.", required=True)


def export(workdir: epath.Path, name: str, root: epath.Path) -> None:
  """Writes `checkpoints/name` and `results/name.json` under a root folder.

  Of a run of the elevation task also `results/scaling_name.json`.

  Raises:
    CheckpointError: if there is nothing to copy, if the evaluation is not the one
      that the run ended with, or if there is a checkpoint of that name.
  """
  result, config = workdir / evaluate.EVAL_FILE, workdir / config_lib.CONFIG_FILE
  scaling = workdir / terrain.SCALING_FILE
  if not result.exists() or not config.exists():
    raise checkpoints.CheckpointError(
      f"{workdir} holds no {evaluate.EVAL_FILE}: it is not a finished run"
    )
  evaluated, trained = json.loads(result.read_text()), json.loads(config.read_text())
  configs = [evaluated["config"]]
  if scaling.exists():
    configs.append(json.loads(scaling.read_text())["config"])
  # An option that is newer than the run has its default, which is what was.
  same = all(trained == {key: x.get(key) for key in trained} for x in configs)
  if not same or evaluated["step"] != trained["num_steps"]:
    raise checkpoints.CheckpointError(
      f"{result} is of another step or of other flags than the run's; run its"
      " command again"
    )
  kept = root / "checkpoints" / name
  checkpoints.export_params(workdir, kept)
  config.copy(kept / config_lib.CONFIG_FILE, overwrite=True)
  (root / "results").mkdir(exist_ok=True)
  result.copy(root / "results" / f"{name}.json", overwrite=True)
  if scaling.exists():
    scaling.copy(root / "results" / f"scaling_{name}.json", overwrite=True)


def main(argv: list[str]) -> None:
  """Exports the run that the flags name."""
  del argv
  launch.quiet_libraries()
  try:
    export(epath.Path(_WORKDIR.value), _NAME.value, epath.Path())
    print(f"checkpoints/{_NAME.value}, results/{_NAME.value}.json")
  except checkpoints.CheckpointError as error:
    logging.error("%s", error)
    sys.exit(1)


if __name__ == "__main__":
  app.run(main)
