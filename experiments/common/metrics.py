"""Metrics of a run: one JSON line per logged step, and TensorBoard events."""

import contextlib
import json
import secrets
import time
import typing

from absl import logging
from etils import epath
from tensorboardX import event_file_writer
from tensorboardX import summary
from tensorboardX.proto import event_pb2

from experiments.common import workdir as workdir_lib
from tca_jax import storage

METRICS_FILE = "metrics.jsonl"
_PROTOS: typing.Any = event_pb2  # its classes are made when it is imported


class MetricsWriter:
  """Appends to `metrics.jsonl` and to TensorBoard events; a context manager.

  Both are in the workdir when `write` returns. Records after the step at which a run is
  resumed are deleted, so that every step occurs in the file once.
  """

  def __init__(self, workdir: epath.PathLike, resume_step: int):
    kept = [r for r in read_metrics(workdir) if r["step"] <= resume_step]
    # The files of a bucket cannot be appended to: each write copies all of them there.
    self._workdir = self._folder = epath.Path(workdir)
    self._stack = contextlib.ExitStack()
    if storage.in_bucket(workdir):
      self._folder = self._stack.enter_context(storage.temporary_folder())
    path = self._folder / METRICS_FILE
    workdir_lib.replace_text(
      path, "".join(json.dumps(record) + "\n" for record in kept)
    )
    self.seconds = kept[-1]["seconds"] if kept else 0.0
    self._file = path.open("a")
    folder = self._folder / "tensorboard"
    folder.mkdir(exist_ok=True)
    # The library's SummaryWriter would write in a thread, and lose events at a kill.
    self._events = event_file_writer.EventsWriter(
      str(folder / "events"), filename_suffix=f".{secrets.token_hex(4)}"
    )
    # Tells TensorBoard to hide the events after the step.
    started = _PROTOS.SessionLog(status=_PROTOS.SessionLog.START)
    for event in (dict(file_version="brain.Event:2"), dict(session_log=started)):
      self._events.write_event(_PROTOS.Event(step=resume_step + 1, **event))
    self._flush()

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_) -> None:
    self._file.close()
    self._events.close()
    self._stack.close()

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes the metrics of a step; "seconds" is the training time so far."""
    self._file.write(json.dumps({"step": step} | metrics) + "\n")
    for name, value in metrics.items():
      scalar = summary.scalar(name, value)
      self._events.write_event(
        _PROTOS.Event(wall_time=time.time(), step=step, summary=scalar)
      )
    self._flush()

  def _flush(self) -> None:
    """Writes what is buffered."""
    self._file.flush()
    self._events.flush()
    if self._folder != self._workdir:
      storage.copy_files(self._folder, self._workdir)


def read_metrics(workdir: epath.PathLike) -> list[dict[str, typing.Any]]:
  """Reads the records of a workdir, without lines that are damaged.

  A last line that a kill left incomplete is left out silently, others with a warning.
  """
  path = epath.Path(workdir) / METRICS_FILE
  if not path.exists():
    return []
  lines = path.read_bytes().decode(errors="replace").split("\n")
  records, damaged = [], []
  for number, line in enumerate(lines, start=1):
    try:
      record = json.loads(line)
    except ValueError:
      record = None
    match record:
      case {"step": int(), "seconds": int() | float()}:
        records.append(record)
      case _ if number < len(lines):
        damaged.append(number)
  if damaged:
    logging.warning(
      "%s: left out %s, which cannot be read",
      path,
      f"line {damaged[0]}" if len(damaged) == 1 else f"{len(damaged)} lines",
    )
  return records
