"""What the train loop and the evaluation know of a task, and its model."""

import abc
from collections.abc import Callable
from collections.abc import Iterator
import functools
import typing

import chex
from etils import epath
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.config import Config
from experiments.common.config import ConfigError
from experiments.common.config import ConfigType
import tca_jax
from tca_jax import objectives


@chex.dataclass(frozen=True)
class Batch:
  """B contexts of at most N tokens, with at most M queries each.

  Attributes:
    coords: `[B, N, C]`.
    values: `[B, N, E]`.
    mask: `[B, N]` bool, True at valid tokens.
    query_coords: `[B, M, C]`.
    targets: `[B, M]` int32 labels, or `[B, M, E]` float32 values.
    query_mask: `[B, M]` bool, True at valid queries.
    ceiling: `[B, M]`, if what drew the targets is known: their log-likelihood under
      the best prediction that a context allows.
  """

  coords: jax.Array
  values: jax.Array
  mask: jax.Array
  query_coords: jax.Array
  targets: jax.Array
  query_mask: jax.Array
  ceiling: jax.Array | None = None


class Task(abc.ABC, typing.Generic[ConfigType]):
  """A task: a model and batches that are a function of a seed and a number.

  Attributes:
    config: the experiment's config.
    model: a `ReTreever`.
    metric: "accuracy" or "log_likelihood", the one the paper reports.
    max_context: the most tokens that a context of the task has.
  """

  config: ConfigType
  model: typing.Any  # what Flax's `apply` returns depends on the method called
  metric: typing.Literal["accuracy", "log_likelihood"]
  max_context: int

  @abc.abstractmethod
  def __init__(self, config: ConfigType): ...

  @abc.abstractmethod
  def train_batch(self, step: int) -> Batch:
    """The batch of a training step, a function of (seed, step)."""

  @abc.abstractmethod
  def eval_batches(self) -> Iterator[Batch]:
    """The batches of an evaluation, a function of eval_seed and eval_batches."""

  def draw(self, params: typing.Any, folder: epath.Path) -> None:
    """Draws figures of what parameters predict, if the task has any."""

  @property
  def largest_read(self) -> int:
    """The most tokens, latents or nodes that one query reads."""
    if self.config.model == "ca":
      return self.max_context
    if self.config.model == "perceiver" and self.config.num_latents:
      return self.config.num_latents
    paths = self.config.num_paths if self.config.model == "tca" else 1
    return tca_jax.num_read_slots(self.max_context, self.config.branch_factor, paths)

  def key(
    self, stream: typing.Literal["train", "eval", "init"], i: int | jax.Array
  ) -> jax.Array:
    """The key of the i-th draw of a stream; streams of one seed are apart."""
    seed = self.config.eval_seed if stream == "eval" else self.config.seed
    names = ("train", "eval", "init")
    return jax.random.fold_in(
      jax.random.fold_in(jax.random.key(seed), names.index(stream)), i
    )


def check_batch_size(batch_size: int, num_examples: int, examples: str) -> None:
  """Raises ConfigError if a batch of distinct examples is more than there are."""
  if batch_size > num_examples:
    raise ConfigError(
      f"batch_size must be at most the {num_examples:,} {examples} to train on, got"
      f" {batch_size:,}"
    )


