r"""A streaming map: points arrive in batches, and the predicted map follows them.

  python -m experiments.stream --workdir=runs/stream

The training points of the map of `experiments.terrain` arrive in random order. Each batch
is inserted into the memory of a trained model (docs/concepts/growth.md). If points are
refused, the tree is rebuilt, with twice as many leaf slots if more than three quarters are
taken, and they are inserted again. At each of --sizes, the points that training does not
use are predicted from the memory, and from a new memory of the same points; linear
interpolation is measured beside them.

  memory.npz     the memory with all points so far, written every --save_every points
  metrics.jsonl  a line for each of --sizes
  stream.json    the same, with the origin of the result
  stream.png     the map predicted at each of --sizes, and the errors

The points in memory.npz are safe: the same command goes on after the last of them. A batch
is a function of --seed and of the number of points before it, so a run that was killed
ends with the same memory as one that was not. --model may be any model of
`experiments.terrain` with a tree; its map is the one it was trained on. The default takes
a few minutes on two CPU cores.
"""

from collections.abc import Iterable
import dataclasses
import functools
import sys
import time
import typing

from absl import app
from absl import flags
from absl import logging
from etils import epath
import jax

from experiments import stream_map
from experiments import terrain
from experiments.common import growing as growing_lib
from experiments.common import launch
from experiments.common import metrics as metrics_lib
from experiments.common import paths
from experiments.common import processes
from experiments.common import provenance
from experiments.common import task as task_lib
from experiments.common import workdir as workdir_lib
from experiments.common.errors import CheckpointError
from experiments.common.errors import ConfigError
from experiments.common.errors import PreemptedError
from experiments.data import windows
from tca_jax import serving

MODEL = epath.Path(__file__).parent.parent / "checkpoints/terrain_relative_tca"
SIZES = (1000, 3000, 10_000, 30_000, 100_000)
RESULT_FILE = "stream.json"
MEMORY_FILE = "memory.npz"
_LEAST = windows.MIN_CONTEXT

Row = stream_map.Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
  """How points arrive, and when their map is predicted.

  Attributes:
    sizes: numbers of points at which the map is predicted, ascending; each is limited by
      the number of training points.
    batch_size: number of points in a batch; a batch also ends at each size.
    num_targets: largest number of held-out points to predict; 0: all.
    num_drawn: largest number of points of the map in the picture; 0: all.
    seed: random seed of the order of the points.

  Raises:
    ConfigError: if a number is not allowed.
  """

  sizes: tuple[int, ...] = SIZES
  batch_size: int = 500
  num_targets: int = 0
  num_drawn: int = 0
  seed: int = 0

  def __post_init__(self):
    if not self.sizes or self.sizes[0] < _LEAST or self.sizes != _ascending(self.sizes):
      raise ConfigError(
        f"sizes must be ascending integers of at least {_LEAST}, got {self.sizes}"
      )
    for name in ("batch_size", "num_targets", "num_drawn", "seed"):
      least = int(name == "batch_size")
      if getattr(self, name) < least:
        raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")


def _ascending(sizes: Iterable[int]) -> tuple[int, ...]:
  """The different numbers, ascending."""
  return tuple(sorted(set(sizes)))


def follow(
  restored: task_lib.Restored[terrain.TerrainTask],
  workdir: epath.PathLike,
  stream: Stream,
  save_every: int = 5000,
) -> dict[str, typing.Any]:
  """Inserts the points of a map into a memory, and predicts the map as they arrive.

  Args:
    restored: the model.
    workdir: folder of the memory and of the results; it is created, or has a stream of
      the same settings, which is continued.
    stream: how points arrive.
    save_every: number of points after which the memory is saved.

  Returns:
    The content of stream.json: "rows", a dictionary for each size; "unit", the unit of
    the map's values; "settings"; "sessions", the origin of each call; and the origin of
    the result.

  Raises:
    CheckpointError: if contexts of the model cannot grow, or if the memory in the workdir
      is damaged.
    ConfigError: if the workdir has something else, is in use, or cannot be written.
    PreemptedError: after SIGTERM, once the memory is saved.
  """
  paths.check_local(workdir, "workdir")
  workdir = epath.Path(workdir)
  _check_model(restored)
  settings = {
    "model": restored.workdir.name,
    "model_step": restored.step,
    "dataset": restored.task.config.dataset,
    **dataclasses.asdict(stream),
    "sizes": [*stream.sizes],
  }
  config = workdir / workdir_lib.CONFIG_FILE
  if not config.exists():
    workdir_lib.check_new(workdir)
  workdir_lib.make_writable(workdir, "--workdir")
  with workdir_lib.locked(workdir):
    if not config.exists():
      workdir_lib.write_json(config, settings)
    elif workdir_lib.read_json(config) != settings:
      raise ConfigError(
        f"{workdir} has a stream of other settings, {workdir_lib.read_json(config)};"
        " choose another --workdir, or give the same flags to continue"
      )
    followed = _Followed(restored, workdir, stream, save_every)
    followed.run()
    content = {
      "rows": followed.rows(),
      "unit": restored.task.map.unit,
      "settings": settings,
      "sessions": provenance.training_sessions(workdir),
      **provenance.provenance(),
    }
    workdir_lib.write_json(workdir / RESULT_FILE, content)
    return content


def _check_model(restored: task_lib.Restored[terrain.TerrainTask]) -> None:
  """Raises CheckpointError if contexts of a model cannot grow."""
  index = functools.partial(restored.task.model.apply, method="index_growing")
  first = restored.task.map.train.take_first(_LEAST)
  try:
    jax.eval_shape(index, restored.params, first.coords[None], first.values[None])
  except ValueError as error:
    raise CheckpointError(f"{restored.workdir}: {error}") from error


