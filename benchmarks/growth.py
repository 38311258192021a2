"""Benchmark of contexts that grow: time of insertion, and quality as the tree drifts.

  python -m benchmarks.growth --num_tokens=1000000 --num_inserts=100000

- Time: microseconds per inserted token, one by one and in batches, beside a rebuild of
  the whole memory, which is the cost of a token without insertion. It is the median over
  parts of the insertions, so that other programs disturb it less.
- Quality: a map is completed by the shipped relative model. Its context doubles by
  insertion, in random order or from west to east. At several sizes, held-out points in
  the known part are predicted from the grown memory and from a new one of the same
  points. Where tokens are refused, the tree is rebuilt and they are inserted again.
"""

import functools
import statistics
import typing

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from experiments.common import tables
from experiments.common import timing
from experiments.data import elevation
from experiments.report_pages.ratios import Row
import tca_jax

MODELS = ("tca", "relative_tca")
ARRIVALS = ("random", "west_to_east")
CHECKPOINT = "checkpoints/terrain_relative_tca"
_FULL = 0.95  # the share of the leaf slots up to which the context grows
_PARTS = 20  # of the insertions; the time is the median over them
_STEPS = 4  # the number of sizes at which quality is measured


def _apply(
  model: typing.Any, method: str, **options: typing.Any
) -> typing.Callable[..., typing.Any]:
  return jax.jit(functools.partial(model.apply, method=method, **options))


def _inserter(
  model: typing.Any, **options: typing.Any
) -> typing.Callable[..., typing.Any]:
  insert = functools.partial(model.apply, method="insert", **options)
  return jax.jit(insert, donate_argnums=1)


