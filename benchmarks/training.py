"""Milliseconds per training step of the systems, and of the parts of TCA's step.

  python -m benchmarks.training --tasks=copy,gp,images

copy: T = 256, batches of 128. gp: batches of 16 with 6 encoder layers, the three shapes
averaged over their frequency. images: MNIST, batches of 100.
"""

from collections.abc import Callable
import dataclasses
import typing

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from experiments import copy_task
from experiments import gp_regression
from experiments import image_completion
from experiments.common import config as config_lib
from experiments.common import measure
from experiments.common import task as task_lib
from experiments.common import train
from experiments.common.ratios import Row
from experiments.data import gp
from tca_jax import attention
from tca_jax import retrieval

_TASKS = flags.DEFINE_list("tasks", ["copy", "gp", "images"], "Which, with commas.")
_BATCH = flags.DEFINE_integer("batch_size", 0, "0: each task's own.", lower_bound=0)
_DATA_DIR = flags.DEFINE_string("data_dir", "data", "Of images, as in the experiment.")


class OneShape(gp_regression.GPTask):
  """GP regression in one of its shapes."""

  def __init__(self, config: gp_regression.GPConfig, shape: tuple[int, int]):
    super().__init__(config)
    self._shape = shape

  def train_batch(self, step: int) -> task_lib.Batch:
    key = self.key("train", step)
    return self._sample(key, shape=self._shape, kernel="rbf", sizes="example")[0]


def gp_frequency() -> dict[tuple[int, int], float]:
  """How often a batch has a shape: contexts of 3 to 46 tokens are equally frequent."""
  sizes = gp.MAX_CONTEXT + 1 - gp.MIN_POINTS
  return {
    shape: (shape[0] + 1 - gp.smallest_context(shape)) / sizes for shape in gp.SHAPES
  }


# TCA by the default recipe, with a policy of its own, and as published, without.
SYSTEMS: dict[str, dict[str, typing.Any]] = {
  **{model: dict(model=model) for model in config_lib.MODELS},
  "tca_shared": dict(model="tca", share_policy=True),
}


def tasks(name: str, system: str) -> dict[str, tuple[task_lib.Task, float]]:
  """The task, or its shapes, with the share of steps that each has."""
  size, options = _BATCH.value, SYSTEMS[system]
  if name == "copy":
    config = copy_task.CopyConfig(
      sequence_length=256, batch_size=size or 128, **options
    )
    return {"": (copy_task.CopyTask(config), 1.0)}
  if name == "images":
    config = image_completion.ImageConfig(
      batch_size=size or 100, data_dir=_DATA_DIR.value, **options
    )
    return {"": (image_completion.ImageTask(config), 1.0)}
  if name == "gp":
    config = gp_regression.GPConfig(batch_size=size or 16, **options)
    return {
      f"{shape}": (OneShape(config, shape), share)
      for shape, share in gp_frequency().items()
    }
  raise app.UsageError(f"--tasks are copy, gp and images, got {name}")


def step_call(task: task_lib.Task) -> tuple[Callable[[], typing.Any], float]:
  """A call that takes a training step, and its floating-point operations."""
  optimizer = train.build_optimizer(task.config)
  state = train.init_state(task, optimizer)
  batch = task.train_batch(0)
  step = jax.jit(train.make_train_step(task, optimizer))
  costs: typing.Any = step.lower(state, batch, np.int32(0)).compile().cost_analysis()
  return lambda: step(state, batch, np.int32(0)), costs["flops"]


