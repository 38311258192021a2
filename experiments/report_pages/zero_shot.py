"""Section of docs/results.md on predictions without training."""

import typing

from experiments.common import systems
from experiments.common import tables
from experiments.common.systems import TITLES
from experiments.report_pages import runs
from experiments.report_pages import text

FILE = "zero_shot.json"

Row = dict[str, typing.Any]


def section(results: runs.Results) -> str:
  """The pretrained model on tables that it has not seen, beside the baselines."""
  content = results.content(FILE)
  if content is None:
    return ""
  described, rows = content["tables"], content["rows"]
  return text.section(
    "Predictions without training",
    text.paragraph(
      "One relative model was trained on random surfaces and on three maps, for"
      f" {content['step']:,} steps, see `experiments.surfaces`. It then predicts rows of"
      " tables that it has never seen, a fifth at a time, from the other rows: of a small"
      " table all rows, of a large one a fifth, and also from 1,000 rows only. Nothing is"
      " trained or fitted for a table. Local kriging fits a covariance function to each"
      " context.",
      _verdict(rows),
      "The log-likelihood is that of standardised values. The RMSE has the unit of the"
      f" table. The times are of {content['device']}, {content['cores']} cores;"
      " `experiments.zero_shot` makes this result.",
    ),
    _tables(described),
    _rows(rows),
    *_kinds(results),
    text.links([FILE, *(file.path for file in results.with_rows("kind"))]),
  )


def _contexts(rows: list[Row]) -> dict[tuple[str, int], dict[str, Row]]:
  """The rows by table and context size, and then by method."""
  found: dict[tuple[str, int], dict[str, Row]] = {}
  for row in rows:
    key = row["table"], row["num_context"]
    found.setdefault(key, {})[row["system"]] = row
  return found


def _verdict(rows: list[Row]) -> str:
  """Where the pretrained model wins, and where it does not."""
  contexts = _contexts(rows)
  sentences = []
  for metric, name, sign in (
    ("log_likelihood", "log-likelihood", 1),
    ("rmse", "RMSE", -1),
  ):
    won, lost = [], []
    for (table, size), by_system in contexts.items():
      others = [
        sign * row[metric]
        for system, row in by_system.items()
        if system != systems.PRETRAINED and metric in row
      ]
      better = sign * by_system[systems.PRETRAINED][metric] > max(others)
      (won if better else lost).append(f"`{table}` from {size:,} rows")
    sentence = f"By {name}, it is better than all baselines in {len(won)} of"
    sentence += f" {len(contexts)} cases"
    if lost:
      sentence += f", and not for {text.listed(lost)}"
    sentences.append(f"{sentence}.")
  return " ".join(sentences)


def _tables(described: dict[str, Row]) -> str:
  header = ("table", "content", "rows", "standard deviation", "package", "licence")
  return tables.markdown(
    header,
    [
      (
        name,
        table["title"],
        f"{table['num_rows']:,}",
        f"{table['value_std']:.3g} {table['unit']}",
        table["requirement"],
        table["licence"],
      )
      for name, table in described.items()
    ],
  )


def _rows(rows: list[Row]) -> str:
  header = ("table", "context points", "model", "log-likelihood", "RMSE")
  levels = runs.levels(rows)
  return tables.markdown(
    (*header, *(f"within {level} %" for level in levels), "us per query", "build, s"),
    [
      (
        row["table"],
        f"{row['num_context']:,}",
        TITLES[row["system"]],
        tables.cell(row, "log_likelihood", ".3f"),
        f"{row['rmse']:.4g}",
        *(tables.cell(row, f"coverage_{level}", ".1f", 100) for level in levels),
        f"{row['us_per_query']:.1f}",
        f"{row['fit_seconds']:.2f}",
      )
      for row in rows
    ],
  )


def _kinds(results: runs.Results) -> list[str]:
  """The pretrained model on new random surfaces, and on held-out points of the maps."""
  files = results.with_rows("kind")
  if not files:
    return []
  rows = files[0].content["rows"]
  levels = runs.levels(rows)
  return [
    text.paragraph(
      "On new examples of what it was trained on, with at most"
      f" {files[0].config['num_context']:,} points of context, its scores are:"
    ),
    tables.markdown(
      ("examples", "log-likelihood", *(f"within {level} %" for level in levels)),
      [
        (
          row["kind"],
          f"{row['log_likelihood']:.3f}",
          *(tables.cell(row, f"coverage_{level}", ".1f", 100) for level in levels),
        )
        for row in rows
      ],
    ),
  ]
