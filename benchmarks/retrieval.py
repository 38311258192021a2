"""Microseconds per query of reading one context, against all rivals.

  python -m benchmarks.retrieval --num_tokens=1024,16384 --num_queries=1,256

Keys and values are random and made before; what is timed is the read of M queries
over one context: Tree Cross Attention, full attention by several routes, Perceiver
IO with as many latents as TCA reads nodes, exact attention to the tokens that FAISS
finds (as many, if it is installed), and the floor: the plain gather of the rows that
a walk of that depth reads.
"""

import importlib.util

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from benchmarks import rivals
from experiments.common import measure
from experiments.common import plots
from experiments.common import ratios
from experiments.common.ratios import Row
import tca_jax
from tca_jax import attention

_NUM_TOKENS = common.define_ints("num_tokens", [2**i for i in range(7, 21)], "N")
_NUM_QUERIES = common.define_ints("num_queries", [1, 256, 4096], "M")
_SHAPE = common.define_shape()
_MAX_PAIRS = flags.DEFINE_integer(
  "max_pairs", 2**28, "Full attention to more query-token pairs is left out."
)
_MAX_INDEX = flags.DEFINE_integer(
  "max_index", 2**16, "FAISS, whose indices are slow to build, is left out above."
)


def sparse_systems(
  queries: jax.Array, memory: tca_jax.TreeMemory
) -> dict[str, rivals.System]:
  """TCA, the floor, and Perceiver IO."""
  tree, systems = memory.tree, {}
  num_queries = len(queries)
  slots = tca_jax.num_read_slots(tree.num_leaves, tree.branch_factor)

  def add(name: str, tokens_read: int, function, *arguments) -> None:
    call, row = common.compiled(function, *arguments)
    systems[name] = call, {"tokens_read": tokens_read, **row}

  add("tca", slots, common.read, queries, memory)

  rows = jnp.concatenate(
    [
      memory.keys.reshape(memory.keys.shape[0], -1),
      memory.values.reshape(memory.keys.shape[0], -1),
    ],
    axis=1,
  )
  b, generator = tree.branch_factor, common.rng()
  visited = [
    (b**l - 1) // (b - 1) + generator.integers(0, b**l, num_queries)
    for l in range(tree.depth)
  ]
  visited = jnp.asarray(np.stack(visited), jnp.int32)
  take = lambda rows, ids: rows.at[ids].get(mode="promise_in_bounds")  # noqa: E731
  add("gather_floor", slots, take, rows, visited)

  latent = lambda q, k, v: attention.cross_attention(q, k, v).output  # noqa: E731
  latents = common.leaves(memory)[:slots]
  add("perceiver", slots, latent, queries, latents, latents)
  return systems


def run(num_tokens: int, num_queries: int, shape: common.Shape) -> list[Row]:
  """The rows of one size of context and one number of queries."""
  memory = common.random_memory(num_tokens, shape)
  queries = common.random_queries(num_queries, memory)
  systems = sparse_systems(queries, memory)
  if num_queries * num_tokens <= _MAX_PAIRS.value:
    systems |= rivals.full_systems(queries, memory)
  if importlib.util.find_spec("faiss") and num_tokens <= _MAX_INDEX.value:
    systems |= rivals.faiss_systems(queries, memory)
  calls = {name: call for name, (call, _) in systems.items()}
  seconds = measure.interleaved(calls, common.REPEATS.value)
  return [
    {
      "system": name,
      "num_tokens": num_tokens,
      "num_queries": num_queries,
      "us_per_query": 1e6 * seconds[name] / num_queries,
      **row,
    }
    for name, (_, row) in systems.items()
  ]


def summarise(rows: list[Row]) -> str:
  """Tables of times and of ratios."""
  texts = []
  for m in sorted({row["num_queries"] for row in rows}):
    own = [row for row in rows if row["num_queries"] == m]
    names = list(dict.fromkeys(row["system"] for row in own))
    columns = {name: ratios.times(own, name) for name in names}
    tca, full = columns["tca"], ratios.fastest_full(own)
    floor = columns["gather_floor"]
    lines: list[tuple[str, ...]] = []
    for n in tca:
      cells = [
        f"{columns[name][n]:.2f}" if n in columns[name] else "" for name in names
      ]
      ratio = f"{full[n] / tca[n]:.1f}x" if n in full else ""
      lines.append((f"{n:,}", *cells, ratio, f"{tca[n] / floor[n]:.2f}x"))
    header = ("tokens", *names, "full / tca", "tca / floor")
    ahead = ratios.crossover(own, m)
    found = f"TCA is ahead from {ahead:,} tokens" if ahead else "TCA is not ahead"
    grows = ""
    if {2**10, 2**20} <= set(tca):
      grows = f"; 2^20 tokens take {tca[2**20] / tca[2**10]:.2f}x as long as 2^10"
    title = f"us per query, M = {m:,} queries: {found}{grows}"
    texts.append(measure.table(title, header, lines))
  return "\n\n".join(texts)


def main(argv: list[str]) -> None:
  """Times all sizes, writes retrieval.json, .txt and .png."""
  del argv
  common.start()
  rows = []
  for num_tokens in _NUM_TOKENS():
    for num_queries in _NUM_QUERIES():
      rows += run(num_tokens, num_queries, _SHAPE())
      print(f"{num_tokens:,} tokens, {num_queries:,} queries", flush=True)
  out = common.write("retrieval", rows, summarise(rows))
  crossovers = {m: ratios.crossover(rows, m) for m in _NUM_QUERIES()}
  plots.plot_read_times(rows, crossovers, out / "retrieval.png")


if __name__ == "__main__":
  app.run(main)
