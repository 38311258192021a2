"""The train loop of all tasks and models.

The loop owns the random keys: a batch and all other randomness are functions of
(seed, step), and a checkpoint contains everything else that a step reads. A run that
was killed and resumed therefore ends with the same bits as one that was not, on the
same number of devices.

Several processes may train together. Each draws the whole batch of a step, and copies
the rows of its own devices to them: a batch does not depend on the number of processes.
"""

import contextlib
import sys
import time
import typing

from etils import epath
import jax
import numpy as np
import optax
import tqdm

from experiments.common import checkpoints as checkpoints_lib
from experiments.common import losses
from experiments.common import metrics as metrics_lib
from experiments.common import processes
from experiments.common import provenance
from experiments.common import task as task_lib
from experiments.common import workdir as workdir_lib
from experiments.common.batch import Batch
from experiments.common.config import Config
from experiments.common.errors import NonFiniteLossError
from experiments.common.errors import PreemptedError

State = dict[str, typing.Any]  # "params" and "optimizer"


def train(task: task_lib.Task, workdir: epath.PathLike) -> None:
  """Trains from the newest checkpoint, or from the start, to `num_steps`.

  After `jax.distributed.initialize`, all processes call this together.

  Args:
    task: the task.
    workdir: folder of the run, claimed for the task's config and for these processes.

  Raises:
    ConfigError: if the workdir belongs to another config or is in use, if it cannot be
      written, if the batch cannot be divided evenly among the devices, or if there are
      several processes that are not connected or have other options.
    CheckpointError: if no checkpoint can be saved, or if there are checkpoints and none
      can be restored.
    NonFiniteLossError: if the loss, the gradient or a parameter is not finite; the
      last checkpoint, which is finite, stays.
    PreemptedError: after SIGTERM, once a checkpoint is saved.
    ProcessError: if another process ended; the last checkpoint stays.
  """
  workdir = epath.Path(workdir)
  with processes.together():
    # These errors are found before the workdir is written.
    processes.check(task.config)
    workdir_lib.check_shared(workdir)
    processes.shardings(task.config.batch_size)
    with (
      workdir_lib.claimed(task.config, workdir),
      checkpoints_lib.Checkpoints(workdir) as checkpoints,
    ):
      _train(task, workdir, checkpoints)


def _train(
  task: task_lib.Task, workdir: epath.Path, checkpoints: checkpoints_lib.Checkpoints
) -> None:
  """Trains in a claimed workdir."""
  config = task.config
  replicated, sharded = processes.shardings(config.batch_size)

  # --- State: restored if a checkpoint exists.
  optimizer = build_optimizer(config)
  state = processes.place(init_state(task, optimizer), replicated)
  restored = checkpoints.restore(**state)
  first_step = 0
  if restored is not None:
    first_step, state = restored
    print(f"{workdir}: resuming at step {first_step}")
  if first_step < config.num_steps:
    provenance.record_training(workdir, first_step)
  train_step = jax.jit(
    make_train_step(task, optimizer), donate_argnums=0, out_shardings=replicated
  )

  # --- Loop. `step` is the number of completed steps. Metrics are fetched only when
  # they are logged or before a checkpoint, so that the loop does not wait for the
  # device at each step.
  unchecked: list[tuple[int, dict[str, jax.Array]]] = []
  with contextlib.ExitStack() as stack:
    asked_to_stop = stack.enter_context(processes.sigterm())
    writer = None
    if processes.is_first():
      writer = stack.enter_context(metrics_lib.MetricsWriter(workdir, first_step))
    started = time.monotonic() - (writer.seconds if writer else 0)
    progress = stack.enter_context(
      tqdm.tqdm(
        total=config.num_steps,
        initial=first_step,
        desc=config.model,
        disable=not (writer and sys.stderr.isatty()),
      )
    )
    stops, step = False, first_step
    for step in range(first_step + 1, config.num_steps + 1):
      rng = task_lib.batch_rng(config.seed, step - 1)
      batch = processes.place(task.train_batch(rng, step - 1), sharded)
      state, metrics = train_step(state, batch, np.int32(step - 1))
      unchecked.append((step, metrics))
      last, stops = step == config.num_steps, asked_to_stop(step)
      saves = step % config.save_every == 0 or last or stops
      logs = step % config.log_every == 0 or last
      if saves or logs:
        values = _check_finite(unchecked, workdir, checkpoints.steps)
        unchecked.clear()
        if logs and writer:
          writer.write(step, values | {"seconds": time.monotonic() - started})
          progress.set_postfix(loss=f"{values['loss']:.3f}")
      if saves:
        checkpoints.save(step, **state)
      progress.update()
      if stops:
        break
    if stops or asked_to_stop(step + 1):
      raise PreemptedError(f"SIGTERM: saved step {step} in {workdir}, stopping")


