"""Section of docs/results.md on a map whose points arrive."""

import statistics
import typing

from experiments.common import tables
from experiments.report_pages import runs
from experiments.report_pages import text

FILE, FIGURE = "stream.json", "stream.png"

Row = dict[str, typing.Any]


def section(results: runs.Results) -> str:
  """The held-out error while points arrive, from a grown and from a new memory."""
  content = results.content(FILE)
  if content is None:
    return ""
  rows, settings, unit = content["rows"], content["settings"], content["unit"]
  return text.section(
    "A map whose points arrive",
    text.paragraph(
      f"The points of `{settings['dataset']}` arrive in random order,"
      f" {settings['batch_size']} at a time, and are inserted into the memory of"
      f" `{settings['model']}`, whose [context grows](concepts/growth.md). At several"
      f" sizes, {rows[-1]['num_targets']:,} held-out points are predicted from this memory,"
      " and from a new memory of the same points.",
      _verdict(rows),
      "The time of a point is that of all insertions so far, with rebuilds and"
      f" compilations; it is of {content['device']}, {content['cores']} cores, beside other"
      " programs.",
      "`python -m experiments.stream` makes this result.",
    ),
    _table(rows, unit),
    text.image(
      results.folder, FIGURE, "A map predicted while its points arrive, and the error"
    ),
    text.links([FILE]),
  )


def _verdict(rows: list[Row]) -> str:
  """How far the memory that has grown is from a new one."""
  lost = [row["new_log_likelihood"] - row["log_likelihood"] for row in rows]
  ratios = [row["rmse"] / row["new_rmse"] for row in rows]
  return (
    f"The log-likelihood from the grown memory is lower by {statistics.mean(lost):.3f} on"
    f" average, and by {max(lost):.3f} at most; its RMSE is {min(ratios):.3f} to"
    f" {max(ratios):.3f} times that from the new one."
  )


def _table(rows: list[Row], unit: str) -> str:
  header = ["points", "leaf slots", "rebuilds"]
  header += ["log-likelihood, grown", "log-likelihood, new"]
  header += [
    f"RMSE, {unit}, {name}" for name in ("grown", "new", "linear interpolation")
  ]
  return tables.markdown(
    [*header, "us per point"],
    [
      [
        f"{row['num_points']:,}",
        f"{row['capacity']:,}",
        str(row["num_rebuilds"]),
        *(f"{row[name]:.3f}" for name in ("log_likelihood", "new_log_likelihood")),
        *(f"{row[name]:.2f}" for name in ("rmse", "new_rmse", "linear_rmse")),
        f"{1e6 * row['seconds'] / row['num_points']:,.0f}",
      ]
      for row in rows
    ],
  )
