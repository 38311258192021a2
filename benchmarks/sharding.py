"""Benchmark of contexts that are split over devices: memory, bytes sent, time.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.sharding

- Memory and bytes: the programs of `sharding.index` and `sharding.read` are compiled for
  each size, and are not run. XLA reports the memory per device. The bytes that the
  devices add up for a query are those of the results of all collective operations of
  the compiled read. Both are compared with formulas, which must agree within 1 percent.
- Time: up to --run_tokens tokens, the programs are run. Devices that share the cores of
  one machine, as with the flag above, are not faster together: their times say nothing
  about a machine with several accelerators.
- Projection: the formulas for a context of --project_tokens tokens.
"""

import functools
import os
import re
import time
import typing

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from experiments.common import tables
from experiments.common import timing
from experiments.report_pages.ratios import Row
import tca_jax
from tca_jax import sharding

MODELS = ("tca", "relative_tca")
_AXES, _CHANNELS = 2, 1  # of the random contexts
_TOLERANCE = 0.01  # of the formulas
_BYTES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4}
_COLLECTIVE = re.compile(
  r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
  r"(?:-start)?\("
)


def make_model(name: str) -> tca_jax.ReTreever:
  """Makes a model of the default sizes, one of `MODELS`."""
  head = tca_jax.GaussianHead(_CHANNELS)
  if name == "tca":
    return tca_jax.ReTreever(
      tca_jax.PointEmbedder(), tca_jax.TreeCrossAttention(), head
    )
  read_out = tca_jax.RelativeTreeCrossAttention()
  return tca_jax.ReTreever(tca_jax.PlacelessEmbedder(), read_out, head)


def memory_bytes(model: tca_jax.ReTreever, num_tokens: int, num_devices: int) -> int:
  """Computes the bytes of one device's part of a memory.

  A device has the nodes of levels 1 to k, where b**k devices share the tree, and those
  below the root of its own subtree.

  Args:
    model: its read-out has a tree, and float32 activations.
    num_tokens: N.
    num_devices: P.
  """
  read_out: typing.Any = model.read_out
  b = read_out.branch_factor
  split = tca_jax.tree_depth(num_devices, b)
  below = tca_jax.tree_depth(num_tokens, b) - split
  nodes = sum(b**level for part in (split, below) for level in range(1, part + 1))
  if isinstance(read_out, tca_jax.RelativeTreeCrossAttention):
    numbers = nodes * (1 + 3 * _AXES + 2 * _CHANNELS + read_out.summary_width)
    numbers += _AXES + 1 + 2 * _CHANNELS  # the domain
  else:
    numbers = nodes * 2 * read_out.width
  leaves = b**below * (4 + 1)  # a token's number and a bool
  return 4 * numbers + leaves + 4 * b


def query_bytes(
  model: tca_jax.ReTreever, num_tokens: int, num_paths: int, num_devices: int
) -> int:
  """Computes the bytes that the devices add up to predict for one query.

  They do not depend on the number of devices, if there are several. A dot-product read
  of one path sends the output of the attention. Several paths also send the logits of
  their children at every level. A relative read sends the distances of the children, and
  the nodes that the query reads.

  Args:
    model: see `memory_bytes`.
    num_tokens: N.
    num_paths: the number of paths that a query follows.
    num_devices: P.
  """
  if num_devices == 1:
    return 0
  read_out: typing.Any = model.read_out
  b = read_out.branch_factor
  kept, children = 1, 0
  for _ in range(tca_jax.tree_depth(num_tokens, b)):
    children += kept * b
    kept = min(kept * b, num_paths)
  if isinstance(read_out, tca_jax.RelativeTreeCrossAttention):
    nodes = tca_jax.num_read_slots(num_tokens, b, num_paths)
    width = 1 + 3 * _AXES + 2 * _CHANNELS + read_out.summary_width
    return 4 * (children + nodes * width)
  logits = children * read_out.num_heads if num_paths > 1 else 0
  return 4 * (logits + read_out.width)