def time_inserts(
  name: str,
  num_tokens: int,
  num_inserts: int,
  batch_sizes: list[int],
  seed: int,
  repeats: int,
) -> list[Row]:
  """Times insertions into a context of uniform points, and a rebuild.

  Args:
    name: one of `MODELS`.
    num_tokens: N, before the insertions.
    num_inserts: the number of tokens that are inserted with each batch size.
    batch_sizes: the numbers of tokens in one call.
    seed: for points and parameters.
    repeats: the number of rounds of timing a rebuild.

  Returns:
    A row for each batch size, and one for a rebuild.
  """
  if name == "tca":
    embedder: typing.Any = tca_jax.PointEmbedder()
    read_out: typing.Any = tca_jax.TreeCrossAttention()
  else:
    embedder = tca_jax.PlacelessEmbedder()
    read_out = tca_jax.RelativeTreeCrossAttention()
  model = tca_jax.ReTreever(embedder, read_out, tca_jax.GaussianHead(1))
  generator = np.random.default_rng(seed)

  def draw(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    coords = generator.random((*shape, 2), np.float32)
    return coords, np.sin(9 * coords[..., :1])

  coords, values = draw(1, num_tokens)
  params = jax.jit(model.init)(
    jax.random.key(seed), coords[:, :8], values[:, :8], coords[:, :1]
  )
  start = _apply(model, "index_growing", capacity=2 * num_tokens)
  growing = start(params, coords, values)
  sizes = {"num_tokens": num_tokens, "capacity": growing.capacity}
  rebuild = _apply(model, "rebuild", capacity=growing.capacity)
  call = functools.partial(rebuild, params, growing)
  seconds = timing.interleaved({"rebuild": call}, repeats)
  rows: list[Row] = [
    {"system": f"{name}/rebuild", "us_per_token": 1e6 * seconds["rebuild"], **sizes}
  ]
  del growing, call
  for batch_size in batch_sizes:
    growing = start(params, coords, values)
    num_calls = max(num_inserts // batch_size, 1)
    new = draw(num_calls + 1, 1, batch_size)
    insert = _inserter(model)
    growing, numbers = insert(params, growing, *(x[-1] for x in new))
    refused = [numbers < 0]
    jax.block_until_ready(growing)
    clock, parts = timing.Clock(), []
    for part in np.array_split(np.arange(num_calls), min(_PARTS, num_calls)):
      for i in part:
        growing, numbers = insert(params, growing, *(x[i] for x in new))
        refused.append(numbers < 0)
      parts.append(clock.lap(growing) / (len(part) * batch_size))
    rows.append(
      {
        "system": f"{name}/insert",
        "batch_size": batch_size,
        "us_per_token": 1e6 * statistics.median(parts),
        "num_inserted": num_calls * batch_size,
        "num_refused": int(np.sum([np.sum(x) for x in refused])),
        **sizes,
      }
    )
    del growing
  return rows


def measure_drift(
  arrival: str, num_tokens: int, batch_size: int, num_targets: int, reach: int
) -> list[Row]:
  """Compares grown memories with new ones of the same points.

  Args:
    arrival: one of `ARRIVALS`, the order in which points arrive.
    num_tokens: N, before the insertions.
    batch_size: the number of tokens in one call.
    num_targets: the largest number of held-out points to predict.
    reach: see `growth.insert`.

  Returns:
    Two rows for each of several sizes of the context.

  Raises:
    ValueError: if the map has too few points.
  """
  whole = elevation.load("fault")
  model, params, _ = tca_jax.load(CHECKPOINT)
  coords, values = np.asarray(whole.train.coords), np.asarray(whole.train.values)
  start = _apply(model, "index_growing", capacity=2 * num_tokens)
  capacity = jax.eval_shape(
    start, params, coords[None, :num_tokens], values[None, :num_tokens]
  ).capacity
  count = int(_FULL * capacity)
  if count > len(coords):
    raise ValueError(
      f"quality_tokens must be at most {len(coords) // 2}, got {num_tokens}"
    )
  coords, values = coords[:count], values[:count]
  if arrival == "west_to_east":
    order = np.argsort(coords[:, 0], kind="stable")
    coords, values = coords[order], values[order]
  insert, index = _inserter(model, reach=reach), _apply(model, "index")
  rebuild, read = _apply(model, "rebuild", capacity=capacity), _apply(model, "read")
  held_out = whole.held_out
  held_coords, held_values = np.asarray(held_out.coords), np.asarray(held_out.values)

  def predict(memory: typing.Any, last: int) -> Row:
    """Predicts held-out points in the part of the map that is known."""
    known = held_coords[:, 0] <= np.max(coords[:last, 0])
    targets, truth = (x[known][:num_targets] for x in (held_coords, held_values))
    more = [(0, num_targets - len(targets)), (0, 0)]  # one compilation
    queries = np.pad(targets, more, mode="edge")[None]
    output: typing.Any = read(params, memory, queries).output
    output = jax.tree.map(lambda x: x[0, : len(targets)], output)
    error = whole.to_units(output.mean) - whole.to_units(truth)
    return {
      "log_likelihood": float(jnp.mean(output.log_prob(truth))),
      "rmse": float(np.sqrt(np.mean(error**2))),
      "num_targets": len(targets),
    }

  growing = start(params, coords[None, :num_tokens], values[None, :num_tokens])
  rows: list[Row] = []
  last, num_rebuilds = num_tokens, 0
  for size in np.linspace(num_tokens, count, _STEPS + 1).astype(int):
    while last < size:
      end = min(last + batch_size, count)
      mask = np.arange(batch_size) < end - last
      new = [
        np.pad(x[last:end], [(0, batch_size - (end - last)), (0, 0)])[None]
        for x in (coords, values)
      ]
      missing = np.sum(mask) + 1
      while np.sum(mask) < missing:  # a rebuild that makes no room ends it
        missing = np.sum(mask)
        growing, numbers = insert(params, growing, *new, mask[None])
        mask &= np.asarray(numbers[0]) < 0
        if not mask.any():
          break
        num_rebuilds += 1
        growing = rebuild(params, growing)
      last = end
    same = {"arrival": arrival, "reach": reach, "num_rebuilds": num_rebuilds}
    same["num_tokens"] = int(growing.tree.num_valid[0])
    same["num_left_out"] = last - same["num_tokens"]
    fresh = index(params, growing.coords, growing.values, growing.mask)
    for name, memory in (("grown", growing.memory), ("fresh", fresh)):
      rows.append({"system": name, **same, **predict(memory, last)})
  return rows


def summarise(rows: list[Row]) -> str:
  """Makes a table of times and a table of quality."""
  times = [
    (
      row["system"],
      f"{row['num_tokens']:,}",
      f"{row.get('batch_size', '')}",
      f"{row['us_per_token']:,.1f}",
      f"{row.get('num_refused', '')}",
    )
    for row in rows
    if "us_per_token" in row
  ]
  header = ("system", "tokens", "batch", "us / token", "refused")
  quality = [
    (
      row["arrival"],
      f"{row['reach']}",
      f"{row['num_tokens']:,}",
      f"{row['num_rebuilds']}",
      row["system"],
      f"{row['log_likelihood']:.3f}",
      f"{row['rmse']:.2f}",
    )
    for row in rows
    if "rmse" in row
  ]
  names = ("arrival", "reach", "tokens", "rebuilds", "memory", "log-lik.", "RMSE, m")
  return "\n".join(
    [tables.table("time", header, times), tables.table("quality", names, quality)]
  )


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of the benchmark."""
  common.define_ints(values, "num_tokens", [10**6], "Numbers of context tokens N")
  timed = "Models whose inserts are timed (empty: none)"
  common.define_names(values, "models", list(MODELS), timed, may_be_empty=True)
  common.define_ints(values, "batch_sizes", [1, 1000], "Numbers of tokens in one call")
  common.define_ints(
    values, "reaches", [2, 6, 30], "Depths of the subtrees that a new token may fill"
  )
  common.define_names(values, "arrivals", list(ARRIVALS), "Orders of the map's points")
  common.define_counts(
    values,
    ("num_inserts", 10**5, "Number of timed insertions for each batch size."),
    ("quality_tokens", 16_384, "Number of the map's points before insertion."),
    ("quality_batch", 512, "Number of the map's points in one call."),
    ("num_targets", 4096, "Largest number of held-out points to predict."),
  )
  common.define_shared_flags(values)


def main(values: flags.FlagValues) -> None:
  """Runs both parts, and writes growth.json and .txt."""
  rows: list[Row] = []
  for num_tokens in common.ints(values, "num_tokens"):
    for name in values.models:
      rows += time_inserts(
        name,
        num_tokens,
        values.num_inserts,
        common.ints(values, "batch_sizes"),
        values.seed,
        values.repeats,
      )
      common.keep(values, "growth", rows)
      print(f"{name}, {num_tokens:,} tokens", flush=True)
  for arrival in values.arrivals:
    for reach in common.ints(values, "reaches"):
      rows += measure_drift(
        arrival,
        values.quality_tokens,
        values.quality_batch,
        values.num_targets,
        reach,
      )
      common.keep(values, "growth", rows)
      print(f"{arrival}, reach {reach}", flush=True)
  common.finish(values, "growth", rows, summarise(rows))


if __name__ == "__main__":
  common.launch(define_flags, main)
