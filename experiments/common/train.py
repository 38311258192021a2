"""The one train loop, for every task and every system.

A batch and all randomness are functions of (seed, step), and a checkpoint holds
all that a step reads: a run that was killed and started again is the run that
was not, bit for bit, on the same number of devices.
"""

import signal
import sys
import time
import typing

from absl import logging
from etils import epath
import jax
from jax import numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import optax
import tqdm

from experiments.common import checkpoints as checkpoints_lib
from experiments.common import config as config_lib
from experiments.common import metrics as metrics_lib
from experiments.common import task as task_lib

State = dict[str, typing.Any]  # "params" and "optimizer"
PREEMPTED = 143  # the exit code of a process that ends on SIGTERM


class NonFiniteLossError(RuntimeError):
  """The loss, its gradient or the parameters stopped being numbers."""


def train(task: task_lib.Task, workdir: epath.Path) -> None:
  """Trains from the newest checkpoint, or from the start, to `num_steps`.

  Args:
    task: what is trained.
    workdir: claimed for the task's config; holds checkpoints and metrics.

  Raises:
    ConfigError: if the workdir is another config's, or if the batch cannot be
      spread evenly over the devices.
    CheckpointError: if there are checkpoints and none can be restored.
    NonFiniteLossError: at a loss, gradient or parameter that is not finite; the
      last good checkpoint stays.
    SystemExit: with code 143 after SIGTERM, once a checkpoint is saved.
  """
  config = task.config
  replicated, sharded = shardings(config.batch_size)
  config_lib.claim_workdir(config, workdir)

  # --- State: restored, if anything was saved.
  optimizer = build_optimizer(config)
  state = jax.device_put(init_state(task, optimizer), replicated)
  checkpoints = checkpoints_lib.Checkpoints(workdir)
  restored = checkpoints.restore(**state)
  first_step = 0
  if restored is not None:
    first_step, state = restored
    print(f"{workdir}: resuming at step {first_step}")
  train_step = jax.jit(make_train_step(task, optimizer), donate_argnums=0)

  # --- Loop. `step` counts the steps completed. Losses are looked at when they
  # are logged or before they are saved, so that the device is not waited for.
  preempted = []
  previous = signal.signal(signal.SIGTERM, lambda *_: preempted.append(True))
  unchecked: list[tuple[int, dict[str, jax.Array]]] = []
  with checkpoints, metrics_lib.MetricsWriter(workdir, first_step) as writer:
    started = time.monotonic() - writer.seconds
    progress = tqdm.tqdm(
      total=config.num_steps,
      initial=first_step,
      desc=config.model,
      disable=not sys.stderr.isatty(),
    )
    step = first_step
    try:
      for step in range(first_step + 1, config.num_steps + 1):
        batch = jax.device_put(task.train_batch(step - 1), sharded)
        state, metrics = train_step(state, batch, np.int32(step - 1))
        unchecked.append((step, metrics))
        last, stops = step == config.num_steps, bool(preempted)
        saves = step % config.save_every == 0 or last or stops
        logs = step % config.log_every == 0 or last
        if saves or logs:
          values = _check_finite(unchecked, workdir, checkpoints.steps)
          unchecked.clear()
          if logs:
            writer.write(step, values | {"seconds": time.monotonic() - started})
            progress.set_postfix(loss=f"{values['loss']:.3f}")
        if saves:
          checkpoints.save(step, **state)
        progress.update()
        if stops:
          break
      if preempted:
        logging.warning("SIGTERM: saved step %d in %s, stopping", step, workdir)
        raise SystemExit(PREEMPTED)
    finally:
      progress.close()
      signal.signal(signal.SIGTERM, previous)


def shardings(
  batch_size: int, all_devices: bool = True
) -> tuple[NamedSharding, NamedSharding]:
  """(replicated, split along the batch) over the local devices.

  Args:
    batch_size: of all devices together.
    all_devices: whether every device must have a share; else as many devices as
      can share the batch evenly are used.

  Raises:
    ConfigError: if every device must have a share and the batch is not a multiple.
  """
  devices = jax.local_devices()
  if all_devices and batch_size % len(devices):
    raise config_lib.ConfigError(
      f"batch_size must be a multiple of the {len(devices)} local devices, got"
      f" {batch_size}"
    )
  while batch_size % len(devices):
    devices = devices[:-1]
  mesh = Mesh(np.asarray(devices), ("data",))
  return (
    NamedSharding(mesh, PartitionSpec()),
    NamedSharding(mesh, PartitionSpec("data")),
  )


def build_optimizer(config: config_lib.Config) -> optax.GradientTransformation:
  """Adam with warm-up, cosine decay to 0 and a clipped global norm."""
  schedule = optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.learning_rate,
    warmup_steps=min(config.warmup_steps, config.num_steps // 2),
    decay_steps=config.num_steps,
  )
  adam = optax.adam(schedule, b1=config.adam_b1)
  if not config.clip_norm:
    return adam
  return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)


def init_params(task: task_lib.Task) -> typing.Any:
  """The model's parameters at the start, a function of the seed."""
  batch = task.train_batch(0)
  return jax.jit(task.model.init)(
    task.key("init", 0), batch.coords, batch.values, batch.query_coords, batch.mask
  )


def init_state(task: task_lib.Task, optimizer: optax.GradientTransformation) -> State:
  """Parameters and optimizer state at the start."""
  params = init_params(task)
  return {"params": params, "optimizer": optimizer.init(params)}


def make_train_step(
  task: task_lib.Task, optimizer: optax.GradientTransformation
) -> typing.Callable[..., tuple[State, dict[str, jax.Array]]]:
  """`(state, batch, step) -> (state, metrics)`, to be jitted."""

  def train_step(state: State, batch: task_lib.Batch, step: jax.Array):
    policy_rng, dropout_rng = jax.random.split(
      jax.random.fold_in(task.key("train", step), 1)
    )

    query_coords = jnp.where(batch.query_mask[..., None], batch.query_coords, 0)

    def loss_fn(params):
      prediction = task.model.apply(
        params,
        batch.coords,
        batch.values,
        query_coords,
        batch.mask,
        train=True,
        rngs={"policy": policy_rng, "dropout": dropout_rng},
      )
      return task_lib.objective(prediction, batch, task.config)

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
  """Parameters by the part of the model, the aggregator apart from its read-out."""
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
  """The metrics of the last of the steps; NonFiniteLossError if any is not finite."""
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