def sent_bytes(program: str) -> int:
  """Counts the bytes of the results of all collective operations of a program.

  Args:
    program: the text of a compiled program, whose loops contain no such operation.

  >>> sent_bytes("%sum = (f32[2,3]{1,0}, s32[]) all-reduce(%a, %b), channel_id=1")
  28
  """
  total = 0
  for results in _COLLECTIVE.findall(program):
    for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
      size = int(np.prod([int(n) for n in shape.split(",") if n]))
      total += _BYTES[kind] * size
  return total


def measure(
  name: str,
  num_tokens: int,
  num_devices: int,
  num_queries: int,
  run: bool,
  seed: int,
  repeats: int,
) -> Row:
  """Measures one size.

  Args:
    name: one of `MODELS`.
    num_tokens: N.
    num_devices: P.
    num_queries: M, the number of queries in one call.
    run: whether to run the programs.
    seed: for points and parameters.
    repeats: the number of rounds of timing a read.

  Raises:
    RuntimeError: if a formula differs from what was measured.
  """
  model = make_model(name)
  num_paths = getattr(model.read_out, "num_paths", 1)
  devices = np.array(jax.devices()[:num_devices])
  mesh = jax.sharding.Mesh(devices, (sharding.CONTEXT,))
  shape = (1, -(-num_tokens // num_devices) * num_devices)
  example = (jnp.ones((1, 8, _AXES)), jnp.ones((1, 8, _CHANNELS)))
  params = jax.jit(model.init)(jax.random.key(seed), *example, example[0])

  @jax.jit
  def index(params, coords, values, mask):
    return sharding.index(model, params, coords, values, mask, mesh=mesh)

  @jax.jit
  def read(params, memory, query_coords):
    output = sharding.read(model, params, memory, query_coords, mesh=mesh).output
    return output.mean, output.std

  split = jax.NamedSharding(mesh, jax.P(None, sharding.CONTEXT))
  context = [
    jax.ShapeDtypeStruct((*shape, *width), dtype, sharding=split)
    for width, dtype in (
      ((_AXES,), jnp.float32),
      ((_CHANNELS,), jnp.float32),
      ((), jnp.bool_),
    )
  ]
  indexing = index.lower(params, *context).compile()
  memory = jax.tree.map(
    lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
    jax.eval_shape(index, params, *context),
    indexing.output_shardings,
  )
  queries = jax.ShapeDtypeStruct((1, num_queries, _AXES), jnp.float32)
  reading = read.lower(params, memory, queries).compile()
  sizes = typing.cast(typing.Any, indexing.memory_analysis())
  row: Row = {
    "system": name,
    "num_tokens": num_tokens,
    "num_devices": num_devices,
    "num_paths": num_paths,
    "num_queries": num_queries,
    "memory_bytes": sizes.output_size_in_bytes,
    "memory_bytes_formula": memory_bytes(model, num_tokens, num_devices),
    "index_temp_bytes": sizes.temp_size_in_bytes,
    "index_argument_bytes": sizes.argument_size_in_bytes,
    # The sums of a single device's program send nothing.
    "query_bytes": sent_bytes(reading.as_text() or "") / num_queries
    if num_devices > 1
    else 0,
    "query_bytes_formula": query_bytes(model, num_tokens, num_paths, num_devices),
  }
  for key in ("memory_bytes", "query_bytes"):
    measured, expected = row[key], row[f"{key}_formula"]
    if abs(measured - expected) > _TOLERANCE * expected:
      raise RuntimeError(
        f"{key} of {name}, {num_tokens} tokens on {num_devices} devices: measured"
        f" {measured}, but the formula gives {expected}"
      )
  if not run:
    return row
  generator = np.random.default_rng(seed)
  coords = generator.random((1, num_tokens, _AXES), np.float32)
  placed = sharding.place_context(coords, np.sin(9 * coords[..., :1]), mesh=mesh)
  started = time.perf_counter()
  memory = jax.block_until_ready(indexing(params, *placed))
  row["index_seconds"] = time.perf_counter() - started
  del placed
  targets = jnp.asarray(generator.random((1, num_queries, _AXES), np.float32))
  call = functools.partial(read, params, memory, targets)
  seconds = timing.interleaved({"read": call}, repeats)["read"]
  return row | {"us_per_query": 1e6 * seconds / num_queries}


def project(name: str, num_tokens: int, num_devices: int) -> Row:
  """Applies the formulas to a size that is not measured."""
  model = make_model(name)
  num_paths = getattr(model.read_out, "num_paths", 1)
  return {
    "system": name,
    "num_tokens": num_tokens,
    "num_devices": num_devices,
    "num_paths": num_paths,
    "memory_bytes_formula": memory_bytes(model, num_tokens, num_devices),
    "query_bytes_formula": query_bytes(model, num_tokens, num_paths, num_devices),
  }


def summarise(rows: list[Row]) -> str:
  """Makes a table."""
  header = ("model", "tokens", "devices", "MB/device", "formula", "index temp MB")
  header += ("bytes/query", "formula", "index s", "us/query")
  lines = []
  for row in rows:

    def cell(key, text, unit=1.0, row=row):
      return format(row[key] * unit, text) if key in row else ""

    lines.append(
      (
        row["system"],
        f"{row['num_tokens']:,}",
        str(row["num_devices"]),
        cell("memory_bytes", ",.1f", 1e-6),
        cell("memory_bytes_formula", ",.1f", 1e-6),
        cell("index_temp_bytes", ",.1f", 1e-6),
        cell("query_bytes", ",.0f"),
        cell("query_bytes_formula", ",.0f"),
        cell("index_seconds", ".2f"),
        cell("us_per_query", ",.1f"),
      )
    )
  return tables.table("sharding", header, lines)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of the benchmark."""
  common.define_names(values, "models", list(MODELS), "Models that are measured")
  common.define_ints(
    values, "num_tokens", [10**5, 10**6, 10**7], "Numbers of context tokens N"
  )
  common.define_ints(values, "num_devices", [1, 2, 4, 8], "Numbers of devices P")
  common.define_ints(
    values, "project_devices", [1, 8, 64, 1024], "Numbers of devices of the projection"
  )
  common.define_counts(
    values,
    ("run_tokens", 10**6, "Largest number of tokens with which programs are run."),
    ("num_queries", 1024, "Number of queries in one call."),
    ("project_tokens", 10**9, "Number of tokens of the projection."),
  )
  common.define_shared_flags(values)


def main(values: flags.FlagValues) -> None:
  """Measures all sizes, and writes sharding.json and .txt."""
  num_devices = common.ints(values, "num_devices")
  # On a CPU, XLA starts as many threads as devices. One that waits for the others can hold
  # the thread that they need, forever. NPROC sets the number of threads.
  os.environ.setdefault("NPROC", str(4 * max(num_devices)))
  if max(num_devices) > jax.device_count():
    raise app.UsageError(
      f"num_devices must be at most {jax.device_count()}, the devices of this process,"
      f" got {max(num_devices)}; on a CPU, set the environment variable"
      f" XLA_FLAGS=--xla_force_host_platform_device_count={max(num_devices)}"
    )
  projected = [
    project(name, values.project_tokens, count)
    for name in values.models
    for count in common.ints(values, "project_devices")
  ]
  rows: list[Row] = []
  for name in values.models:
    for num_tokens in common.ints(values, "num_tokens"):
      for count in num_devices:
        rows.append(
          measure(
            name,
            num_tokens,
            count,
            values.num_queries,
            num_tokens <= values.run_tokens,
            values.seed,
            values.repeats,
          )
        )
        common.keep(values, "sharding", rows + projected)
        print(f"{name}, {num_tokens:,} tokens, {count} devices", flush=True)
  rows += projected
  common.finish(values, "sharding", rows, summarise(rows))


if __name__ == "__main__":
  common.launch(define_flags, main)
