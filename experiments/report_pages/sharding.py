"""Part of docs/benchmarks.md on contexts that are split over devices."""

from experiments.common import tables
from experiments.common.systems import TITLES
from experiments.report_pages import ratios
from experiments.report_pages import text

Rows = list[ratios.Row]

INTRODUCTION = (
  "A context of random 2-D points is split over devices. Memory and bytes are those of"
  " the compiled programs, per device: the packed memory, and the temporary arrays of"
  " `index`. The bytes of a query are those that the devices add up. The formulas of"
  " `benchmarks/sharding.py` agree with every measured row within 1 percent, which the"
  " benchmark checks; the last table applies them to a size that was not run."
)
_TIMES = (
  "The devices of the next table share the cores of one machine. Its times show what the"
  " splitting itself costs there; they say nothing about several accelerators."
)


def parts(rows: Rows) -> list[str]:
  """The memory and the bytes sent, the times, and the projection.

  Args:
    rows: the rows of benchmarks.sharding.

  Returns:
    The parts of the section.
  """
  measured = [row for row in rows if "memory_bytes" in row]
  timed = [row for row in measured if "us_per_query" in row]
  projected = [row for row in rows if "memory_bytes" not in row]
  shared = ["model", "paths", "tokens", "devices"]
  sizes = ["memory, MB", "formula", "temporary in index, MB"]
  sent = ["bytes per query", "formula"]
  found = []
  if measured:
    lines = [
      [
        *_size(row),
        *(_mega(row[key]) for key in ("memory_bytes", "memory_bytes_formula")),
        _mega(row["index_temp_bytes"]),
        *(f"{row[key]:,.0f}" for key in ("query_bytes", "query_bytes_formula")),
      ]
      for row in measured
    ]
    found.append(tables.markdown([*shared, *sizes, *sent], lines))
  if timed:
    lines = [
      [*_size(row), f"{row['index_seconds']:.2f}", f"{row['us_per_query']:.1f}"]
      for row in timed
    ]
    header = [*shared, "index, s", "read, us per query"]
    found += [text.paragraph(_TIMES), tables.markdown(header, lines)]
  if projected:
    lines = [
      [
        *_size(row),
        _mega(row["memory_bytes_formula"]),
        f"{row['query_bytes_formula']:,}",
      ]
      for row in projected
    ]
    header = [*shared, "memory by the formula, MB", "bytes per query by the formula"]
    found.append(tables.markdown(header, lines))
  return found


def _size(row: ratios.Row) -> list[str]:
  return [
    TITLES[row["system"]],
    str(row["num_paths"]),
    f"{row['num_tokens']:,}",
    f"{row['num_devices']:,}",
  ]


def _mega(num_bytes: float) -> str:
  return f"{num_bytes / 1e6:,.2f}"
