"""Interfaces of a task and of an evaluator, and the random keys of a run."""

import abc
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import typing

from etils import epath
import jax

from experiments.common import inspection
from experiments.common import systems
from experiments.common.batch import Batch
from experiments.common.config import ConfigType
import tca_jax

Stream = typing.Literal["train", "eval", "init"]
STREAMS: tuple[Stream, ...] = typing.get_args(Stream)


def stream_rng(seed: int, stream: Stream, i: int | jax.Array) -> jax.Array:
  """The i-th key of a stream; streams of one seed are independent."""
  root = jax.random.fold_in(jax.random.key(seed), STREAMS.index(stream))
  return jax.random.fold_in(root, i)


def batch_rng(seed: int, step: int) -> jax.Array:
  """The key that draws the batch of a training step."""
  return jax.random.fold_in(stream_rng(seed, "train", step), 0)


def step_rng(seed: int, step: int | jax.Array) -> jax.Array:
  """The key of a training step's own randomness: sampled walks and dropout."""
  return jax.random.fold_in(stream_rng(seed, "train", step), 1)


TaskType = typing.TypeVar("TaskType", bound="Task[typing.Any]")


@dataclasses.dataclass(frozen=True)
class Restored(typing.Generic[TaskType]):
  """A trained model that evaluators measure.

  Attributes:
    task: the task, with the config of the evaluation.
    params: parameters of the model, on one device of this process.
    step: number of training steps.
    workdir: folder of the run.
  """

  task: TaskType
  params: typing.Any
  step: int
  workdir: epath.Path

  def describe(self, name: str) -> dict[str, typing.Any]:
    """The info of a saved model: the name of its task, and how inputs are prepared."""
    return {
      "task": name,
      "dataset": getattr(self.task.config, "dataset", None),
      "step": self.step,
      "max_context": self.task.max_context,
      **self.task.inputs,
    }


class Evaluator(abc.ABC, typing.Generic[TaskType]):
  """A measurement or a figure of a trained model. It writes one file.

  Attributes:
    file: name of the file.
    mode: value of `--mode` that runs the evaluator. "eval" also follows training.
    needs_tree: whether the evaluator can only measure a model with a tree.
    shared: whether all processes of a run take part, as in `evaluate.evaluate` and in
      Orbax. Otherwise the first process measures alone.
  """

  file: str
  mode: typing.Literal["eval", "paths"] = "eval"
  needs_tree: bool = False
  shared: bool = False

  def applies(self, task: TaskType) -> bool:
    """Whether the evaluator can measure the model of a task."""
    return task.system.has_tree or not self.needs_tree

  @abc.abstractmethod
  def evaluate(
    self, restored: Restored[TaskType], path: epath.Path
  ) -> dict[str, typing.Any] | None:
    """Measures a trained model and writes the file.

    Args:
      restored: the trained model.
      path: path of the file.

    Returns:
      The content of a JSON file; None for a picture.
    """


class Task(abc.ABC, typing.Generic[ConfigType]):
  """A model, and batches that are functions of a seed and a number.

  Attributes:
    config: config of the experiment.
    model: a `ReTreever`.
    metric: the metric that the paper reports.
    max_context: largest number of tokens in a context.
    evaluators: measurements and figures of the trained model.
  """

  config: ConfigType
  model: typing.Any  # the type that Flax's `apply` returns depends on the method
  metric: typing.Literal["accuracy", "log_likelihood"]
  max_context: int
  evaluators: Sequence[Evaluator[typing.Any]]

  @abc.abstractmethod
  def __init__(self, config: ConfigType): ...

  @abc.abstractmethod
  def train_batch(self, rng: jax.Array, step: int) -> Batch:
    """The batch of a training step.

    Args:
      rng: the step's key, see `batch_rng`; consumed.
      step: number of completed steps. Schedules and shapes may depend on it.
    """

  @abc.abstractmethod
  def eval_batches(self) -> Iterator[Batch]:
    """The batches of an evaluation, a function of eval_seed and eval_batches."""

  def report_early(self) -> None:
    """Prints what is known before a new run is trained; by default nothing."""

  @property
  @abc.abstractmethod
  def inputs(self) -> dict[str, typing.Any]:
    """How a user of the trained model prepares its inputs; JSON data.

    "coords": the "axes" by name, the "range" of each in training, and the length 1 as
    the "unit". "values": the number of "channels"; the model's values are
    (value - mean) / std, with values in the "unit", or values in "any" unit. A
    classification also has its "classes".
    """

  @property
  def system(self) -> systems.System:
    """The registry's entry of the model."""
    return systems.SYSTEMS[self.config.model]

  @property
  def largest_read(self) -> int:
    """Largest number of tokens, latents or nodes that one query reads."""
    return self.system.largest_read(self.config, self.max_context)

  def first_batch(self) -> Batch:
    """The batch of the first training step."""
    return self.train_batch(batch_rng(self.config.seed, 0), 0)

  def eval_rng(self, i: int) -> jax.Array:
    """The key that draws the i-th batch of an evaluation."""
    return stream_rng(self.config.eval_seed, "eval", i)

  @functools.cached_property
  def index(self) -> typing.Callable[..., typing.Any]:
    """The compiled `(params, coords, values, mask=None) -> memory` of the model."""
    return jax.jit(functools.partial(self.model.apply, method="index"))

  @functools.cached_property
  def read(self) -> typing.Callable[..., typing.Any]:
    """The compiled `(params, memory, query_coords) -> Prediction` of the evaluation."""
    reader = self.system.evaluation_reader(self.config)
    return jax.jit(functools.partial(reader, self.model))

  def inspect(
    self,
    params: typing.Any,
    coords: jax.typing.ArrayLike,
    values: jax.typing.ArrayLike,
    query_coords: jax.typing.ArrayLike,
    mask: jax.typing.ArrayLike | None = None,
  ) -> inspection.Inspection:
    """Predicts from contexts, and keeps the trees to show the nodes read.

    Warns if inputs are far outside the range of training.

    Args:
      params: parameters of the model.
      coords: `[B, N, C]`.
      values: `[B, N, E]`.
      query_coords: `[B, M, C]`.
      mask: `[B, N]` bool, True at valid tokens; None: all are valid.
    """
    inputs = self.inputs
    tca_jax.warn_outside_range(self.model, inputs, coords, values, mask)
    tca_jax.warn_outside_range(self.model, inputs, query_coords)
    memory = self.index(params, coords, values, mask)
    prediction = self.read(params, memory, query_coords)
    return inspection.Inspection(
      *jax.device_get((prediction, memory.tree if self.system.has_tree else None))
    )
