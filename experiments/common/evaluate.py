"""Evaluation of a trained model: its test metrics, and the run of all evaluators."""

import dataclasses
import time
import typing

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import calibration
from experiments.common import checkpoints
from experiments.common import losses
from experiments.common import metrics as metrics_lib
from experiments.common import processes
from experiments.common import provenance
from experiments.common import systems
from experiments.common import task as task_lib
from experiments.common import train
from experiments.common import workdir as workdir_lib
from experiments.common.batch import Batch
from experiments.common.errors import ConfigError
import tca_jax
from tca_jax import masking
from tca_jax import storage

EVAL_FILE = "eval.json"
INTERVALS = (50, 90, 95)  # central intervals, in per cent, whose coverage is measured


class TestMetrics(task_lib.Evaluator[task_lib.Task]):
  """Metrics of the paper, tokens read and calibration; writes eval.json."""

  file = EVAL_FILE
  shared = True

  def evaluate(
    self, restored: task_lib.Restored[task_lib.Task], path: epath.Path
  ) -> dict[str, typing.Any]:
    """Returns the metrics of `evaluate`, and what they were measured on."""
    task = restored.task
    started = time.monotonic()
    content = evaluate(task, restored.params)
    logged = metrics_lib.read_metrics(restored.workdir)
    content |= {
      "tokens_fraction_largest": task.largest_read / task.max_context,
      "num_parameters": sum(x.size for x in jax.tree.leaves(restored.params)),
      "step": restored.step,
      "seconds": time.monotonic() - started,
      "train_seconds": logged[-1]["seconds"] if logged else None,
      "trained": provenance.training_sessions(restored.workdir),
      **result_source(task),
    }
    workdir_lib.write_json(path, content)
    return content


def evaluate(task: task_lib.Task, params: typing.Any) -> dict[str, typing.Any]:
  """Evaluates a model on the evaluation batches of its task, without sampling.

  A metric is the mean over the queries of an example, then over the examples. All
  processes call this together, and their devices share each batch.

  Args:
    task: the task.
    params: parameters of the model.

  Returns:
    "log_likelihood"; "accuracy" of a classification; with a tree, the same with the
    prefix "full_", when all leaves are read with the same weights; "coverage_50",
    "coverage_90" and "coverage_95" of a regression, see
    `tca_jax.Gaussian.interval_coverage`; "calibration_error" of a classification, over
    all queries; "tokens_fraction", the mean share of a context's valid tokens that a
    query reads; "ceiling_log_likelihood" where batches have a ceiling; "num_examples".
  """
  replicated, sharded = processes.shardings(task.config.batch_size, all_devices=False)
  params = processes.place(params, replicated)
  eval_step = jax.jit(_make_eval_step(task), out_shardings=replicated)
  totals: dict[str, np.ndarray] = {}
  for batch in task.eval_batches():
    sums = jax.device_get(eval_step(params, processes.place(batch, sharded)))
    totals = {
      name: totals.get(name, 0.0) + np.asarray(x, np.float64)
      for name, x in sums.items()
    }
  count, num_queries = totals.pop("num_examples"), totals.pop("num_queries")
  gaps = totals.pop("confidence_gaps", None)
  means: dict[str, typing.Any] = {
    name: float(total / count) for name, total in totals.items()
  }
  if gaps is not None:
    error = calibration.calibration_error(gaps, float(num_queries))
    means["calibration_error"] = error
  return means | {"num_examples": int(count)}


def _make_eval_step(task: task_lib.Task) -> typing.Callable[..., dict[str, jax.Array]]:
  """Makes the function `(params, batch) -> sums over the examples`, to be jitted."""

  def eval_step(params: typing.Any, batch: Batch) -> dict[str, jax.Array]:
    # Without a gradient, masks are enough: padded queries need no cleaning.
    where, targets = batch.query_mask, batch.targets
    memory = task.model.apply(
      params, batch.coords, batch.values, batch.mask, method="index"
    )
    reader = task.system.evaluation_reader(task.config)
    prediction = reader(task.model, params, memory, batch.query_coords)
    predicted = losses.distribution(prediction.output)
    num_tokens = jnp.maximum(jnp.sum(batch.mask, axis=1, keepdims=True), 1)
    results = _scores("", predicted, targets)
    results["tokens_fraction"] = prediction.reading.num_read / num_tokens
    if task.system.has_tree:
      full = systems.FULL(task.model, params, memory, batch.query_coords)
      results |= _scores("full_", losses.distribution(full.output), targets)
    if batch.ceiling is not None:
      results["ceiling_log_likelihood"] = batch.ceiling
    sums = {}
    if isinstance(predicted, tca_jax.Categorical):
      sums["confidence_gaps"] = calibration.confidence_gaps(
        predicted.logits, targets, where
      )
    else:
      results |= coverages(predicted, targets)
    for name, x in results.items():
      sums[name] = jnp.sum(masking.masked_mean(x, where, axis=1))
    return sums | {
      "num_examples": jnp.sum(jnp.any(where, axis=1)),
      "num_queries": jnp.sum(where),
    }

  return eval_step


