"""Evaluation of a task's restored parameters, and the `eval.json` it writes."""

import dataclasses
import time
import typing

from etils import epath
import jax
import jax.numpy as jnp

from experiments.common import checkpoints
from experiments.common import config as config_lib
from experiments.common import measure
from experiments.common import metrics as metrics_lib
from experiments.common import task as task_lib
from experiments.common import train
from tca_jax import objectives

EVAL_FILE = "eval.json"


def evaluate(task: task_lib.Task, params: typing.Any) -> dict[str, float]:
  """Greedy evaluation over the task's evaluation batches.

  A metric is the mean over an example's queries, then over the examples.

  Args:
    task: what is evaluated.
    params: the model's parameters, replicated over the local devices.

  Returns:
    "log_likelihood"; "accuracy" of a classification; for TCA the same with
    "full_" before it, read from all leaves with the same weights;
    "tokens_fraction", the mean share of a context's valid tokens that a query
    reads; "ceiling_log_likelihood" where batches have a ceiling; "num_examples".
  """
  _, sharded = train.shardings(task.config.batch_size, all_devices=False)
  eval_step = jax.jit(_make_eval_step(task))
  totals: dict[str, float] = {}
  for batch in task.eval_batches():
    sums = jax.device_get(eval_step(params, jax.device_put(batch, sharded)))
    totals = {name: totals.get(name, 0.0) + float(x) for name, x in sums.items()}
  count = totals.pop("num_examples")
  means = {name: total / count for name, total in totals.items()}
  return means | {"num_examples": int(count)}


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
    sums = {
      name: jnp.sum(objectives.masked_mean(x, where, axis=1))
      for name, x in results.items()
    }
    return sums | {"num_examples": jnp.sum(jnp.any(where, axis=1))}

  return eval_step


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
  replicated, _ = train.shardings(task.config.batch_size, all_devices=False)
  like = jax.device_put(train.init_params(task), replicated)
  step, params = checkpoints.restore_params(workdir, like)
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