def build_optimizer(config: Config) -> optax.GradientTransformation:
  """Adam with warm-up, cosine decay to 0, gradient clipping and weight decay."""
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.learning_rate,
    warmup_steps=min(config.warmup_steps, config.num_steps // 2),
    decay_steps=config.num_steps,
  )
  adam = optax.adam(schedule, b1=config.adam_b1)
  if config.weight_decay:
    adam = optax.adamw(
      schedule, b1=config.adam_b1, weight_decay=config.weight_decay, mask=_decays
    )
  if not config.clip_norm:
    return adam
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)


def _decays(params: typing.Any) -> typing.Any:
  """Tells which parameters decay: all but biases and scales, which have one axis."""
  return jax.tree.map(lambda x: x.ndim > 1, params)


def init_params(task: task_lib.Task) -> typing.Any:
  """Initial parameters of the model, a function of the seed."""
  batch = task.first_batch()
  rng = task_lib.stream_rng(task.config.seed, "init", 0)
  return jax.jit(task.model.init)(
    rng, batch.coords, batch.values, batch.query_coords, batch.mask
  )


def init_state(task: task_lib.Task, optimizer: optax.GradientTransformation) -> State:
  """Initial parameters and optimiser state."""
  params = init_params(task)
  return {"params": params, "optimizer": optimizer.init(params)}


def make_train_step(
  task: task_lib.Task, optimizer: optax.GradientTransformation
) -> typing.Callable[..., tuple[State, dict[str, jax.Array]]]:
  """Makes the function `(state, batch, step) -> (state, metrics)`, to be jitted."""

  def train_step(state: State, batch: Batch, step: jax.Array):
    rng = task_lib.step_rng(task.config.seed, step)
    policy_rng, dropout_rng = jax.random.split(rng)
    batch = batch.cleaned()

    def loss_fn(params):
      prediction = task.model.apply(
        params,
        batch.coords,
        batch.values,
        batch.query_coords,
        batch.mask,
        train=True,
        rngs={"policy": policy_rng, "dropout": dropout_rng},
      )
      return losses.objective(prediction, batch, task.config)

    (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
    updates, optimizer_state = optimizer.update(
      grads, state["optimizer"], state["params"]
    )
    params = optax.apply_updates(state["params"], updates)
    metrics = parts | {
      "loss": loss,
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(params),
    }
    metrics |= {
      f"grad_norm/{name}": optax.tree.norm(part) for name, part in _parts(grads).items()
    }
    return {"params": params, "optimizer": optimizer_state}, metrics

  return train_step


def _parts(params: typing.Any) -> dict[str, typing.Any]:
  """Parameters by part of the model; the aggregator is a part of its own."""
  parts = dict(params["params"])
  read_out = dict(parts.pop("read_out"))
  if "aggregator" in read_out:
    parts["aggregator"] = read_out.pop("aggregator")
  return parts | {"read_out": read_out}


def _check_finite(
  steps: list[tuple[int, dict[str, jax.Array]]],
  workdir: epath.Path,
  saved: list[int],
) -> dict[str, float]:
  """Returns the metrics of the last step; raises if those of any step are not finite."""
  values = {}
  for step, metrics in jax.device_get(steps):
    values = {name: float(value) for name, value in metrics.items()}
    watched = {name: values[name] for name in ("loss", "grad_norm", "param_norm")}
    if not np.isfinite(list(watched.values())).all():
      kept = f"step {saved[-1]}" if saved else "none was saved yet"
      raise NonFiniteLossError(
        f"not finite at step {step}: {watched}; the last good checkpoint in"
        f" {workdir}: {kept}"
      )
  return values
