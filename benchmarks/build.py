"""Milliseconds per context of building a memory, part by part, against rivals.

  python -m benchmarks.build --num_tokens=16384,1048576

Ordering: the k-d tree of random 2-D points, by NumPy on the host and by XLA, against
SciPy's cKDTree and jaxkd (if it is installed). Aggregation with the caching of keys
and values: against the same matrix products alone, at the same shapes. And after how
many queries the whole build has paid for itself against full attention.
"""

import importlib.util

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
from scipy import spatial

from benchmarks import common
from benchmarks import rivals
from experiments.common import measure
from experiments.common.ratios import Row
import tca_jax
from tca_jax import tree as tree_lib

_NUM_TOKENS = common.define_ints("num_tokens", [2**10, 2**14, 2**17, 2**20], "N")
_NUM_QUERIES = common.define_ints("num_queries", [256], "M, of the break-even")
_SHAPE = common.define_shape()
_MAX_PAIRS = flags.DEFINE_integer(
  "max_full_pairs", 2**28, "Full attention to more query-token pairs is left out."
)


def matrix_products(
  params: dict, num_tokens: int, width: int, branch_factor: int
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
  """The shapes of all matrix products of aggregating and caching a context."""
  aggregator = jax.tree.leaves(params["params"]["aggregator"])
  kernels = [x.shape for x in aggregator if x.ndim == 2]
  depth = tree_lib.tree_depth(num_tokens, branch_factor)
  rows = [branch_factor**l for l in range(1, depth + 1)]
  products = [((n, kernel[0]), kernel) for n in rows for kernel in kernels]
  return products + 2 * [((sum(rows), width), (width, width))]


def products_alone(shapes: list) -> tuple:
  """A function of arrays that multiplies matrices of these shapes, and the arrays.

  Products of one kernel's shape are made over the levels' rows together, in chunks
  as the aggregator makes them, the last one filled up.
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
    # What a product's rows sum to stands for the product: it is read, not kept.
    return [
      jax.lax.map(lambda x, kernel=kernel: jnp.sum(x @ kernel, axis=0), chunks)
      for chunks, kernel in inputs
    ]

  return multiply, inputs


def run(num_tokens: int, num_queries: int, shape: common.Shape) -> list[Row]:
  """The rows of one size of context."""
  width, _, b, dtype = shape
  generator = common.rng()
  points = generator.random((num_tokens, 2), np.float32)
  coords = jnp.asarray(points)
  tokens = jnp.asarray(generator.standard_normal((1, num_tokens, width)), dtype)
  calls, details = {}, {}

  def add(name: str, function, *arguments) -> None:
    calls[name], details[name] = common.compiled(function, *arguments)

  # --- Ordering.
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
  products = matrix_products(params, num_tokens, width, b)
  multiply, inputs = products_alone(products)
  add("matrix_products", multiply, inputs)
  nodes = 2 * sum(b**l for l in range(1, tree.depth + 1)) * width
  details["aggregate_and_cache"] |= {
    "node_bytes": nodes * jnp.dtype(dtype).itemsize,
    "flops": sum(2 * n * k * m for (n, k), (_, m) in products),
  }
  seconds = measure.interleaved(calls, common.REPEATS.value)

  # --- Break-even.
  if num_queries * num_tokens <= _MAX_PAIRS.value:
    memory = common.random_memory(num_tokens, shape)
    queries = common.random_queries(num_queries, memory)
    full = rivals.full_systems(queries, memory)
    systems = {name: call for name, (call, _) in full.items()}
    systems["read"], _ = common.compiled(common.read, queries, memory)
    reads = measure.interleaved(systems, common.REPEATS.value)
    own = reads.pop("read")
    build = seconds["order_host"] + seconds["aggregate_and_cache"]
    gain = (min(reads.values()) - own) / num_queries
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
    }
    for name, taken in seconds.items()
  ]


def summarise(rows: list[Row]) -> str:
  """A table of times and ratios."""
  by_size: dict[int, dict[str, Row]] = {}
  for row in rows:
    by_size.setdefault(row["num_tokens"], {})[row["system"]] = row
  names = list(dict.fromkeys(row["system"] for row in rows))
  lines: list[tuple[str, ...]] = []
  for n, own in by_size.items():
    cells = [f"{own[name]['ms']:.2f}" if name in own else "" for name in names]
    built = own["aggregate_and_cache"]
    peak = built["temp_bytes"] + built["output_bytes"] + built["argument_bytes"]
    pays = built.get("pays_after_queries")
    lines.append(
      (
        f"{n:,}",
        *cells,
        f"{own['matrix_products']['ms'] / built['ms']:.0%}",
        f"{peak / built['node_bytes']:.2f}",
        f"{pays:,.0f}" if pays else "",
      )
    )
  header = (
    "tokens",
    *names,
    "products / aggregate",
    "peak / node arrays",
    "pays after queries",
  )
  return measure.table("ms per context", header, lines)


def main(argv: list[str]) -> None:
  """Times all sizes, writes build.json and .txt."""
  del argv
  common.start()
  rows = []
  for num_tokens in _NUM_TOKENS():
    rows += run(num_tokens, _NUM_QUERIES()[0], _SHAPE())
    print(f"{num_tokens:,} tokens", flush=True)
  common.write("build", rows, summarise(rows))


if __name__ == "__main__":
  app.run(main)
