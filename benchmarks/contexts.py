"""Benchmark of many contexts of unequal size: throughput against the share of padding.

  python -m benchmarks.contexts --num_contexts=4000

The sizes are log-uniform, so most contexts are small. All contexts are indexed and read
in one compiled call: with one bucket, where all are padded to the largest, and with
several buckets of similar sizes. A loop that calls a compiled model for one context at a
time, without padding, is timed on a random sample of the contexts.
"""

import time
import typing

from absl import flags
import jax
import numpy as np

from benchmarks import common
from experiments.common import tables
from experiments.common import timing
from experiments.report_pages.ratios import Row
import tca_jax
from tca_jax import bucketing

READ_OUTS: dict[str, typing.Callable[[], typing.Any]] = {
  "tca": tca_jax.TreeCrossAttention,
  "ca": tca_jax.CrossAttention,
}
_LOOP = "one by one"


def draw_contexts(
  num_contexts: int, smallest: int, largest: int, num_queries: int, seed: int
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
  """Draws contexts of points in the unit square.

  Args:
    num_contexts: the number of contexts.
    smallest: the smallest number of tokens.
    largest: the largest number of tokens.
    num_queries: the largest number of queries of a context.
    seed: for all draws.

  Returns:
    The sizes, log-uniform; and for each context coordinates `[N, 2]`, values `[N, 1]` and
    locations of queries `[M, 2]`, with M from 1 to `num_queries`.
  """
  rng = np.random.default_rng(seed)
  low, high = np.log([smallest, largest + 1])
  sizes = np.exp(rng.uniform(low, high, num_contexts)).astype(int)
  sizes = sizes.clip(smallest, largest)
  coords = [rng.random((n, 2), np.float32) for n in sizes]
  values = [np.sin(9 * x[:, :1]) for x in coords]
  counts = rng.integers(1, num_queries + 1, num_contexts)
  return sizes, coords, values, [rng.random((m, 2), np.float32) for m in counts]


def time_model(
  name: str,
  contexts: tuple[np.ndarray, list[np.ndarray], list[np.ndarray], list[np.ndarray]],
  num_buckets: list[int],
  num_alone: int,
  seed: int,
  repeats: int,
) -> list[Row]:
  """Times the prediction of all contexts.

  Args:
    name: one of `READ_OUTS`.
    contexts: the result of `draw_contexts`.
    num_buckets: the largest numbers of buckets to compare.
    num_alone: the number of contexts that are predicted one by one.
    seed: for parameters and for the sample.
    repeats: the number of rounds of timing.

  Returns:
    A row for each number of buckets, and one for the contexts one by one, with
    "largest_difference": of the mean from that of one bucket.
  """
  sizes, *arrays = contexts
  model: typing.Any = tca_jax.ReTreever(
    tca_jax.PointEmbedder(), READ_OUTS[name](), tca_jax.GaussianHead(1)
  )
  params = jax.jit(model.init)(jax.random.key(seed), *(x[0][None] for x in arrays))

  def mean(params: typing.Any, *inputs: typing.Any, **batch: typing.Any) -> typing.Any:
    return model.apply(params, *inputs, **batch).output.mean

  calls, rows = {}, []
  for count in num_buckets:
    started = time.perf_counter()
    buckets = bucketing.make_buckets(sizes, count)
    grouped = time.perf_counter()
    batches = bucketing.pad_contexts(buckets, *arrays)
    padded = time.perf_counter()

    def predict(params, batches, buckets=buckets):
      means = [mean(params, **batch) for batch in batches]
      return bucketing.in_order(buckets, means)

    calls[count], compiled = common.compiled(predict, params, jax.device_put(batches))
    rows.append(
      {
        "system": f"{name}/{count}",
        "num_buckets": len(buckets),
        "bucket_sizes": [batch["mask"].shape[1] for batch in batches],
        "padding": bucketing.padding_share(sizes, buckets),
        "group_seconds": grouped - started,
        "pad_seconds": padded - grouped,
        **compiled,
      }
    )
  reference = np.asarray(calls[num_buckets[0]]())
  seconds = timing.interleaved(calls, repeats)
  for count, row in zip(num_buckets, rows, strict=True):
    found = np.asarray(calls[count]())
    row["largest_difference"] = max(
      float(np.abs(x[: len(query)] - y[: len(query)]).max())
      for x, y, query in zip(found, reference, arrays[2], strict=True)
    )
    row["contexts_per_second"] = len(sizes) / seconds[count]

  # One by one: each shape compiles in its first call, which is not timed.
  chosen = np.random.default_rng(seed).choice(len(sizes), num_alone, replace=False)
  alone = jax.jit(mean)
  inputs = [jax.device_put([x[i][None] for x in arrays]) for i in chosen]
  started = time.perf_counter()
  for x in inputs:
    jax.block_until_ready(alone(params, *x))
  first = time.perf_counter() - started
  loop = {_LOOP: lambda: [alone(params, *x) for x in inputs]}
  seconds = timing.interleaved(loop, repeats)[_LOOP]
  shapes = {tuple(len(x[i]) for x in arrays) for i in chosen}
  rows.append(
    {
      "system": f"{name}/{_LOOP}",
      "padding": 0.0,
      "num_timed": num_alone,
      "num_shapes": len(shapes),
      "compile_seconds": first - seconds,
      "contexts_per_second": num_alone / seconds,
    }
  )
  same = {
    "num_contexts": len(sizes),
    "num_tokens": int(sizes.sum()),
    "smallest": int(sizes.min()),
    "largest": int(sizes.max()),
  }
  return [row | same for row in rows]


def summarise(rows: list[Row]) -> str:
  """Makes a table of throughputs."""
  lines = [
    (
      row["system"],
      f"{row['padding']:.1%}",
      f"{row['contexts_per_second']:,.0f}",
      f"{row['compile_seconds']:.1f}",
    )
    for row in rows
  ]
  header = ("system", "padding", "contexts / s", "compile, s")
  return tables.table("many contexts of unequal size", header, lines)


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of the benchmark."""
  common.define_names(values, "models", list(READ_OUTS), "Models to compare")
  common.define_ints(values, "num_buckets", [1, 2, 4, 8], "Largest numbers of buckets")
  common.define_counts(
    values,
    ("num_contexts", 4000, "Number of contexts."),
    ("smallest", 4, "Smallest number of tokens of a context."),
    ("largest", 512, "Largest number of tokens of a context."),
    ("num_queries", 16, "Largest number of queries of a context."),
    ("num_alone", 50, "Number of contexts that are predicted one by one."),
  )
  common.define_shared_flags(values)


def main(values: flags.FlagValues) -> None:
  """Times all models, and writes contexts.json and .txt."""
  contexts = draw_contexts(
    values.num_contexts,
    values.smallest,
    values.largest,
    values.num_queries,
    values.seed,
  )
  rows: list[Row] = []
  for name in values.models:
    rows += time_model(
      name,
      contexts,
      common.ints(values, "num_buckets"),
      values.num_alone,
      values.seed,
      values.repeats,
    )
    common.keep(values, "contexts", rows)
    print(name, flush=True)
  common.finish(values, "contexts", rows, summarise(rows))


if __name__ == "__main__":
  common.launch(define_flags, main)
