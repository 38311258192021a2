"""Part of docs/benchmarks.md on contexts that grow."""

import typing

from experiments.common import tables
from experiments.common.systems import TITLES
from experiments.report_pages import ratios

Rows = list[ratios.Row]

INTRODUCTION = (
  "The first table gives the time of one insertion into a context of random points."
  " Without insertions, every new token would take the time of a rebuild. The second"
  " table compares"
  " a relative model's predictions from a memory that has grown with those from a new"
  " memory of the same points: points of the map `fault` arrive at random, or from west"
  " to east. Where points are refused, the tree is rebuilt at the same capacity."
)


def parts(rows: Rows) -> list[str]:
  """The times of insertions, and the quality of memories that have grown.

  Args:
    rows: the rows of benchmarks.growth.

  Returns:
    The parts of the section.
  """
  return [*_times(rows), *_quality(rows)]


def _times(rows: Rows) -> list[str]:
  by_context: dict[tuple[str, int], dict[typing.Any, ratios.Row]] = {}
  for row in rows:
    if "us_per_token" in row:
      model, _, call = row["system"].partition("/")
      key = row["batch_size"] if call == "insert" else call
      by_context.setdefault((model, row["num_tokens"]), {})[key] = row
  sizes = sorted({row["batch_size"] for row in rows if "batch_size" in row})
  lines = []
  for (model, num_tokens), calls in by_context.items():
    times = {key: row["us_per_token"] for key, row in calls.items()}
    cells = [tables.cell(times, n, ",.1f") for n in sizes]
    ratio = ""
    if "rebuild" in times and len(times) > 1:
      slowest = max(us for key, us in times.items() if key != "rebuild")
      ratio = f"{times['rebuild'] / slowest:,.0f}"
    rebuild = tables.cell(times, "rebuild", ".2f", 1e-6)
    lines.append([TITLES[model], f"{num_tokens:,}", *cells, rebuild, ratio])
  if not lines:
    return []
  header = ["model", "tokens"]
  header += [f"us per token, {n:,} at a time" for n in sizes]
  header += ["rebuild, s", "single insertions in the time of a rebuild"]
  return [tables.markdown(header, lines)]


def _quality(rows: Rows) -> list[str]:
  found = [row for row in rows if "rmse" in row]
  lines = []
  for grown, new in zip(found[::2], found[1::2], strict=True):
    lines.append(
      [
        grown["arrival"].replace("_", " "),
        str(grown["reach"]),
        f"{grown['num_tokens']:,}",
        str(grown["num_rebuilds"]),
        *(f"{row['log_likelihood']:.3f}" for row in (grown, new)),
        *(f"{row['rmse']:.1f}" for row in (grown, new)),
      ]
    )
  if not lines:
    return []
  header = ["arrival", "reach", "points", "rebuilds"]
  header += ["log-likelihood, grown", "log-likelihood, new"]
  header += ["RMSE, m, grown", "RMSE, m, new"]
  return [tables.markdown(header, lines)]
