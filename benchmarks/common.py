"""What the benchmarks share: flags, synthetic memories, results."""

from collections.abc import Callable
import os
import time
import typing

from absl import flags
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import config
from experiments.common import launch
from experiments.common import measure
from experiments.common.ratios import Row
import tca_jax
from tca_jax import retrieval

Shape = tuple[int, int, int, str]  # D, H, b, dtype

_SEED = flags.DEFINE_integer("seed", 0, "Of the data.", lower_bound=0)
_OUT = flags.DEFINE_string("out", "runs/benchmarks", "Where the results go.")
REPEATS = flags.DEFINE_integer("repeats", 30, "Rounds of timing.", lower_bound=1)


def define_ints(name: str, default: list[int], text: str) -> Callable[[], list[int]]:
  """A flag of comma-separated whole numbers, and how to read it."""
  holder = flags.DEFINE_list(name, [str(x) for x in default], f"{text}, with commas.")
  flags.register_validator(
    name,
    lambda given: given and all(x.isdecimal() and int(x) for x in given),
    "whole numbers of at least 1 are allowed, as in 1024,16384",
  )
  return lambda: [int(x) for x in holder.value]


def define_shape() -> Callable[[], Shape]:
  """The flags --width, --num_heads, --branch_factor, --dtype, and how to read them."""
  holders = (
    flags.DEFINE_integer("width", 64, "D.", lower_bound=1),
    flags.DEFINE_integer("num_heads", 4, "H, which divides D.", lower_bound=1),
    flags.DEFINE_integer("branch_factor", 2, "b.", lower_bound=2),
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the memories."),
  )
  return lambda: typing.cast(Shape, tuple(holder.value for holder in holders))


def start() -> None:
  """What every benchmark's main does first.

  Calls run on the thread that makes them: handing one to another thread takes longer
  than a short read.
  """
  launch.quiet_libraries()
  jax.config.update("jax_cpu_enable_async_dispatch", False)


def rng() -> np.random.Generator:
  """Of the flag --seed."""
  return np.random.default_rng(_SEED.value)


def random_memory(num_tokens: int, shape: Shape) -> tca_jax.TreeMemory:
  """The memory of a tree over tokens in given order, with random keys and values."""
  width, num_heads, branch_factor, dtype = shape
  tree = tca_jax.build_tree(
    jnp.zeros((num_tokens, 1)), branch_factor=branch_factor, order="given"
  )
  b, depth = tree.branch_factor, max(tree.depth, 1)
  rows = (b**depth - 1) // (b - 1)
  generator = rng()
  head = width // num_heads

  def draw(*shape: int) -> jax.Array:
    return jnp.asarray(generator.standard_normal(shape, np.float32), dtype)

  return tca_jax.TreeMemory(
    tree=tree,
    keys=draw(rows, num_heads, b, head),
    values=draw(rows * b, num_heads, head),
  )


def random_queries(num_queries: int, memory: tca_jax.TreeMemory) -> jax.Array:
  """`[M, H, Dh]`, so that walks part ways."""
  shape = (num_queries, *memory.values.shape[1:])
  return jnp.asarray(rng().standard_normal(shape), memory.values.dtype)


def leaves(memory: tca_jax.TreeMemory) -> jax.Array:
  """`[N, H, Dh]`, values of as many of a memory's leaves as it has tokens."""
  leaves = memory.values[retrieval.level_slots(memory.tree, memory.tree.depth)]
  return leaves[: int(memory.tree.num_valid)]


def read(queries: jax.Array, memory: tca_jax.TreeMemory) -> jax.Array:
  """`[M, H, Dh]`, what queries read from one memory."""
  return jax.vmap(retrieval.read, in_axes=(0, None))(queries, memory).output


def indexer(
  shape: Shape,
) -> tuple[Callable[..., tuple[jax.Array, jax.Array]], typing.Any]:
  """`(params, tokens [1, N, D], coords, tree) -> (keys, values)`, and the params."""
  width, num_heads, branch_factor, dtype = shape
  layer = tca_jax.TreeCrossAttention(
    width=width,
    num_heads=num_heads,
    branch_factor=branch_factor,
    dtype=jnp.dtype(dtype),
  )
  tokens, coords = jnp.ones((1, branch_factor, width)), jnp.ones((1, branch_factor, 1))
  params = jax.jit(layer.init)(jax.random.key(0), tokens, tokens, coords)

  def index(params, tokens, coords, tree):
    memory: typing.Any = layer.apply(params, tokens, coords, tree=tree, method="index")
    return memory.keys, memory.values

  return index, params


def compiled(
  function: Callable[..., typing.Any], *arguments: typing.Any
) -> tuple[Callable[[], typing.Any], Row]:
  """A call to a jitted function; its compile seconds and its bytes.

  The bytes are those of the arguments, the results and the temporary arrays. The
  arguments are flattened once, before: a server's loop would do so too.
  """
  flat, structure = jax.tree.flatten(arguments)
  jitted = jax.jit(lambda *leaves: function(*jax.tree.unflatten(structure, leaves)))
  started = time.perf_counter()
  memory = jitted.lower(*flat).compile().memory_analysis()
  seconds = time.perf_counter() - started
  sizes = (
    {}
    if memory is None
    else {
      "argument_bytes": memory.argument_size_in_bytes,
      "output_bytes": memory.output_size_in_bytes,
      "temp_bytes": memory.temp_size_in_bytes,
    }
  )
  return lambda: jitted(*flat), {"compile_seconds": seconds, **sizes}


def write(name: str, rows: list[Row], text: str) -> epath.Path:
  """Writes `name.json`, the rows with where they come from, and `name.txt`."""
  out = epath.Path(_OUT.value)
  out.mkdir(parents=True, exist_ok=True)
  source = measure.provenance() | {
    "seed": _SEED.value,
    "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES"),
  }
  config.write_json(out / f"{name}.json", [row | source for row in rows])
  (out / f"{name}.txt").write_text(text + "\n")
  print(f"{out / name}.json, .txt")
  return out
