"""Benchmark of building: milliseconds per context, part by part, for several methods.

  python -m benchmarks.build --num_tokens=16384,1048576

- Order of the tokens: the k-d tree of random 2-D points, outside `jax.jit` (on a CPU by
  NumPy) and inside (by XLA), beside SciPy's cKDTree and, if it is installed, jaxkd.
- Aggregation with the caching of keys and values, beside its matrix products only.
- The break-even point: the number of queries after which the build has saved its time
  against full attention.
"""

import dataclasses
import importlib.util

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
from scipy import spatial

from benchmarks import baselines
from benchmarks import common
from experiments.common import tables
from experiments.common import timing
from experiments.report_pages.ratios import Row
import tca_jax
from tca_jax import tree as tree_lib


def matrix_products(
  params: dict, num_tokens: int, width: int, branch_factor: int
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
  """Lists the matrix products of aggregating and caching a context.

  Args:
    params: the parameters of a `TreeCrossAttention`.
    num_tokens: N.
    width: D.
    branch_factor: b.

  Returns:
    The shapes of both factors of each product.
  """
  aggregator = jax.tree.leaves(params["params"]["aggregator"])
  kernels = [x.shape for x in aggregator if x.ndim == 2]
  depth = tree_lib.tree_depth(num_tokens, branch_factor)
  rows = [branch_factor**l for l in range(1, depth + 1)]
  products = [((n, kernel[0]), kernel) for n in rows for kernel in kernels]
  return products + 2 * [((sum(rows), width), (width, width))]


def products_only(shapes: list) -> tuple:
  """Makes a function that multiplies matrices of some shapes, and its argument.

  The products with kernels of one shape are done together, in chunks as the aggregator
  does them; the last chunk is filled up.
  """
  rows: dict[tuple[int, int], int] = {}
  for (n, _), kernel in shapes:
    rows[kernel] = rows.get(kernel, 0) + n
  chunk = 2 * tree_lib.CHUNK
  inputs = [
    (jnp.ones((-(-n // chunk), min(n, chunk), kernel[0])), jnp.ones(kernel))
    for kernel, n in rows.items()
  ]

  def multiply(inputs):
    # The sum over rows reads a product without storing it.
    return [
      jax.lax.map(lambda x, kernel=kernel: jnp.sum(x @ kernel, axis=0), chunks)
      for chunks, kernel in inputs
    ]

  return multiply, inputs


def run(
  num_tokens: int,
  num_queries: int,
  shape: common.Shape,
  seed: int,
  repeats: int,
  max_full_pairs: int,
) -> list[Row]:
  """Times all parts for one size of context.

  Args:
    num_tokens: N.
    num_queries: M, the number of queries in one read, for the break-even point.
    shape: the shape of the memory.
    seed: for points and tokens.
    repeats: the number of rounds of timing.
    max_full_pairs: full attention is skipped if there are more query-token pairs.

  Returns:
    A row for each part and each method.
  """
  b = shape.branch_factor
  generator = np.random.default_rng(seed)
  points = generator.random((num_tokens, 2), np.float32)
  coords = jnp.asarray(points)
  tokens = jnp.asarray(
    generator.standard_normal((1, num_tokens, shape.width)), shape.dtype
  )
  calls, details = {}, {}

  def add(name: str, function, *arguments) -> None:
    calls[name], details[name] = common.compiled(function, *arguments)

  # --- Order.
  calls["order_host"] = lambda: tca_jax.build_tree(coords, branch_factor=b)
  add("order_traced", lambda x: tca_jax.build_tree(x, branch_factor=b), coords)
  calls["order_ckdtree"] = lambda: spatial.KDTree(points, leafsize=1)
  if importlib.util.find_spec("jaxkd"):
    import jaxkd  # noqa: PLC0415

    add("order_jaxkd", lambda x: jaxkd.build_tree(x).indices, coords)

  # --- Aggregation and caching.
  index, params = common.indexer(shape)
  tree = jax.tree.map(lambda x: x[None], tca_jax.build_tree(coords, branch_factor=b))
  add("aggregate_and_cache", index, params, tokens, coords[None], tree)
  products = matrix_products(params, num_tokens, shape.width, b)
  multiply, inputs = products_only(products)
  add("matrix_products", multiply, inputs)
  nodes = 2 * sum(b**l for l in range(1, tree.depth + 1)) * shape.width
  details["aggregate_and_cache"] |= {
    "node_bytes": nodes * jnp.dtype(shape.dtype).itemsize,
    "flops": sum(2 * n * k * m for (n, k), (_, m) in products),
  }
  seconds = timing.interleaved(calls, repeats)

  # --- The break-even point.
  if num_queries * num_tokens <= max_full_pairs:
    memory = common.random_memory(num_tokens, shape, seed)
    queries = common.random_queries(num_queries, memory, seed)
    full = baselines.full_methods(queries, memory)
    reads = {name: call for name, (call, _) in full.items()}
    reads["read"], _ = common.compiled(common.read, queries, memory)
    taken = timing.interleaved(reads, repeats)
    read = taken.pop("read")
    build = seconds["order_host"] + seconds["aggregate_and_cache"]
    gain = (min(taken.values()) - read) / num_queries
    details["aggregate_and_cache"]["pays_after_queries"] = (
      build / gain if gain > 0 else None
    )
  return [
    {
      "system": name,
      "num_tokens": num_tokens,
      "num_queries": num_queries,
      "ms": 1e3 * taken,
      "ns_per_token": 1e9 * taken / num_tokens,
      **details.get(name, {}),
      **dataclasses.asdict(shape),
    }
    for name, taken in seconds.items()
  ]


def summarise(rows: list[Row]) -> str:
  """Prints a table of times and ratios, and returns it."""
  by_size: dict[int, dict[str, Row]] = {}
  for row in rows:
    by_size.setdefault(row["num_tokens"], {})[row["system"]] = row
  names = list(dict.fromkeys(row["system"] for row in rows))
  lines: list[tuple[str, ...]] = []
  for n, by_name in by_size.items():
    cells = [f"{by_name[name]['ms']:.2f}" if name in by_name else "" for name in names]
    built = by_name["aggregate_and_cache"]
    peak = built["temp_bytes"] + built["output_bytes"] + built["argument_bytes"]
    pays = built.get("pays_after_queries")
    lines.append(
      (
        f"{n:,}",
        *cells,
        f"{by_name['matrix_products']['ms'] / built['ms']:.0%}",
        f"{peak / built['node_bytes']:.2f}",
        f"{pays:,.0f}" if pays else "",
      )
    )
  header = (
    "tokens",
    *names,
    "products / aggregate",
    "peak / node arrays",
    "break-even, queries",
  )
  return tables.table("ms per context", header, lines)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of the benchmark."""
  sizes = [2**10, 2**14, 2**17, 2**20]
  common.define_ints(values, "num_tokens", sizes, "Numbers of context tokens N")
  flags.DEFINE_integer(
    "num_queries",
    256,
    "Number of queries in one read, for the break-even point.",
    lower_bound=1,
    flag_values=values,
  )
  common.define_shape_flags(values)
  flags.DEFINE_integer(
    "max_full_pairs",
    2**28,
    "Largest number of query-token pairs for which full attention is timed.",
    flag_values=values,
  )
  common.define_shared_flags(values)


def main(values: flags.FlagValues) -> None:
  """Times all sizes, and writes build.json and .txt."""
  rows = []
  names = ("num_queries", "seed", "repeats", "max_full_pairs")
  options = common.options(values, *names)
  for num_tokens in common.ints(values, "num_tokens"):
    rows += run(num_tokens, shape=common.shape(values), **options)
    common.keep(values, "build", rows)
    print(f"{num_tokens:,} tokens", flush=True)
  common.finish(values, "build", rows, summarise(rows))


if __name__ == "__main__":
  common.launch(define_flags, main)
