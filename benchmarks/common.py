"""Parts that the benchmarks share: flags, random memories, compiled calls, results."""

from collections.abc import Callable
import dataclasses
import os
import sys
import time
import typing

from absl import app
from absl import flags
from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import provenance
from experiments.common import workdir
from experiments.report_pages.ratios import Row
import tca_jax
from tca_jax import memory as memory_lib
from tca_jax import retrieval
from tca_jax import storage


@dataclasses.dataclass(frozen=True)
class Shape:
  """The shape of a memory.

  Attributes:
    width: D, the width of keys and values over all heads.
    num_heads: H, a divisor of D.
    branch_factor: b.
    dtype: the data type of keys and values.

  Raises:
    ValueError: if the width is not a multiple of the number of heads.
  """

  width: int = 64
  num_heads: int = 4
  branch_factor: int = 2
  dtype: str = "float32"

  def __post_init__(self):
    if self.width % self.num_heads:
      raise ValueError(
        f"width must be a multiple of num_heads={self.num_heads}, got {self.width}"
      )


# --- Flags. They are defined in a `FlagValues`, so that one process can run several
# benchmarks.


def define_ints(
  values: flags.FlagValues, name: str, default: list[int], text: str
) -> None:
  """Defines a flag of comma-separated whole numbers; `ints` reads it.

  Args:
    values: where the flag is defined.
    name: its name.
    default: its default.
    text: a noun phrase for the help text.
  """
  flags.DEFINE_list(
    name, [str(x) for x in default], f"{text}, separated by commas.", flag_values=values
  )
  flags.register_validator(
    name,
    lambda given: given and all(x.isdecimal() and int(x) for x in given),
    "must be whole numbers of at least 1, as in 1024,16384",
    flag_values=values,
  )


def ints(values: flags.FlagValues, name: str) -> list[int]:
  """Reads a flag that `define_ints` defined."""
  return [int(x) for x in getattr(values, name)]


def define_counts(values: flags.FlagValues, *counts: tuple[str, int, str]) -> None:
  """Defines flags of integers of at least 1, each by its name, default and help."""
  for name, default, text in counts:
    flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)


def define_names(
  values: flags.FlagValues,
  name: str,
  allowed: list[str],
  text: str,
  may_be_empty: bool = False,
) -> None:
  """Defines a flag of comma-separated names, by default all that are allowed."""
  flags.DEFINE_list(
    name,
    allowed,
    f"{text}, of {', '.join(allowed)}, separated by commas.",
    flag_values=values,
  )
  flags.register_validator(
    name,
    lambda given: (given or may_be_empty) and set(given) <= set(allowed),
    f"must be of {', '.join(allowed)}",
    flag_values=values,
  )


def options(values: flags.FlagValues, *names: str) -> dict[str, typing.Any]:
  """Reads flags, by name."""
  return {name: getattr(values, name) for name in names}


def define_shared_flags(values: flags.FlagValues) -> None:
  """Defines --seed, --out and --repeats, which all benchmarks have."""
  flags.DEFINE_integer(
    "seed", 0, "Random seed for data.", lower_bound=0, flag_values=values
  )
  flags.DEFINE_string(
    "out", "runs/benchmarks", "Folder for results.", flag_values=values
  )
  flags.register_validator(
    "out",
    lambda out: storage.scheme(out) is None,
    "must be a folder of this machine",
    flag_values=values,
  )
  flags.DEFINE_integer(
    "repeats", 30, "Number of rounds of timing.", lower_bound=1, flag_values=values
  )


def define_shape_flags(values: flags.FlagValues) -> None:
  """Defines the flags that `shape` reads."""
  usual = Shape()
  flags.DEFINE_integer(
    "width",
    usual.width,
    "Width D of keys and values, over all heads.",
    lower_bound=1,
    flag_values=values,
  )
  flags.DEFINE_integer(
    "num_heads",
    usual.num_heads,
    "Number of heads H, a divisor of the width.",
    lower_bound=1,
    flag_values=values,
  )
  flags.DEFINE_integer(
    "branch_factor",
    usual.branch_factor,
    "Number of children of an inner node of the tree.",
    lower_bound=2,
    flag_values=values,
  )
  flags.DEFINE_enum(
    "dtype",
    usual.dtype,
    ["float32", "bfloat16"],
    "Data type of keys and values.",
    flag_values=values,
  )


def shape(values: flags.FlagValues) -> Shape:
  """Reads the flags --width, --num_heads, --branch_factor and --dtype."""
  return Shape(**options(values, *(x.name for x in dataclasses.fields(Shape))))


