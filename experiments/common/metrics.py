"""Metrics of a run: one JSON line per logged step, and TensorBoard events."""

import json
import pathlib
import typing

from etils import epath
import tensorboardX

from experiments.common import workdir as workdir_lib

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
  """Appends to `metrics.jsonl` and to TensorBoard events; a context manager.

  Records after the step at which a run is resumed are deleted, so that every step
  occurs in the file once.
  """

  def __init__(self, workdir: epath.PathLike, resume_step: int):
    path = pathlib.Path(workdir) / METRICS_FILE
    kept = [r for r in read_metrics(workdir) if r["step"] <= resume_step]
    workdir_lib.replace_text(
      path, "".join(json.dumps(record) + "\n" for record in kept)
    )
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
    """Writes the metrics of a step; "seconds" is the training time so far."""
    self._file.write(json.dumps({"step": step} | metrics) + "\n")
    self._file.flush()
    for name, value in metrics.items():
      self._events.add_scalar(name, value, step)


def read_metrics(workdir: epath.PathLike) -> list[dict[str, typing.Any]]:
  """Reads the records of a workdir, up to a line that a kill left incomplete."""
  path = pathlib.Path(workdir) / METRICS_FILE
  records = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records