def batch_indices(
  num_examples: int, batch_size: int, max_batches: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Cuts examples into batches of one size.

  Args:
    num_examples: how many there are.
    batch_size: B.
    max_batches: how many batches there are at most; 0: as many as it takes.

  Yields:
    The numbers of a batch's examples, `[B]`, and which of them are new, `[B]` bool:
    where too few are left, the last batch goes on with the first examples.

  >>> [(index.tolist(), new.tolist()) for index, new in batch_indices(3, 2)]
  [([0, 1], [True, True]), ([2, 0], [True, False])]
  """
  for start in range(0, num_examples, batch_size)[: max_batches or None]:
    index = np.arange(start, start + batch_size)
    yield index % num_examples, index < num_examples


def jitted(task: Task, method: str) -> Callable[..., typing.Any]:
  """A method of the task's model, compiled; to be called with the parameters first."""
  return jax.jit(functools.partial(task.model.apply, method=method))


def reader(
  task: Task,
  params: typing.Any,
  memory: typing.Any,
  query_coords: jax.Array,
  method: str = "read",
) -> Callable[[], typing.Any]:
  """A compiled call that predicts from memories, to be timed: the output alone."""
  predict = jitted(task, method)
  read = jax.jit(lambda *inputs: predict(*inputs).output)
  return lambda: read(params, memory, query_coords)


def build_point_embedder(config: Config, num_frequencies: int) -> tca_jax.PointEmbedder:
  """The embedder of points that a config asks for."""
  return tca_jax.PointEmbedder(
    num_frequencies=num_frequencies,
    position_skip=config.position_skip,
    dtype=jnp.dtype(config.dtype),
  )


def build_read_out(config: Config, max_context: int) -> nn.Module:
  """The read-out that a config asks for."""
  dtype = jnp.dtype(config.dtype)
  shared = dict(dropout=config.dropout, dtype=dtype)
  if config.model == "ca":
    return tca_jax.CrossAttention(**shared)
  if config.model == "perceiver":
    slots = tca_jax.num_read_slots(max_context, config.branch_factor)
    return tca_jax.PerceiverIO(num_latents=config.num_latents or slots, **shared)
  return tca_jax.TreeCrossAttention(
    branch_factor=config.branch_factor,
    order=typing.cast(typing.Any, config.tree_order),
    share_policy=config.share_policy,
    tree_gradient=config.tree_gradient,
    num_paths=config.num_paths,
    teacher_temperature=config.teacher_temperature,
    **shared,
  )


def build_model(
  config: Config, max_context: int, embedder: nn.Module, head: nn.Module
) -> tca_jax.ReTreever:
  """The system that a config asks for, all alike but for the read-out."""
  encoder = None
  if config.num_layers:
    encoder = tca_jax.Encoder(
      config.num_layers, dropout=config.dropout, dtype=jnp.dtype(config.dtype)
    )
  read_out = build_read_out(config, max_context)
  return tca_jax.ReTreever(
    embedder=embedder, encoder=encoder, read_out=read_out, head=head
  )


def log_likelihood(output: typing.Any, targets: jax.Array) -> jax.Array:
  """Log p(target), `[B, M]`, of a `Gaussian` or of class logits."""
  if isinstance(output, tca_jax.Gaussian):
    return objectives.gaussian_log_likelihood(output.mean, output.std, targets)
  return objectives.categorical_log_likelihood(output, targets)


def reward(output: typing.Any, targets: jax.Array, config: Config) -> jax.Array:
  """REINFORCE's reward, `[B, M]`; regression always takes the likelihood."""
  if isinstance(output, tca_jax.Gaussian) or config.reward == "likelihood":
    return log_likelihood(output, targets)
  return objectives.accuracy(output, targets)


def objective(
  prediction: tca_jax.Prediction, batch: Batch, config: Config
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The training loss of a batch and its parts, for any of the systems."""
  where = batch.query_mask
  # Whatever a padded target holds must not reach a gradient, not even as 0 * NaN.
  valid = where.reshape(where.shape + (1,) * (batch.targets.ndim - where.ndim))
  labels = jnp.where(valid, batch.targets, 0)
  own = log_likelihood(prediction.output, labels)
  rewards = reward(prediction.output, labels, config)
  walk: typing.Any = prediction.reading.walk
  targets = prediction.reading.routing_targets
  if walk is None or targets is None:
    loss = -objectives.masked_mean(own, where)
    return loss, {"reward": objectives.masked_mean(rewards, where)}
  weights = objectives.ObjectiveWeights(
    leaf=config.lambda_ca,
    reinforce=config.lambda_rl,
    entropy=config.entropy_weight,
    routing=config.routing_weight,
    baseline=typing.cast(typing.Any, config.baseline),
    constant=config.baseline_value,
  )
  loss, parts = objectives.tree_objective(
    own,
    log_likelihood(prediction.leaf_output, labels),
    rewards,
    reward(prediction.leaf_output, labels, config),
    walk,
    targets,
    weights,
    where,
  )
  best_leaf_read: typing.Any = prediction.reading.best_leaf_read
  parts["best_leaf_read"] = objectives.masked_mean(best_leaf_read, where)
  return loss, parts | objectives.walk_diagnostics(walk, targets, where)