def launch(
  define_flags: Callable[[flags.FlagValues], None],
  main: Callable[[flags.FlagValues], None],
) -> None:
  """Runs a benchmark with the flags of this process, and exits.

  Asynchronous dispatch is off: on a CPU, handing a call to another thread takes longer
  than a short read.

  Args:
    define_flags: defines the benchmark's flags.
    main: runs the benchmark with its flags.
  """
  values, before = flags.FLAGS, set(flags.FLAGS)
  define_flags(values)
  for name in set(values) - before:
    # Key flags are those that --help lists.
    values.register_key_flag_for_module(sys.argv[0], values[name])

  def start(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    main(values)

  app.run(start)


# --- Random inputs.


def random_memory(num_tokens: int, shape: Shape, seed: int) -> tca_jax.TreeMemory:
  """Makes the memory of a tree over tokens in given order, with random contents."""
  tree = tca_jax.build_tree(
    jnp.zeros((num_tokens, 1)), branch_factor=shape.branch_factor, order="given"
  )
  size = (
    memory_lib.num_slots(tree),
    shape.num_heads,
    shape.width // shape.num_heads,
  )
  generator = np.random.default_rng(seed)
  keys, values = (
    jnp.asarray(generator.standard_normal(size, np.float32), shape.dtype)
    for _ in range(2)
  )
  return memory_lib.from_slots(tree, keys, values)


def random_queries(
  num_queries: int, memory: tca_jax.TreeMemory, seed: int
) -> jax.Array:
  """Draws `[M, H, Dh]` queries, whose walks take different paths."""
  size = (num_queries, *memory.values.shape[1:])
  generator = np.random.default_rng(seed)
  return jnp.asarray(generator.standard_normal(size), memory.values.dtype)


def leaves(memory: tca_jax.TreeMemory) -> tuple[jax.Array, jax.Array]:
  """Takes keys and values of leaf slots, as many as the context has tokens.

  Returns:
    `[N, H, Dh]` each.
  """
  flat, count = memory_lib.leaves(memory), int(memory.tree.num_valid)
  return flat.keys[:count], flat.values[:count]


# --- Calls.


def read(queries: jax.Array, memory: tca_jax.TreeMemory) -> jax.Array:
  """Reads one memory with `[M, H, Dh]` queries; the outputs, `[M, H, Dh]`."""
  return jax.vmap(retrieval.read, in_axes=(0, None))(queries, memory).output


def indexer(
  shape: Shape,
) -> tuple[Callable[..., tuple[jax.Array, jax.Array]], typing.Any]:
  """Makes a function that aggregates and caches, and its parameters.

  Returns:
    `(params, tokens [1, N, D], coords [1, N, C], tree) -> (keys, values)`, and the
    parameters.
  """
  layer = tca_jax.TreeCrossAttention(
    width=shape.width,
    num_heads=shape.num_heads,
    branch_factor=shape.branch_factor,
    dtype=jnp.dtype(shape.dtype),
  )
  tokens = jnp.ones((1, shape.branch_factor, shape.width))
  coords = jnp.ones((1, shape.branch_factor, 1))
  params = jax.jit(layer.init)(jax.random.key(0), tokens, tokens, coords)

  def index(params, tokens, coords, tree):
    memory: typing.Any = layer.apply(params, tokens, coords, tree=tree, method="index")
    return memory.keys, memory.values

  return index, params


def compiled(
  function: Callable[..., typing.Any], *arguments: typing.Any
) -> tuple[Callable[[], typing.Any], Row]:
  """Compiles a call.

  The arguments are flattened once, before the call is timed, as a server would do.

  Returns:
    The call, and what its row contains besides the time: "compile_seconds" and, where
    the backend reports them, the bytes of arguments, results and temporary arrays.
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


# --- Results.


def keep(values: flags.FlagValues, name: str, rows: list[Row]) -> epath.Path:
  """Writes NAME.json, the rows with their origin.

  A benchmark keeps its rows after each size, so that none is lost if it is stopped.

  Args:
    values: the shared flags.
    name: the name of the benchmark.
    rows: the results so far.

  Returns:
    The path.
  """
  out = epath.Path(values.out)
  out.mkdir(parents=True, exist_ok=True)
  origin = provenance.provenance() | {
    "seed": values.seed,
    "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES"),
  }
  path = out / f"{name}.json"
  workdir.write_json(path, [row | origin for row in rows])
  return path


def finish(
  values: flags.FlagValues, name: str, rows: list[Row], text: str
) -> epath.Path:
  """Writes NAME.json as `keep` does, and the tables to NAME.txt.

  Returns:
    The folder.
  """
  path = keep(values, name, rows)
  path.with_suffix(".txt").write_text(text + "\n")
  print(f"{path}, .txt")
  return path.parent
