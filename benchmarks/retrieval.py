"""Benchmark of reads: microseconds per query of one context, for several methods.

  python -m benchmarks.retrieval --num_tokens=1024,16384 --num_queries=1,256

Keys and values are random and computed before. The benchmark times how long M queries
read one context with:

- Tree Cross Attention;
- full attention, by several implementations;
- Perceiver IO, with as many latents as TCA reads nodes;
- exact attention to as many tokens as TCA reads nodes, found by FAISS if it is
  installed;
- the gather floor: one plain gather of all rows that a walk reads.
"""

import dataclasses
import importlib.util

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import baselines
from benchmarks import common
from experiments.common import tables
from experiments.common import timing
from experiments.figures import read_times
from experiments.report_pages import ratios
from experiments.report_pages.ratios import Row
import tca_jax
from tca_jax import attention
from tca_jax import memory as memory_lib


def sparse_methods(
  queries: jax.Array, memory: tca_jax.TreeMemory, seed: int
) -> dict[str, baselines.Method]:
  """TCA, the gather floor and Perceiver IO.

  Args:
    queries: `[M, H, Dh]`.
    memory: of one context.
    seed: for the rows that the floor gathers.
  """
  tree, methods = memory.tree, {}
  slots = tca_jax.num_read_slots(tree.num_leaves, tree.branch_factor)

  def add(name: str, function, *arguments) -> None:
    call, row = common.compiled(function, *arguments)
    methods[name] = call, {"tokens_read": slots, **row}

  add("tca", common.read, queries, memory)

  # One row has the keys and values of all children of a node. A walk reads one row per
  # level; the rows of a level follow those of the level above.
  b, generator = tree.branch_factor, np.random.default_rng(seed)
  rows = memory_lib.num_slots(tree) // b
  width = 2 * b * memory.values[0].size
  table = jnp.asarray(
    generator.standard_normal((rows, width), np.float32), memory.values.dtype
  )
  visited = [
    (b**l - 1) // (b - 1) + generator.integers(0, b**l, len(queries))
    for l in range(tree.depth)
  ]
  visited = jnp.asarray(np.stack(visited), jnp.int32)
  take = lambda rows, ids: rows.at[ids].get(mode="promise_in_bounds")  # noqa: E731
  add("gather_floor", take, table, visited)

  read_latents = lambda q, k, v: attention.cross_attention(q, k, v).output  # noqa: E731
  keys, values = common.leaves(memory)
  add("perceiver", read_latents, queries, keys[:slots], values[:slots])
  return methods


def run(
  num_tokens: int,
  num_queries: int,
  shape: common.Shape,
  seed: int,
  repeats: int,
  max_pairs: int,
  max_index: int,
) -> list[Row]:
  """Times all methods for one size of context and one number of queries.

  Args:
    num_tokens: N, at least 2.
    num_queries: M.
    shape: the shape of the memory.
    seed: for keys, values and queries.
    repeats: the number of rounds of timing.
    max_pairs: full attention is skipped if there are more query-token pairs.
    max_index: FAISS is skipped if there are more tokens.

  Returns:
    A row for each method.
  """
  memory = common.random_memory(num_tokens, shape, seed)
  queries = common.random_queries(num_queries, memory, seed)
  methods = sparse_methods(queries, memory, seed)
  if num_queries * num_tokens <= max_pairs:
    methods |= baselines.full_methods(queries, memory)
  if importlib.util.find_spec("faiss") and num_tokens <= max_index:
    methods |= baselines.faiss_methods(queries, memory)
  calls = {name: call for name, (call, _) in methods.items()}
  seconds = timing.interleaved(calls, repeats)
  return [
    {
      "system": name,
      "num_tokens": num_tokens,
      "num_queries": num_queries,
      "us_per_query": 1e6 * seconds[name] / num_queries,
      **row,
      **dataclasses.asdict(shape),
    }
    for name, (_, row) in methods.items()
  ]


def summarise(rows: list[Row]) -> str:
  """Prints tables of times and ratios, and returns them."""
  texts = []
  for m in sorted({row["num_queries"] for row in rows}):
    selected = [row for row in rows if row["num_queries"] == m]
    names = list(dict.fromkeys(row["system"] for row in selected))
    columns = {name: ratios.times(selected, name) for name in names}
    tca, full = columns["tca"], ratios.fastest_full(selected)
    floor = columns["gather_floor"]
    lines: list[tuple[str, ...]] = []
    for n in tca:
      cells = [
        f"{columns[name][n]:.2f}" if n in columns[name] else "" for name in names
      ]
      ratio = f"{full[n] / tca[n]:.1f}x" if n in full else ""
      lines.append((f"{n:,}", *cells, ratio, f"{tca[n] / floor[n]:.2f}x"))
    header = ("tokens", *names, "full / tca", "tca / floor")
    ahead = ratios.crossover(selected, m)
    result = f"TCA is faster from {ahead:,} tokens" if ahead else "TCA is not faster"
    growth = ""
    if {2**10, 2**20} <= set(tca):
      growth = (
        f"; at 2^20 tokens it takes {tca[2**20] / tca[2**10]:.2f}x its time at 2^10"
      )
    title = f"us per query, M = {m:,} queries: {result}{growth}"
    texts.append(tables.table(title, header, lines))
  return "\n\n".join(texts)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of the benchmark."""
  sizes = [2**i for i in range(7, 21)]
  common.define_ints(values, "num_tokens", sizes, "Numbers of context tokens N")
  common.define_ints(values, "num_queries", [1, 256, 4096], "Numbers of queries M")
  common.define_shape_flags(values)
  flags.DEFINE_integer(
    "max_pairs",
    2**28,
    "Largest number of query-token pairs for which full attention is timed.",
    flag_values=values,
  )
  flags.DEFINE_integer(
    "max_index",
    2**16,
    "Largest number of context tokens for which FAISS, which is slow to build, is timed.",
    flag_values=values,
  )
  common.define_shared_flags(values)


def main(values: flags.FlagValues) -> None:
  """Times all sizes, and writes retrieval.json, .txt and .png."""
  rows = []
  counts = common.ints(values, "num_queries")
  options = common.options(values, "seed", "repeats", "max_pairs", "max_index")
  for num_tokens in common.ints(values, "num_tokens"):
    for num_queries in counts:
      rows += run(num_tokens, num_queries, common.shape(values), **options)
      common.keep(values, "retrieval", rows)
      print(f"{num_tokens:,} tokens, {num_queries:,} queries", flush=True)
  out = common.finish(values, "retrieval", rows, summarise(rows))
  crossovers = {m: ratios.crossover(rows, m) for m in counts}
  read_times.plot_read_times(rows, crossovers, out / "retrieval.png")


if __name__ == "__main__":
  common.launch(define_flags, main)
