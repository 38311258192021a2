"""Export: copy a finished run's parameters, config and results to this repository.

  python -m experiments.export --workdir=runs/image_tca --name=image_tca

writes checkpoints/image_tca, which --mode=eval --workdir=checkpoints/image_tca restores,
and results/image_tca.json, the eval.json of the run. Other result files of the run are
copied with their own name as a prefix: scaling.json becomes
results/scaling_image_tca.json.
"""

import json
import sys

from absl import app
from absl import flags
from absl import logging
from etils import epath

from experiments.common import checkpoints
from experiments.common import evaluate
from experiments.common import workdir as workdir_lib
from experiments.common.errors import CheckpointError


def export(workdir: epath.Path, name: str, root: epath.Path) -> list[epath.Path]:
  """Writes `checkpoints/<name>` and `results/<name>.json` below a root folder.

  Args:
    workdir: folder of a finished run.
    name: name of the exported checkpoint.
    root: root folder.

  Returns:
    The paths written.

  Raises:
    CheckpointError: if the run is not finished, if a result was measured with other
      options than the run's, or if a checkpoint of that name exists.
  """
  config = workdir / workdir_lib.CONFIG_FILE
  results = {
    path: json.loads(path.read_text())
    for path in sorted(workdir.glob("*.json"), key=lambda path: path.name)
    if path.name != config.name
  }
  evaluated = workdir / evaluate.EVAL_FILE
  if evaluated not in results or not config.exists():
    raise CheckpointError(
      f"{workdir} has no {evaluate.EVAL_FILE}: it is not a finished run"
    )
  trained = workdir_lib.with_new_names(json.loads(config.read_text()))
  for path, content in results.items():
    measured = workdir_lib.with_new_names(content["config"])
    # Options that are newer than the run had their default.
    same = trained == {key: measured.get(key) for key in trained}
    if not same or content.get("step", trained["num_steps"]) != trained["num_steps"]:
      raise CheckpointError(
        f"{path} was measured at another step or with other flags than the run's; run"
        " its command again"
      )
  exported = root / "checkpoints" / name
  checkpoints.export_params(workdir, exported)
  config.copy(exported / workdir_lib.CONFIG_FILE, overwrite=True)
  (root / "results").mkdir(exist_ok=True)
  written = [exported]
  for path in results:
    prefix = "" if path == evaluated else f"{path.stem}_"
    written.append(root / "results" / f"{prefix}{name}.json")
    path.copy(written[-1], overwrite=True)
  return written


def main(argv: list[str]) -> None:
  """Exports the run that the flags name."""
  del argv
  logging.set_verbosity(logging.WARNING)
  values = flags.FLAGS
  try:
    written = export(epath.Path(values.workdir), values.name, epath.Path())
  except CheckpointError as error:
    logging.error("%s", error)
    sys.exit(1)
  print(", ".join(map(str, written)))


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
  flags.DEFINE_string("name", None, "Name of the exported checkpoint.", required=True)
  app.run(main)
