"""Human Activity (Sec. 4.3): classify a person's activity at each time, from sensors.

  python -m experiments.activity --workdir=runs/activity --model=tca --num_steps=600

Trains on exercises recorded by a smart watch (--dataset=watch, from the package
seglearn) and evaluates on the recordings of two other persons. This takes some minutes
on two CPU cores; results/activity_watch_tca.json has the result. activity.png shows two
segments, the predicted classes and the nodes that TCA read.

The paper uses another data set, which must be downloaded by hand:

  python -m experiments.activity --workdir=runs/uci --dataset=uci --split=random

reads ConfLongDemo_JSI.txt from data/manual (--manual_dir). --dataset=uci_excerpt reads
an excerpt of it, of one person.

--split=random is the published split. It is optimistic: segments overlap, so half of
the rows of a test segment may be in training segments. --split=person tests on persons
that training does not use. --split=time tests on the end of each recording. All
recordings follow one script, so training contains few or no examples of the activities
at its end.
"""

from collections.abc import Iterator
import dataclasses
import functools
import typing

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import batch as batch_lib
from experiments.common import beam_search
from experiments.common import evaluate as evaluate_lib
from experiments.common import launch
from experiments.common import systems
from experiments.common import task as task_lib
from experiments.common.batch import Batch
from experiments.common.config import Config
from experiments.common.config import option
from experiments.common.errors import ConfigError
from experiments.data import human_activity
from experiments.figures import segments
import tca_jax


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivityConfig(Config):
  """Options of Human Activity."""

  DEFAULTS: typing.ClassVar = dict(num_layers=2, baseline="leaf", eval_batches=0)
  # The paper does not state steps and layers of this task; they are the other tasks'.
  PAPER: typing.ClassVar = dict(
    Config.PAPER, dataset="uci", split="random", num_frequencies=0
  )

  UNUSED: typing.ClassVar = {"eval_seed": "segments, which are evaluated as they are"}

  dataset: str = option(
    "task",
    "watch",
    "Data set: exercises recorded by a smart watch (watch), the paper's data (uci), or"
    " an excerpt of it, of one person (uci_excerpt).",
    choices=tuple(human_activity.DATASETS),
  )
  split: str = option(
    "task",
    "person",
    "Unit that is divided into train, validation and test: segments at random, as in"
    " the paper; persons; or the time of each recording.",
    choices=human_activity.SPLITS,
  )
  num_frequencies: int = option(
    "model",
    4,
    "Number of frequencies of the Fourier features of time; 0, as in the paper: no"
    " Fourier features.",
    at_least=0,
  )
  order: typing.Literal["given", "kd", "random"] = option(
    "model",
    "given",
    "Order of the rows in the tree's leaves: by time (given), a k-d tree (kd) or"
    " random.",
    models=("tca",),
  )
  eval_split: str = option(
    "evaluation", "test", "Part that is evaluated.", choices=human_activity.PARTS[1:]
  )
  data_dir: str = option("files", "data", "Folder of prepared TFDS data sets.")
  manual_dir: str = option(
    "files",
    "data/manual",
    "Folder of files that are downloaded by hand.",
    needs={"dataset": ("uci", "uci_excerpt")},
  )

  def __post_init__(self):
    super().__post_init__()
    allowed = human_activity.DATASETS[self.dataset].SPLITS
    if self.split not in allowed:
      raise ConfigError(
        f"split must be one of {allowed} for the dataset {self.dataset!r}, got"
        f" {self.split!r}"
      )


class SegmentFigure(task_lib.Evaluator["ActivityTask"]):
  """Two segments labelled by TCA, and the nodes read; draws activity.png."""

  file = "activity.png"
  needs_tree = True

  def evaluate(
    self, restored: task_lib.Restored["ActivityTask"], path: epath.Path
  ) -> None:
    """Draws the figure."""
    task = restored.task
    labelled = label(task, restored.params, task.changing_segments())
    segments.plot_segments(labelled, task.source.CLASSES, path)


class ActivityTask(task_lib.Task[ActivityConfig]):
  """Human Activity, with segments drawn on the device from all that are kept there."""

  metric = "accuracy"
  max_context = human_activity.SEGMENT
  evaluators = (evaluate_lib.TestMetrics(), SegmentFigure(), beam_search.BeamWidths())

  def __init__(self, config: ActivityConfig):
    self.config = config
    self.source = human_activity.DATASETS[config.dataset]
    parts = human_activity.load_segments(
      config.dataset, config.split, config.data_dir, config.manual_dir
    )
    self._train, self.evaluated = (
      jax.tree.map(jnp.asarray, parts[name]) for name in ("train", config.eval_split)
    )
    batch_lib.check_batch_size(config.batch_size, len(self._train.labels), "segments")
    dtype = jnp.dtype(config.dtype)
    self.model = systems.build_model(
      config,
      self.max_context,
      systems.build_point_embedder(config, config.num_frequencies),
      tca_jax.ClassificationHead(len(self.source.CLASSES), dtype=dtype),
    )
    self.take = jax.jit(human_activity.take)
    self._sample = jax.jit(
      functools.partial(human_activity.sample, batch_size=config.batch_size)
    )

  def train_batch(self, rng: jax.Array, step: int) -> Batch:
    del step
    return self._sample(rng, self._train)

  def eval_batches(self) -> Iterator[Batch]:
    count, config = self.evaluated.labels.shape[0], self.config
    batches = batch_lib.batch_indices(count, config.batch_size, config.eval_batches)
    for index, new in batches:
      batch = self.take(self.evaluated, index)
      yield batch.replace(query_mask=batch.query_mask & new[:, None])

  @property
  def inputs(self) -> dict[str, typing.Any]:
    return {
      "coords": {
        "axes": ["time"],
        "range": [[-1, 1]],
        "unit": "half of the segment, from its middle",
      },
      "values": {
        "channels": self.source.WIDTH,
        "mean": 0.0,
        "std": 1.0,
        "unit": self.source.UNIT,
      },
      "classes": list(self.source.CLASSES),
    }

  def changing_segments(self) -> list[int]:
    """In each half of the test segments, the first with the most changes of class."""
    changes = np.sum(np.diff(self.evaluated.labels, axis=1) != 0, axis=1)
    halves = np.array_split(np.arange(len(changes)), 2)
    return [int(half[changes[half].argmax()]) for half in halves if half.size]


def label(
  task: ActivityTask, params: typing.Any, chosen: list[int]
) -> list[segments.LabelledSegment]:
  """Predicts the classes of test segments.

  Args:
    task: the task.
    params: parameters of its model, which has a tree.
    chosen: numbers of the segments.
  """
  batch = task.take(task.evaluated, np.array(chosen))
  inspection = task.inspect(
    params, batch.coords, batch.values, batch.query_coords, batch.mask
  )
  query = task.max_context // 2
  labelled = []
  for i, number in enumerate(chosen):
    segment = jax.tree.map(lambda x, n=number: np.asarray(x[n]), task.evaluated)
    seconds = segment.time / human_activity.TICKS_PER_SECOND
    nodes = inspection.nodes_read(i, query)
    labelled.append(
      segments.LabelledSegment(
        time=seconds,
        channels=task.source.channels(segment.values),
        truth=segment.labels,
        predicted=inspection.prediction.output[i].argmax(-1),
        query=seconds[query],
        nodes=[(level, seconds[rows]) for level, rows in nodes],
        depth=inspection.depth,
      )
    )
  return labelled


PROGRAM = launch.Program(ActivityConfig, ActivityTask)
train, evaluate = PROGRAM.train, PROGRAM.evaluate

if __name__ == "__main__":
  PROGRAM.main()
