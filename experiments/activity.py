"""Human Activity (Sec. 4.3): tell what a person does at each time, from sensors.

  python -m experiments.activity --workdir=runs/activity --model=tca

trains on exercises that a smart watch recorded (--dataset=watch) and evaluates on
those of two other persons: 2,000 steps, some minutes on two CPU cores. The published
task's data is downloaded by hand:

  python -m experiments.activity --workdir=runs/uci --dataset=uci --split=random

reads ConfLongDemo_JSI.txt from data/manual (--manual_dir); --dataset=uci_excerpt reads a
part of it, of one person. --split=random is published, and lenient: segments overlap, so
that half the rows of a test segment may be in segments trained on. --split=person tests
persons that were not trained on, and --split=time the end of each recording; as all
recordings follow one script, what comes late in it is then hardly trained on, or not at
all.

activity.png shows two segments, the classes predicted and what TCA read.
"""

from collections.abc import Iterator
import dataclasses
import functools
import types
import typing

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import launch
from experiments.common import plots
from experiments.common import task as task_lib
from experiments.common.config import Config
from experiments.common.config import ConfigError
from experiments.common.config import option
from experiments.data import activity
import tca_jax
from tca_jax import objectives


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivityConfig(Config):
  """The options of Human Activity."""

  # Steps and layers are those of the other tasks: we know of none for this one.
  PAPER = types.MappingProxyType(
    Config.PAPER | dict(dataset="uci", split="random", num_frequencies=0)
  )

  dataset: str = option(
    "watch",
    "A smart watch's exercises; the published data; or an excerpt of it, one person's.",
    choices=tuple(activity.DATASETS),
  )
  split: str = option(
    "person",
    "What is split into train, validation and test: segments at random, as published;"
    " persons; or the time of each recording.",
    choices=activity.SPLITS,
  )
  eval_split: str = option(
    "test", "Which part is evaluated.", choices=activity.PARTS[1:], recipe=False
  )
  data_dir: str = option("data", "Where TFDS keeps prepared data sets.", recipe=False)
  manual_dir: str = option(
    "data/manual", "Holds the files that are downloaded by hand.", recipe=False
  )
  num_frequencies: int = option(4, "Fourier features of the time.", at_least=0)
  num_layers: int = option(2, "Transformer layers of the encoder.", at_least=0)
  tree_order: str = option("given", "How the tree is built.", ("given", "kd", "random"))
  baseline: str = option("leaf", "Of REINFORCE.", choices=objectives.BASELINES)
  eval_batches: int = option(
    0, "Batches of the evaluation; 0: all segments.", at_least=0, recipe=False
  )

  def __post_init__(self):
    super().__post_init__()
    allowed = activity.DATASETS[self.dataset].SPLITS
    if self.split not in allowed:
      raise ConfigError(
        f"split must be one of {allowed} for the dataset {self.dataset!r}, got"
        f" {self.split!r}"
      )


class ActivityTask(task_lib.Task[ActivityConfig]):
  """Segments drawn on the device, where all of them are kept."""

  metric = "accuracy"
  max_context = activity.SEGMENT

  def __init__(self, config: ActivityConfig):
    self.config = config
    self.source = activity.DATASETS[config.dataset]
    parts = activity.load_segments(
      config.dataset, config.split, config.data_dir, config.manual_dir
    )
    self._train, self._evaluated = (
      jax.tree.map(jnp.asarray, parts[name]) for name in ("train", config.eval_split)
    )
    task_lib.check_batch_size(config.batch_size, len(self._train.labels), "segments")
    dtype = jnp.dtype(config.dtype)
    self.model = task_lib.build_model(
      config,
      self.max_context,
      task_lib.build_point_embedder(config, config.num_frequencies),
      tca_jax.ClassificationHead(len(self.source.CLASSES), dtype=dtype),
    )
    self._take = jax.jit(activity.take)
    self._sample = jax.jit(
      functools.partial(activity.sample, batch_size=config.batch_size)
    )

  def train_batch(self, step: int) -> task_lib.Batch:
    return self._sample(jax.random.fold_in(self.key("train", step), 0), self._train)

  def eval_batches(self) -> Iterator[task_lib.Batch]:
    count, config = self._evaluated.labels.shape[0], self.config
    batches = task_lib.batch_indices(count, config.batch_size, config.eval_batches)
    for index, new in batches:
      batch = self._take(self._evaluated, index)
      yield batch.replace(query_mask=batch.query_mask & new[:, None])

  def draw(self, params: typing.Any, folder: epath.Path) -> None:
    """Draws activity.png: two segments, their classes, and what TCA read."""
    if self.config.model == "tca":
      segments = self._label(params, self._changing())
      plots.plot_segments(segments, self.source.CLASSES, folder / "activity.png")

  def _changing(self) -> list[int]:
    """Of either half of the segments evaluated, the first with most changes of class."""
    changes = np.sum(np.diff(self._evaluated.labels, axis=1) != 0, axis=1)
    halves = np.array_split(np.arange(len(changes)), 2)
    return [int(half[changes[half].argmax()]) for half in halves if half.size]

  def _label(
    self, params: typing.Any, chosen: list[int]
  ) -> list[plots.LabelledSegment]:
    """Predicts the classes of segments evaluated."""
    batch = self._take(self._evaluated, np.array(chosen))
    index, read = (task_lib.jitted(self, method) for method in ("index", "read"))
    memory = index(params, batch.coords, batch.values, batch.mask)
    prediction = read(params, memory, batch.query_coords)
    prediction, trees = jax.device_get((prediction, memory.tree))
    query = self.max_context // 2
    found = []
    for i, number in enumerate(chosen):
      segment = jax.tree.map(lambda x, n=number: np.asarray(x[n]), self._evaluated)
      seconds = segment.time / activity.TICKS_PER_SECOND
      nodes = plots.nodes_read(prediction.reading.walk, trees, i, query)
      found.append(
        plots.LabelledSegment(
          time=seconds,
          channels=self.source.channels(segment.values),
          truth=segment.labels,
          predicted=prediction.output[i].argmax(-1),
          query=seconds[query],
          nodes=[(level, seconds[rows]) for level, rows in nodes],
          depth=trees.depth,
        )
      )
    return found


if __name__ == "__main__":
  launch.start(ActivityConfig, ActivityTask)
