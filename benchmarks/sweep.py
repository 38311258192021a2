"""Benchmark of reads and builds over widths, heads, branch factors and data types.

  python -m benchmarks.sweep --num_tokens=16384 --num_queries=1,256

Each shape differs from the default shape (see --help of benchmarks.retrieval) in one
value.
"""

import dataclasses

from absl import flags
import jax
import jax.numpy as jnp

from benchmarks import common
from experiments.common import tables
from experiments.common import timing
from experiments.report_pages.ratios import Row
import tca_jax

_KEYS = ("num_tokens", *(field.name for field in dataclasses.fields(common.Shape)))


def shapes(
  widths: list[int], heads: list[int], branch_factors: list[int]
) -> list[common.Shape]:
  """Lists the default shape, and the shapes that differ from it in one value."""
  tried = [common.Shape()]
  tried += [common.Shape(width=width) for width in widths]
  tried += [common.Shape(num_heads=num_heads) for num_heads in heads]
  tried += [common.Shape(branch_factor=b) for b in branch_factors]
  tried += [common.Shape(dtype="bfloat16")]
  return list(dict.fromkeys(tried))


def run(
  num_tokens: int,
  counts: list[int],
  tried: list[common.Shape],
  seed: int,
  repeats: int,
) -> list[Row]:
  """Times all shapes for one size of context.

  Args:
    num_tokens: N.
    counts: the numbers of queries M.
    tried: the shapes.
    seed: for keys, values and queries.
    repeats: the number of rounds of timing.

  Returns:
    For each shape a row of the build ("index") and a row of the read ("tca") for each
    number of queries.
  """
  calls, rows = {}, []
  for shape in tried:
    memory = common.random_memory(num_tokens, shape, seed)
    index, params = common.indexer(shape)
    tokens = jnp.ones((1, num_tokens, shape.width), shape.dtype)
    coords = jnp.ones((1, num_tokens, 1))
    tree = jax.tree.map(lambda x: x[None], memory.tree)
    details = {"num_tokens": num_tokens, **dataclasses.asdict(shape)}
    calls[len(rows)], _ = common.compiled(index, params, tokens, coords, tree)
    rows.append({"system": "index", **details})
    for num_queries in counts:
      queries = common.random_queries(num_queries, memory, seed)
      calls[len(rows)], _ = common.compiled(common.read, queries, memory)
      slots = tca_jax.num_read_slots(num_tokens, shape.branch_factor)
      rows.append(
        {"system": "tca", **details, "num_queries": num_queries, "tokens_read": slots}
      )
  seconds = timing.interleaved(calls, repeats)
  for i, row in enumerate(rows):
    if "num_queries" in row:
      row["us_per_query"] = 1e6 * seconds[i] / row["num_queries"]
    else:
      row["ms"] = 1e3 * seconds[i]
  return rows


def summarise(rows: list[Row]) -> str:
  """Prints a table with a line for each shape, and returns it."""
  counts = dict.fromkeys(row["num_queries"] for row in rows if "num_queries" in row)
  lines: dict[tuple, list[str]] = {}
  for row in rows:
    line = lines.setdefault(tuple(row[key] for key in _KEYS), [])
    line.append(f"{row['ms']:.1f}" if "ms" in row else f"{row['us_per_query']:.2f}")
  reads = [f"us/query, M = {m}" for m in counts]
  cells = [tuple([*map(str, shape), *line]) for shape, line in lines.items()]
  return tables.table("reads and builds", (*_KEYS, "index ms", *reads), cells)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of the benchmark."""
  for name, default, text in (
    ("num_tokens", [2**14], "Numbers of context tokens N"),
    ("num_queries", [1, 256], "Numbers of queries M"),
    ("widths", [32, 64, 128, 256], "Widths D of keys and values, over all heads"),
    ("heads", [1, 2, 4, 8], "Numbers of heads H"),
    ("branch_factors", [2, 4, 8], "Branch factors b"),
  ):
    common.define_ints(values, name, default, text)
  common.define_shared_flags(values)


def main(values: flags.FlagValues) -> None:
  """Times all shapes, and writes sweep.json and .txt."""
  names = ("widths", "heads", "branch_factors")
  tried = shapes(*(common.ints(values, name) for name in names))
  counts = common.ints(values, "num_queries")
  options = common.options(values, "seed", "repeats")
  rows = []
  for num_tokens in common.ints(values, "num_tokens"):
    rows += run(num_tokens, counts, tried, **options)
    common.keep(values, "sweep", rows)
  common.finish(values, "sweep", rows, summarise(rows))


if __name__ == "__main__":
  common.launch(define_flags, main)
