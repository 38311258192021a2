"""Tables as text for a terminal, and as Markdown."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import typing


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Prints a table with aligned columns, and returns it; see `aligned`."""
  text = aligned(title, header, rows)
  print(f"\n{text}\n", flush=True)
  return text


def aligned(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Makes a table with aligned columns.

  Args:
    title: the line above the table.
    header: the names of the columns.
    rows: the cells; each row has as many as the header.
  """
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

  def line(cells: Sequence[str]) -> str:
    padded = [
      cell.ljust(width) if i == 0 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()

  return "\n".join([title, line(header), *map(line, rows)])


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Formats a table in Markdown.

  Args:
    header: the names of the columns.
    rows: the cells; each row has as many as the header.

  Raises:
    ValueError: if a row has another number of cells than the header.

  >>> print(markdown(("a", "b"), [("1", "2")]))
  | a | b |
  | --- | --- |
  | 1 | 2 |
  """
  lines = [header, ["---"] * len(header)]
  for row in rows:
    if len(row) != len(header):
      raise ValueError(f"a row must have {len(header)} cells, got {list(row)}")
    lines.append(row)
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quality(result: Mapping[str, typing.Any], prefix: str = "") -> str:
  """Formats the accuracy of a result or, if it has none, the log-likelihood.

  Args:
    result: the metrics of an evaluation, by name.
    prefix: "full_" for the metric that is read from all leaves.

  Returns:
    The metric, or "" if the result does not have it.

  >>> quality({"accuracy": 0.5, "full_accuracy": 1.0}, "full_")
  '100.00%'
  >>> quality({"log_likelihood": 1.25})
  '1.250'
  """
  if "accuracy" in result:
    value, style = result.get(prefix + "accuracy"), ".2%"
  else:
    value, style = result.get(prefix + "log_likelihood"), ".3f"
  return "" if value is None else format(value, style)


def of_grid(
  results: Sequence[Mapping[str, typing.Any]],
) -> tuple[list[str], list[list[str]]]:
  """Makes the header and the rows of the table of a grid of runs.

  Args:
    results: the rows of a result file of `experiments.ablation`.
  """
  columns: dict[str, typing.Callable[[Mapping[str, typing.Any]], str]] = {
    "row": lambda result: result["row"],
    "quality": quality,
  }
  if "map_rmse" in results[0]:
    context = f"{results[0]['map_num_context']:,} points"
    columns |= {
      f"{context}: log-likelihood": lambda x: f"{x['map_log_likelihood']:.3f}",
      f"RMSE, {results[0]['unit']}": lambda x: f"{x['map_rmse']:.2f}",
    }
  columns |= {
    "ReTreever-Full": lambda result: quality(result, "full_"),
    "tokens read": lambda result: f"{result['tokens_fraction']:.1%}",
    "training examples": lambda result: f"{result['examples']:,}",
    "training seconds": lambda result: f"{result['train_seconds']:.0f}",
  }
  rows = [[cell(result) for cell in columns.values()] for result in results]
  return [*columns], rows


def cell(
  row: Mapping[typing.Any, typing.Any], name: typing.Any, form: str, factor: float = 1
) -> str:
  """Formats an entry of a row, or returns "" if the row does not have it.

  Args:
    row: numbers by name.
    name: the name.
    form: a format of numbers.
    factor: multiplies the number; 100 for per cent.

  >>> cell({"rmse": 2.0}, "rmse", ".1f"), cell({}, "rmse", ".1f")
  ('2.0', '')
  """
  return format(factor * row[name], form) if name in row else ""