def part_calls(task: task_lib.Task) -> dict[str, Callable[[], typing.Any]]:
  """Calls that take the gradient of one part of TCA's step each."""
  batch = task.train_batch(0)
  params = train.init_params(task)
  key = task.key("train", 0)
  width, model = 64, task.model
  size, slots = batch.query_coords.shape[:2]
  tokens = jax.random.normal(key, (*batch.coords.shape[:2], width))
  queries = jax.random.normal(key, (size, slots, width))
  heads = attention.split_heads(queries, 4)

  def index(params, tokens):
    return model.apply(
      params,
      tokens,
      batch.coords,
      batch.mask,
      method=lambda model, *x: model.read_out.index(*x, train=True),
      rngs={"dropout": key},
    )

  memory = jax.jit(index)(params, tokens)
  arrays = (memory.keys, memory.values)
  rngs = jax.random.split(key, (size, slots))

  def aggregate(params, tokens):
    memory = index(params, tokens)
    return memory.keys, memory.values

  def walk(heads, arrays):
    own = memory.replace(keys=arrays[0], values=arrays[1])

    def one(query, memory, rng):
      return retrieval.attend(query, memory, rng=rng)

    out = jax.vmap(jax.vmap(one, in_axes=(0, None, 0)))(heads, own, rngs)
    return out.output, out.log_prob, out.entropy

  def leaf_attention(heads, arrays):
    slots = retrieval.level_slots(memory.tree, memory.tree.depth)
    leaves = arrays[1][:, slots]
    attend = jax.vmap(attention.cross_attention)
    return attend(heads, leaves[:, ::-1], leaves, memory.tree.leaf_mask).output

  def head(params, queries):
    return model.apply(params, queries, method=lambda model, x: model.head(x))

  parts = {
    "aggregate": (aggregate, params, tokens),
    "walk": (walk, heads, arrays),
    "leaf_attention": (leaf_attention, heads, arrays),
    "head": (head, params, queries),
  }
  calls = {}
  for name, (function, *inputs) in parts.items():

    def loss(*inputs, function=function):
      leaves = jax.tree.leaves(function(*inputs))
      return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in leaves)

    calls[name], _ = common.compiled(jax.grad(loss, argnums=(0, 1)), *inputs)
  return calls


def run(name: str, peak: float) -> list[Row]:
  """The rows of a task; peak is the machine's, in FLOP per second."""
  rows = []
  shapes = {system: tasks(name, system) for system in SYSTEMS}
  calls, flops = {}, {}
  for model, shape_tasks in shapes.items():
    for shape, (task, _) in shape_tasks.items():
      calls[model, shape], flops[model, shape] = step_call(task)
  if name != "gp":
    parts = part_calls(shapes["tca_shared"][""][0])
    calls |= {("part", k): v for k, v in parts.items()}
  by_name = {"/".join(key): call for key, call in calls.items()}
  seconds = measure.interleaved(by_name, common.REPEATS.value, budget=20.0)
  for model, shape_tasks in shapes.items():
    own = {
      shape: seconds[f"{model}/{shape}"] * share
      for shape, (_, share) in shape_tasks.items()
    }
    work = sum(flops[model, shape] * task[1] for shape, task in shape_tasks.items())
    config = next(iter(shape_tasks.values()))[0].config
    rows.append(
      {
        "task": name,
        "system": model,
        "ms": 1e3 * sum(own.values()),
        "gflop": work / 1e9,
        "share_of_peak": work / sum(own.values()) / peak,
        "config": dataclasses.asdict(config),
      }
    )
  rows += [
    {"task": name, "system": key, "ms": 1e3 * seconds[key]}
    for key in by_name
    if key.startswith("part/")
  ]
  return rows


def matmul_peak() -> float:
  """FLOP per second of a large matrix product."""
  n = 2048
  call, _ = common.compiled(jnp.matmul, jnp.ones((n, n)), jnp.ones((n, n)))
  return 2 * n**3 / measure.interleaved({"product": call}, 5)["product"]


def summarise(rows: list[Row], peak: float) -> str:
  """A table of times."""
  lines: list[tuple[str, ...]] = []
  for row in rows:
    reference = next(r for r in rows if (r["task"], r["system"]) == (row["task"], "ca"))
    work = (
      (f"{row['gflop']:.2f}", f"{row['share_of_peak']:.0%}")
      if "gflop" in row
      else ("", "")
    )
    ratio = f"{row['ms'] / reference['ms']:.2f}x"
    lines.append((row["task"], row["system"], f"{row['ms']:.1f}", ratio, *work))
  title = f"training step; matrix products peak at {peak / 1e9:.0f} GFLOP/s"
  header = ("task", "system", "ms", "of ca", "GFLOP", "of peak")
  return measure.table(title, header, lines)


def main(argv: list[str]) -> None:
  """Times the tasks, writes training.json and .txt."""
  del argv
  common.start()
  peak, rows = matmul_peak(), []
  for name in _TASKS.value:
    rows += run(name, peak)
    print(name, flush=True)
  common.write("training", rows, summarise(rows, peak))


if __name__ == "__main__":
  app.run(main)
