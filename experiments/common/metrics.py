"""Metrics of a run: one JSON line a logged step, and TensorBoard beside it."""

import json
import pathlib
import subprocess
import typing

from etils import epath
import tensorboardX

from experiments.common import config

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
  """Appends to `metrics.jsonl` and to TensorBoard events; a context manager.

  A run resumed at a step forgets what was logged after it, so that every step
  stands in the file once.
  """

  def __init__(self, workdir: epath.PathLike, resume_step: int):
    path = pathlib.Path(workdir) / METRICS_FILE
    kept = [r for r in read_metrics(workdir) if r["step"] <= resume_step]
    config.replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    self.seconds = kept[-1]["seconds"] if kept else 0.0
    self._file = path.open("a")
    self._events = tensorboardX.SummaryWriter(
      str(pathlib.Path(workdir) / "tensorboard"),
      purge_step=resume_step + 1,
    )

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_) -> None:
    self._file.close()
    self._events.close()

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes the metrics of a step; "seconds" is the training time until then."""
    self._file.write(json.dumps({"step": step} | metrics) + "\n")
    self._file.flush()
    for name, value in metrics.items():
      self._events.add_scalar(name, value, step)


def read_metrics(workdir: epath.PathLike) -> list[dict[str, typing.Any]]:
  """The records of a workdir, without a last line that a kill cut short."""
  path = pathlib.Path(workdir) / METRICS_FILE
  records = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records


def git_commit() -> str | None:
  """The commit of the code that runs, "-dirty" if changed; None outside git."""
  folder = pathlib.Path(__file__).parent

  def git(*arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

  try:
    changed = git("status", "--porcelain").strip()
    return git("rev-parse", "HEAD").strip() + ("-dirty" if changed else "")
  except (OSError, subprocess.CalledProcessError):
    return None