class _Followed:
  """A stream in a claimed workdir."""

  def __init__(
    self,
    restored: task_lib.Restored[terrain.TerrainTask],
    workdir: epath.Path,
    stream: Stream,
    save_every: int,
  ):
    self._workdir, self._stream, self._save_every = workdir, stream, save_every
    self._map = stream_map.StreamMap(
      restored,
      workdir,
      stream.num_targets or None,
      stream.num_drawn or None,
      stream.seed,
    )
    self._points = self._map.map.train
    most = len(self._points.coords)
    self._sizes = _ascending(min(size, most) for size in stream.sizes)
    growing, info = self._load()
    self._context = growing_lib.GrowingContext(
      restored.task.model,
      restored.params,
      stream.batch_size,
      growing,
      info["num_rebuilds"],
    )
    self._seconds = info["seconds"]  # of all insertions

  def run(self) -> None:
    """Inserts points, and measures at each size."""
    context, saved = self._context, self._context.num_points
    if saved:
      print(f"{self._workdir}: continuing after {saved:,} points", flush=True)
    if rows := self.rows():  # a kill may have prevented the picture
      self._map.draw(rows)
    if saved < self._sizes[-1]:
      provenance.record_training(self._workdir, saved)
    with (
      processes.sigterm() as asked_to_stop,
      metrics_lib.MetricsWriter(self._workdir, saved) as writer,
    ):
      for size in self._sizes:
        while (start := context.num_points) < size:
          stop = min(start + self._stream.batch_size, size)
          self._insert(start, stop)
          stops = asked_to_stop(stop)
          if stop == size or stops or stop - saved >= self._save_every:
            self._save()
            saved = stop
          if stops:
            raise PreemptedError(
              f"SIGTERM: saved {saved:,} points in {self._workdir}, stopping"
            )
        if size not in {row["num_points"] for row in self.rows()}:
          writer.write(size, self._measure(size))
          self._map.draw(self.rows())

  def rows(self) -> list[Row]:
    """What was measured so far, a row for each size."""
    records = metrics_lib.read_metrics(self._workdir)
    return [{"num_points": record.pop("step"), **record} for record in records]

  def _load(self) -> tuple[typing.Any, dict[str, typing.Any]]:
    """The saved memory and its info."""
    try:
      return serving.load_memory(self._workdir / MEMORY_FILE)
    except FileNotFoundError:
      return None, {"num_rebuilds": 0, "seconds": 0.0}
    except ValueError as error:
      raise CheckpointError(f"the memory cannot be restored: {error}") from error

  def _save(self) -> None:
    """Saves the memory. From now on, a kill loses none of its points."""
    serving.save_memory(
      self._workdir / MEMORY_FILE,
      self._context.growing,
      num_rebuilds=self._context.num_rebuilds,
      seconds=self._seconds,
    )

  def _insert(self, start: int, stop: int) -> None:
    """Inserts the points that arrive between two numbers of points."""
    started = time.monotonic()
    points = jax.tree.map(lambda x: x[start:stop], self._points)
    self._context.insert(points.coords, points.values)
    jax.block_until_ready(self._context.growing)
    self._seconds += time.monotonic() - started

  def _measure(self, size: int) -> Row:
    growing: typing.Any = self._context.growing
    return self._map.measure(size, growing) | {
      "capacity": growing.capacity,
      "num_rebuilds": self._context.num_rebuilds,
      "seconds": self._seconds,
    }


def main(argv: list[str]) -> None:
  """Follows the stream that the flags describe."""
  del argv
  logging.set_verbosity(logging.WARNING)
  values = flags.FLAGS

  def program() -> None:
    sizes = values.sizes
    if not all(size.isdecimal() for size in sizes):
      raise ConfigError(
        f"sizes must be integers of at least {_LEAST}, separated by commas, got"
        f" {','.join(sizes)!r}"
      )
    stream = Stream(
      sizes=tuple(map(int, sizes)),
      batch_size=values.batch_size,
      num_targets=values.num_targets,
      num_drawn=values.num_drawn,
      seed=values.seed,
    )
    restored = terrain.PROGRAM.restore(values.model)
    content = follow(restored, values.workdir, stream, values.save_every)
    print(f"{stream_map.table_of(content)}\n{epath.Path(values.workdir) / RESULT_FILE}")

  sys.exit(launch.report(program))


if __name__ == "__main__":
  defaults = Stream()
  flags.DEFINE_string(
    "workdir", None, "Folder of the memory and results.", required=True
  )
  flags.DEFINE_string("model", str(MODEL), "Folder of a model of experiments.terrain.")
  flags.DEFINE_list(
    "sizes",
    [str(size) for size in SIZES],
    "Numbers of points at which the map is predicted, ascending, separated by commas;"
    " each is limited by the number of training points.",
  )
  for name, least, text in (
    ("batch_size", 1, "Number of points in a batch."),
    ("num_targets", 0, "Largest number of held-out points to predict; 0: all."),
    ("num_drawn", 0, "Largest number of the map's points in stream.png; 0: all."),
    ("seed", 0, "Random seed of the order of the points."),
  ):
    default = getattr(defaults, name)
    flags.DEFINE_integer(name, default, text, lower_bound=least)
  flags.DEFINE_integer(
    "save_every", 5000, "Number of points between saves of the memory.", lower_bound=1
  )
  app.run(main)
