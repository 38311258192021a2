"""Benchmark of training: milliseconds per step of the models, and of TCA's parts.

  python -m benchmarks.training --tasks=copy,gp,images

- copy: the copy task with T = 256, batches of 128.
- gp: GP regression, batches of 16; the mean over the three shapes of its batches,
  weighted by how often they occur.
- images: MNIST digits, batches of 100.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import typing

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from experiments import copy_task
from experiments import gp_regression
from experiments import image_completion
from experiments.common import tables
from experiments.common import task as task_lib
from experiments.common import timing
from experiments.common import train
from experiments.common.batch import Batch
from experiments.common.systems import PUBLISHED
from experiments.data import gp
from experiments.report_pages.ratios import Row
from tca_jax import attention
from tca_jax import retrieval

TASKS = ("copy", "gp", "images")

# The models with the default recipe, and TCA with a shared policy, as in the paper.
MODELS: dict[str, dict[str, typing.Any]] = {
  **{model: dict(model=model) for model in PUBLISHED},
  "tca_shared": dict(model="tca", share_policy=True),
}


@dataclasses.dataclass(frozen=True)
class Options:
  """Sizes of the tasks.

  Attributes:
    batch_size: contexts per step; 0: 128 for copy, 16 for gp and 100 for images.
    sequence_length: T of the copy task.
    data_dir: the folder of the prepared images.
  """

  batch_size: int = 0
  sequence_length: int = 256
  data_dir: str = "data"


@dataclasses.dataclass(frozen=True)
class Case:
  """A task with a batch of one shape.

  Attributes:
    task: the task.
    batch: a training batch.
    share: the share of the training steps whose batches have this shape.
  """

  task: task_lib.Task
  batch: Batch
  share: float = 1.0


def gp_frequency() -> dict[tuple[int, int], float]:
  """Computes how often a batch has a shape: all context sizes are equally frequent."""
  sizes = gp.MAX_CONTEXT + 1 - gp.MIN_POINTS
  return {
    shape: (shape[0] + 1 - gp.smallest_context(shape)) / sizes for shape in gp.SHAPES
  }


def make_cases(name: str, model: str, options: Options) -> dict[str, Case]:
  """Makes a task and its batches.

  Args:
    name: one of `TASKS`.
    model: one of `MODELS`.
    options: the sizes.

  Returns:
    The cases, by the name of the shape.
  """
  size, model_options = options.batch_size, MODELS[model]
  if name == "gp":
    config = gp_regression.GPConfig(batch_size=size or 16, **model_options)
    task = gp_regression.GPTask(config)
    rng = task_lib.batch_rng(config.seed, 0)
    return {
      f"{shape}": Case(task, task.train_batch_of_shape(rng, shape), share)
      for shape, share in gp_frequency().items()
    }
  if name == "copy":
    task = copy_task.CopyTask(
      copy_task.CopyConfig(
        sequence_length=options.sequence_length,
        batch_size=size or 128,
        **model_options,
      )
    )
  else:
    task = image_completion.ImageTask(
      image_completion.ImageConfig(
        batch_size=size or 100, data_dir=options.data_dir, **model_options
      )
    )
  return {"": Case(task, task.first_batch())}


def step_call(case: Case) -> tuple[Callable[[], typing.Any], float, typing.Any]:
  """Makes a call that takes a training step.

  Returns:
    The call, the number of its floating-point operations, and the parameters.
  """
  optimizer = train.build_optimizer(case.task.config)
  state = train.init_state(case.task, optimizer)
  step = jax.jit(train.make_train_step(case.task, optimizer))
  arguments = (state, case.batch, np.int32(0))
  costs: typing.Any = step.lower(*arguments).compile().cost_analysis()
  return lambda: step(*arguments), costs["flops"], state["params"]


def part_calls(case: Case, params: typing.Any) -> dict[str, Callable[[], typing.Any]]:
  """Makes calls that take the gradient of one part of TCA's step each.

  Args:
    case: of a model with a tree and a shared policy.
    params: the parameters of the model.

  Returns:
    The calls, by the name of the part.
  """
  batch, model = case.batch, case.task.model
  width, num_heads = model.read_out.width, model.read_out.num_heads
  rng = task_lib.step_rng(case.task.config.seed, 0)
  size, slots = batch.query_coords.shape[:2]
  embedded = jax.random.normal(rng, (*batch.coords.shape[:2], width))
  queries = jax.random.normal(rng, (size, slots, width))
  heads = attention.split_heads(queries, num_heads)

  def index(params, tokens):
    return model.apply(
      params,
      tokens,
      batch.coords,
      batch.mask,
      method=lambda model, *x: model.read_out.index(*x, train=True),
      rngs={"dropout": rng},
    )

  memory = jax.jit(index)(params, embedded)
  arrays, tokens = (memory.keys, memory.values), memory.tokens
  rngs = jax.random.split(rng, (size, slots))

  def with_arrays(arrays):
    return memory.replace(keys=arrays[0], values=arrays[1])

  def aggregate(params, tokens):
    memory = index(params, tokens)
    return memory.keys, memory.values

  def walk(heads, arrays):
    def one(query, memory, rng):
      return retrieval.attend(query, memory, rng=rng)

    by_query = jax.vmap(one, in_axes=(0, None, 0))
    out = jax.vmap(by_query)(heads, with_arrays(arrays), rngs)
    return out.output, out.log_prob, out.entropy

  def leaf_attention(heads, arrays):
    keys, values = arrays
    attend = jax.vmap(attention.cross_attention)
    return attend(heads, keys, values, tokens.mask).output

  def head(params, queries):
    return model.apply(params, queries, method=lambda model, x: model.head(x))

  parts = {
    "aggregate": (aggregate, params, embedded),
    "walk": (walk, heads, arrays),
    "leaf_attention": (leaf_attention, heads, (tokens.keys, tokens.values)),
    "head": (head, params, queries),
  }
  calls = {}
  for name, (function, *inputs) in parts.items():

    def loss(*inputs, function=function):
      leaves = jax.tree.leaves(function(*inputs))
      return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in leaves)

    calls[name], _ = common.compiled(jax.grad(loss, argnums=(0, 1)), *inputs)
  return calls


def run(
  name: str, models: Sequence[str], options: Options, repeats: int, peak: float
) -> list[Row]:
  """Times the training steps of one task.

  Args:
    name: one of `TASKS`.
    models: of `MODELS`.
    options: the sizes.
    repeats: the number of rounds of timing.
    peak: the machine's floating-point operations per second, see `matmul_peak`.

  Returns:
    A row for each model. Unless the task has batches of several shapes, "tca_shared"
    also has a row for each part of its step.
  """
  cases = {model: make_cases(name, model, options) for model in models}
  calls, flops, params = {}, {}, {}
  for model, by_shape in cases.items():
    for shape, case in by_shape.items():
      key = model, shape
      calls[key], flops[key], params[key] = step_call(case)
  shared = cases.get("tca_shared", {})
  if len(shared) == 1:
    ((shape, case),) = shared.items()
    parts = part_calls(case, params["tca_shared", shape])
    calls |= {("part", part): call for part, call in parts.items()}
  seconds = timing.interleaved(calls, repeats, budget=20.0)
  rows = []
  for model, by_shape in cases.items():
    taken = sum(seconds[model, x] * case.share for x, case in by_shape.items())
    work = sum(flops[model, x] * case.share for x, case in by_shape.items())
    config = next(iter(by_shape.values())).task.config
    rows.append(
      {
        "task": name,
        "system": model,
        "ms": 1e3 * taken,
        "gflop": work / 1e9,
        "share_of_peak": work / taken / peak,
        "config": dataclasses.asdict(config),
      }
    )
  rows += [
    {"task": name, "system": "/".join(key), "ms": 1e3 * seconds[key]}
    for key in calls
    if key[0] == "part"
  ]
  return rows


def matmul_peak() -> float:
  """Measures the floating-point operations per second of a large matrix product."""
  n = 2048
  call, _ = common.compiled(jnp.matmul, jnp.ones((n, n)), jnp.ones((n, n)))
  return 2 * n**3 / timing.interleaved({"product": call}, 5)["product"]


def summarise(rows: list[Row], peak: float) -> str:
  """Prints a table of times, and returns it."""
  lines: list[tuple[str, ...]] = []
  for row in rows:
    ca = [r["ms"] for r in rows if (r["task"], r["system"]) == (row["task"], "ca")]
    work = (
      (f"{row['gflop']:.2f}", f"{row['share_of_peak']:.0%}")
      if "gflop" in row
      else ("", "")
    )
    ratio = f"{row['ms'] / ca[0]:.2f}x" if ca else ""
    lines.append((row["task"], row["system"], f"{row['ms']:.1f}", ratio, *work))
  title = f"training step; matrix products reach {peak / 1e9:.0f} GFLOP/s"
  header = ("task", "model", "ms", "/ ca", "GFLOP", "share of that")
  return tables.table(title, header, lines)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of the benchmark."""
  for name, noun, allowed in (("tasks", "Tasks", TASKS), ("models", "Models", MODELS)):
    common.define_names(values, name, list(allowed), f"{noun} to time")
  usual = Options()
  flags.DEFINE_integer(
    "batch_size",
    usual.batch_size,
    "Number of contexts per step; 0: 128 for copy, 16 for gp and 100 for images.",
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_integer(
    "sequence_length",
    usual.sequence_length,
    "Sequence length T of the copy task, even.",
    lower_bound=4,
    flag_values=values,
  )
  flags.DEFINE_string(
    "data_dir", usual.data_dir, "Folder of the prepared images.", flag_values=values
  )
  common.define_shared_flags(values)


def main(values: flags.FlagValues) -> None:
  """Times the tasks, and writes training.json and .txt."""
  names = [field.name for field in dataclasses.fields(Options)]
  options = Options(**common.options(values, *names))
  peak, rows = matmul_peak(), []
  for name in values.tasks:
    rows += run(name, values.models, options, values.repeats, peak)
    common.keep(values, "training", rows)
    print(name, flush=True)
  common.finish(values, "training", rows, summarise(rows, peak))


if __name__ == "__main__":
  common.launch(define_flags, main)
