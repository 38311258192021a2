"""Reading and building over width, heads, branch factor and dtype.

  python -m benchmarks.sweep --num_tokens=16384 --num_queries=1,256

Varies one of them at a time around D 64, H 4, b 2, float32.
"""

from absl import app
import jax
import jax.numpy as jnp

from benchmarks import common
from experiments.common import measure
from experiments.common.ratios import Row
import tca_jax

_NUM_TOKENS = common.define_ints("num_tokens", [2**14], "N")
_NUM_QUERIES = common.define_ints("num_queries", [1, 256], "M")
_WIDTHS = common.define_ints("widths", [32, 64, 128, 256], "D")
_HEADS = common.define_ints("heads", [1, 2, 4, 8], "H")
_BRANCH_FACTORS = common.define_ints("branch_factors", [2, 4, 8], "b")


def shapes() -> list[common.Shape]:
  """(D, H, b, dtype), the usual one first."""
  usual = (64, 4, 2, "float32")
  found = [usual]
  found += [(d, *usual[1:]) for d in _WIDTHS()]
  found += [(64, h, *usual[2:]) for h in _HEADS()]
  found += [(64, 4, b, "float32") for b in _BRANCH_FACTORS()]
  found += [(64, 4, 2, "bfloat16")]
  return list(dict.fromkeys(found))


def run(num_tokens: int) -> list[Row]:
  """The rows of one size of context."""
  calls, rows = {}, []
  for shape in shapes():
    width, num_heads, b, dtype = shape
    memory = common.random_memory(num_tokens, shape)
    index, params = common.indexer(shape)
    tokens = jnp.ones((1, num_tokens, width), dtype)
    coords = jnp.ones((1, num_tokens, 1))
    tree = jax.tree.map(lambda x: x[None], memory.tree)

    details = {
      "num_tokens": num_tokens,
      "width": width,
      "num_heads": num_heads,
      "branch_factor": b,
      "dtype": dtype,
    }
    calls[len(rows)], _ = common.compiled(index, params, tokens, coords, tree)
    rows.append({"system": "index", **details})
    for num_queries in _NUM_QUERIES():
      queries = common.random_queries(num_queries, memory)
      calls[len(rows)], _ = common.compiled(common.read, queries, memory)
      slots = tca_jax.num_read_slots(num_tokens, b)
      rows.append(
        {"system": "tca", **details, "num_queries": num_queries, "tokens_read": slots}
      )
  named = {str(i): call for i, call in calls.items()}
  seconds = measure.interleaved(named, common.REPEATS.value)
  for i, row in enumerate(rows):
    if "num_queries" in row:
      row["us_per_query"] = 1e6 * seconds[str(i)] / row["num_queries"]
    else:
      row["ms"] = 1e3 * seconds[str(i)]
  return rows


def summarise(rows: list[Row]) -> str:
  """A line for each shape."""
  keys = ("num_tokens", "width", "num_heads", "branch_factor", "dtype")
  lines: dict[tuple, list[str]] = {}
  for row in rows:
    line = lines.setdefault(tuple(row[key] for key in keys), [])
    line.append(f"{row['ms']:.1f}" if "ms" in row else f"{row['us_per_query']:.2f}")
  reads = [f"us/query, M = {m}" for m in _NUM_QUERIES()]
  table = [tuple([*map(str, shape), *line]) for shape, line in lines.items()]
  return measure.table("reading and building", (*keys, "index ms", *reads), table)


def main(argv: list[str]) -> None:
  """Times all shapes, writes sweep.json and .txt."""
  del argv
  common.start()
  rows = [row for n in _NUM_TOKENS() for row in run(n)]
  common.write("sweep", rows, summarise(rows))


if __name__ == "__main__":
  app.run(main)
