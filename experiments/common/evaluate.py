"""Evaluation of a task's restored parameters, and the `eval.json` it writes."""

import dataclasses
import time
import typing

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import checkpoints
from experiments.common import config as config_lib
from experiments.common import measure
from experiments.common import metrics as metrics_lib
from experiments.common import task as task_lib
from experiments.common import train
from tca_jax import objectives

EVAL_FILE = "eval.json"
INTERVALS = (50, 90, 95)  # per cent, of which the coverage is reported
_BINS = 15  # of the confidence, for the calibration error


def evaluate(task: task_lib.Task, params: typing.Any) -> dict[str, float]:
  """Greedy evaluation over the task's evaluation batches.

  A metric is the mean over an example's queries, then over the examples.

  Args:
    task: what is evaluated.
    params: the model's parameters, replicated over the local devices that share a
      batch, see `restore`.

  Returns:
    "log_likelihood"; "accuracy" of a classification; for TCA the same with
    "full_" before it, read from all leaves with the same weights; "coverage_50",
    "coverage_90" and "coverage_95" of a regression, see `interval_coverage`;
    "calibration_error" of a classification, see `confidence_gaps`, over all queries;
    "tokens_fraction", the mean share of a context's valid tokens that a query
    reads; "ceiling_log_likelihood" where batches have a ceiling; "num_examples".
  """
  _, sharded = train.shardings(task.config.batch_size, all_devices=False)
  eval_step = jax.jit(_make_eval_step(task))
  totals: dict[str, np.ndarray] = {}
  for batch in task.eval_batches():
    sums = jax.device_get(eval_step(params, jax.device_put(batch, sharded)))
    totals = {
      name: totals.get(name, 0.0) + np.asarray(x, np.float64)
      for name, x in sums.items()
    }
  count, num_queries = totals.pop("num_examples"), totals.pop("num_queries")
  gaps = totals.pop("confidence_gaps", None)
  means = {name: float(total / count) for name, total in totals.items()}
  if gaps is not None:
    means["calibration_error"] = float(np.sum(np.abs(gaps)) / num_queries)
  return means | {"num_examples": int(count)}


def interval_coverage(
  mean: jax.Array, std: jax.Array, targets: jax.Array, level: float
) -> jax.Array:
  """How many targets the central intervals of normal distributions hold.

  Args:
    mean: `[..., E]`.
    std: `[..., E]`.
    targets: `[..., E]`.
    level: the probability of an interval; a calibrated model's coverage is as high.

  Returns:
    `[...]`, the share of the E channels whose target lies in its interval.

  >>> interval_coverage(jnp.zeros(2), jnp.ones(2), jnp.array([0.6, 0.7]), 0.5).item()
  0.5
  """
  reach = std * jax.scipy.stats.norm.ppf((1 + level) / 2)
  return jnp.mean(jnp.abs(targets - mean) <= reach, axis=-1)


def confidence_gaps(
  logits: jax.Array, labels: jax.Array, where: jax.Array
) -> jax.Array:
  """Correct predictions less the confidence in them, summed by bin of confidence.

  The expected calibration error is the sum of their sizes, over all predictions made.

  Args:
    logits: `[..., K]`.
    labels: `[...]` int in [0, K).
    where: `[...]` bool, False at padded queries.

  Returns:
    `[15]`, of equally wide bins.
  """
  confidence = jnp.max(jax.nn.softmax(logits), axis=-1)
  gap = jnp.where(where, objectives.accuracy(logits, labels) - confidence, 0)
  bins = jnp.minimum(jnp.int32(confidence * _BINS), _BINS - 1)
  return jnp.zeros(_BINS).at[bins.ravel()].add(gap.ravel())


def _make_eval_step(task: task_lib.Task) -> typing.Callable[..., dict[str, jax.Array]]:
  """`(params, batch) -> sums over the examples`, to be jitted."""

  def eval_step(params: typing.Any, batch: task_lib.Batch) -> dict[str, jax.Array]:
    where = batch.query_mask
    memory = task.model.apply(
      params, batch.coords, batch.values, batch.mask, method="index"
    )

    def scores(prefix: str, output: typing.Any) -> dict[str, jax.Array]:
      found = {"log_likelihood": task_lib.log_likelihood(output, batch.targets)}
      if task.metric == "accuracy":
        found["accuracy"] = objectives.accuracy(output, batch.targets)
      return {prefix + name: score for name, score in found.items()}

    prediction = task.model.apply(params, memory, batch.query_coords, method="read")
    num_tokens = jnp.maximum(jnp.sum(batch.mask, axis=1, keepdims=True), 1)
    results = scores("", prediction.output)
    results["tokens_fraction"] = prediction.reading.num_read / num_tokens
    if task.config.model == "tca":
      full = task.model.apply(params, memory, batch.query_coords, method="read_leaves")
      results |= scores("full_", full.output)
    if batch.ceiling is not None:
      results["ceiling_log_likelihood"] = batch.ceiling
    sums = {}
    if task.metric == "accuracy":
      sums["confidence_gaps"] = confidence_gaps(prediction.output, batch.targets, where)
    else:
      for level in INTERVALS:
        results[f"coverage_{level}"] = interval_coverage(
          prediction.output.mean, prediction.output.std, batch.targets, level / 100
        )
    for name, x in results.items():
      sums[name] = jnp.sum(objectives.masked_mean(x, where, axis=1))
    return sums | {
      "num_examples": jnp.sum(jnp.any(where, axis=1)),
      "num_queries": jnp.sum(where),
    }

  return eval_step


def restore(task: task_lib.Task, workdir: epath.Path) -> tuple[int, typing.Any]:
  """The step and parameters of a workdir's newest checkpoint, for `evaluate`.

  Raises:
    CheckpointError: if no checkpoint can be restored.
  """
  replicated, _ = train.shardings(task.config.batch_size, all_devices=False)
  like = jax.device_put(train.init_params(task), replicated)
  return checkpoints.restore_params(workdir, like)


def evaluate_workdir(
  task: task_lib.Task, workdir: epath.Path, out: epath.Path | None = None
) -> dict[str, typing.Any]:
  """Restores a workdir's newest checkpoint, evaluates it, writes `eval.json`.

  Beside it go the figures of tasks that draw some.

  Args:
    task: what was trained there, of the workdir's config.
    workdir: holds the checkpoints.
    out: where the file goes; None means the workdir.

  Returns:
    What the file holds.

  Raises:
    CheckpointError: if no checkpoint can be restored.
  """
  step, params = restore(task, workdir)
  started = time.monotonic()
  result = evaluate(task, params)
  logged = metrics_lib.read_metrics(workdir)
  result |= {
    "tokens_fraction_largest": task.largest_read / task.max_context,
    "num_parameters": sum(x.size for x in jax.tree.leaves(params)),
    "step": step,
    "seconds": time.monotonic() - started,
    "train_seconds": logged[-1]["seconds"] if logged else None,
    **measure.provenance(),
    "config": dataclasses.asdict(task.config),
  }
  out = out or workdir
  config_lib.write_json(out / EVAL_FILE, result)
  task.draw(params, out)
  return result
