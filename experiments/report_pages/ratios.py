"""Ratios and crossovers of the times that benchmarks.retrieval writes."""

from collections.abc import Sequence
import math
import typing

Row = dict[str, typing.Any]


def fastest_full(rows: Sequence[Row]) -> dict[int, float]:
  """Finds the time of the fastest full attention for each context size.

  Args:
    rows: of one number of queries.

  Returns:
    Microseconds per query, by number of tokens.
  """
  fastest: dict[int, float] = {}
  for row in rows:
    if row["system"].startswith("full"):
      n = row["num_tokens"]
      fastest[n] = min(row["us_per_query"], fastest.get(n, math.inf))
  return fastest


def crossover(rows: Sequence[Row], num_queries: int) -> int | None:
  """Finds the smallest context from which TCA is faster than every full attention.

  Args:
    rows: of any numbers of queries.
    num_queries: the number of queries whose rows count.

  Returns:
    The number of tokens from which TCA is faster at all larger sizes that were timed;
    None if it is not faster at the largest one.
  """
  rows = [row for row in rows if row["num_queries"] == num_queries]
  tca = times(rows, "tca")
  ahead = None
  for n, full in sorted(fastest_full(rows).items(), reverse=True):
    if tca[n] >= full:
      break
    ahead = n
  return ahead


def times(rows: Sequence[Row], system: str) -> dict[int, float]:
  """Collects the microseconds per query of a method, by number of tokens."""
  return {r["num_tokens"]: r["us_per_query"] for r in rows if r["system"] == system}