def _scores(
  prefix: str, predicted: tca_jax.Regression | tca_jax.Categorical, targets: jax.Array
) -> dict[str, jax.Array]:
  """Log-likelihood, and accuracy of a classification, `[B, M]` each."""
  scores = {f"{prefix}log_likelihood": predicted.log_prob(targets)}
  if isinstance(predicted, tca_jax.Categorical):
    scores[f"{prefix}accuracy"] = predicted.accuracy(targets)
  return scores


def coverages(
  predicted: tca_jax.Regression, targets: jax.Array
) -> dict[str, jax.Array]:
  """Share of the targets in each of the central `INTERVALS`, by metric name."""
  return {
    f"coverage_{level}": predicted.interval_coverage(targets, level / 100)
    for level in INTERVALS
  }


def mean_scores(predicted: tca_jax.Regression, targets: jax.Array) -> dict[str, float]:
  """Mean log-likelihood and coverages of predicted values.

  Args:
    predicted: distributions of `[M, E]` values.
    targets: `[M, E]`.

  Returns:
    "log_likelihood", and "coverage_50", "coverage_90" and "coverage_95".
  """
  found = {"log_likelihood": predicted.log_prob(targets)}
  found |= coverages(predicted, targets)
  return {name: float(score.mean()) for name, score in found.items()}


def result_source(task: task_lib.Task) -> dict[str, typing.Any]:
  """Where a result comes from: command, commit, versions, device and config."""
  return {**provenance.provenance(), "config": dataclasses.asdict(task.config)}


def restore(
  task: task_lib.TaskType, workdir: epath.PathLike
) -> task_lib.Restored[task_lib.TaskType]:
  """Restores the parameters of a workdir's newest checkpoint.

  Args:
    task: the task, with the config of the workdir.
    workdir: folder of a run.

  Raises:
    CheckpointError: if no checkpoint can be restored.
  """
  workdir = epath.Path(workdir)
  replicated, _ = processes.shardings(task.config.batch_size, all_devices=False)
  shapes = jax.eval_shape(lambda: train.init_params(task))  # compiles nothing
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), shapes
  )
  step, params = checkpoints.restore_params(workdir, like)
  return task_lib.Restored(
    task=task, params=processes.own(params), step=step, workdir=workdir
  )


def evaluate_workdir(
  task: task_lib.Task,
  workdir: epath.PathLike,
  out: epath.PathLike | None = None,
  mode: str = "eval",
) -> dict[str, dict[str, typing.Any]]:
  """Restores a workdir's newest checkpoint and runs the evaluators of the task.

  All processes of a run call this together.

  Args:
    task: the task, with the config of the workdir.
    workdir: folder of a run.
    out: folder for the evaluators' files. None: the workdir.
    mode: the evaluators to run.

  Returns:
    The contents of the JSON files, by file name; not in the first process, only of those
    that the processes measure together.

  Raises:
    ConfigError: if no evaluator of the mode can measure the model.
    CheckpointError: if no checkpoint can be restored.
    ProcessError: if another process ended.
  """
  evaluators = [x for x in task.evaluators if x.mode == mode and x.applies(task)]
  if not evaluators:
    raise ConfigError(
      f"--mode={mode} needs a model with a tree, {workdir} has the model"
      f" {task.config.model!r}"
    )
  out = epath.Path(out or workdir)
  contents = {}
  with processes.together():
    processes.check(task.config)
    workdir_lib.check_shared(epath.Path(workdir))
    storage.make_folder(out)
    restored = restore(task, workdir)
    for evaluator in sorted(evaluators, key=lambda x: not x.shared):
      if evaluator.shared or processes.is_first():
        content = evaluator.evaluate(restored, out / evaluator.file)
        if content is not None:
          contents[evaluator.file] = content
  return contents
