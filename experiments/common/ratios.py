"""What the rows of benchmarks.retrieval say: who is ahead, and from where on."""

import math
import typing

Row = dict[str, typing.Any]


def fastest_full(rows: list[Row]) -> dict[int, float]:
  """By number of tokens, the microseconds of the fastest full attention."""
  fastest: dict[int, float] = {}
  for row in rows:
    if row["system"].startswith("full"):
      n = row["num_tokens"]
      fastest[n] = min(row["us_per_query"], fastest.get(n, math.inf))
  return fastest


def crossover(rows: list[Row], num_queries: int) -> int | None:
  """The fewest tokens from which on TCA is ahead of every full attention."""
  rows = [row for row in rows if row["num_queries"] == num_queries]
  tca = times(rows, "tca")
  ahead = None
  for n, full in sorted(fastest_full(rows).items(), reverse=True):
    if tca[n] >= full:
      break
    ahead = n
  return ahead


def times(rows: list[Row], system: str) -> dict[int, float]:
  """By number of tokens, the microseconds per query of a system."""
  return {r["num_tokens"]: r["us_per_query"] for r in rows if r["system"] == system}
