"""Section of docs/results.md on Bayesian optimisation."""

import statistics
import typing

from experiments.common import tables
from experiments.data.benchmark_functions import FUNCTIONS
from experiments.report_pages import runs
from experiments.report_pages import text

FILE = "bayesopt.json"
FIGURE = "bayesopt.png"
TITLES = {
  "reader": "Trained reader",
  "gp": "Gaussian process",
  "random": "Random search",
}

Row = dict[str, typing.Any]


def section(results: runs.Results) -> str:
  """The regret and the time of optimisation with a reader, beside the baselines."""
  content = results.content(FILE)
  if content is None:
    return ""
  rows, settings = content["rows"], content["settings"]
  origin = content["sessions"][-1]
  return text.section(
    "Bayesian optimisation",
    text.paragraph(
      "A relative model, trained for"
      f" {settings['model_step']:,} steps on random functions of one to six inputs"
      " (`experiments.black_box`), is the surrogate of an optimiser. Each new observation"
      " is inserted into its memory, and nothing is fitted. The Gaussian process is that"
      " of scikit-learn: Matern-5/2 with a length scale for each input; its"
      " hyper-parameters are fitted again whenever the number of observations has grown"
      " by a tenth. Each run starts with the same"
      f" {settings['num_start']} random points, and chooses from"
      f" {settings['num_candidates']} candidates in each step, by expected improvement"
      " (ei) or by independent draws (thompson).",
      _verdict(rows, settings["num_start"]),
      "The regret is the smallest value found minus the known minimum; medians of the"
      " runs that reach a size. The figure draws regrets below 1e-5 as 1e-5.",
    ),
    _table(rows, "regret", ".2g"),
    text.paragraph(
      "Median milliseconds of a step since the size before, on"
      f" {origin['device']}, {origin['cores']} cores, which also ran other programs. Most"
      " steps of the Gaussian process fit no hyper-parameters."
    ),
    _table(rows, "step_seconds", ".1f", 1e3),
    text.paragraph(
      "Seconds of a run until a size, with every fit of hyper-parameters. The first run"
      " of a command also compiles the reader, once for each capacity, which can take"
      " longer than its steps; so the only run of a size can be far above the others."
    ),
    _table(rows, "seconds", ".1f"),
    text.image(
      results.folder, FIGURE, "Regret and time of a step against observations"
    ),
    text.links([FILE]),
  )


def _methods(rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
  """The rows by function, method and acquisition function, in the order of tables."""
  found: dict[tuple[str, str, str], list[Row]] = {}
  for function in FUNCTIONS:
    for method in TITLES:
      for row in sorted(rows, key=lambda row: row.get("acquisition", "")):
        if (row["function"], row["method"]) == (function, method):
          key = function, method, row.get("acquisition", "")
          found.setdefault(key, []).append(row)
  return found


def _medians(rows: list[Row], name: str) -> dict[int, float]:
  """The median of an entry over the runs that reached a size, by size."""
  by_size: dict[int, list[float]] = {}
  for row in rows:
    for entry in row["curve"]:
      if name in entry:
        by_size.setdefault(entry["num_observations"], []).append(entry[name])
  return {size: statistics.median(values) for size, values in by_size.items()}


def _table(rows: list[Row], name: str, form: str, factor: float = 1) -> str:
  """Medians by function, method and number of observations."""
  sizes = sorted({x["num_observations"] for row in rows for x in row["curve"]})
  lines = []
  for (function, method, acquisition), found in _methods(rows).items():
    medians = _medians(found, name)
    title = f"{TITLES[method]}, {acquisition}" if acquisition else TITLES[method]
    cells = [tables.cell(medians, size, form, factor) for size in sizes]
    lines.append([FUNCTIONS[function].title, title, str(len(found)), *cells])
  header = ["function", "method", "runs", *(f"{size:,}" for size in sizes)]
  return tables.markdown(header, lines)


def _verdict(rows: list[Row], num_start: int) -> str:
  """Where the Gaussian process finds smaller values than the reader, and where not."""
  best: dict[tuple[str, int], dict[str, float]] = {}
  for (function, method, _), found in _methods(rows).items():
    for size, value in _medians(found, "regret").items():
      by_method = best.setdefault((function, size), {})
      by_method[method] = min(value, by_method.get(method, value))
  sizes: dict[str, dict[str, list[str]]] = {"gp": {}, "reader": {}}
  for (function, size), by_method in best.items():
    both = {"gp", "reader"} <= set(by_method) and size > num_start
    if both and by_method["gp"] != by_method["reader"]:
      winner = min(("gp", "reader"), key=by_method.__getitem__)
      title = FUNCTIONS[function].title.split(",")[0]
      sizes[winner].setdefault(title, []).append(f"{size:,}")
  sentences = []
  for method, name in (("gp", "the Gaussian process"), ("reader", "the reader")):
    cases = [f"{title} at {text.listed(x)}" for title, x in sizes[method].items()]
    if cases:
      sentence = f"With the better of its acquisition functions, {name} has the smaller"
      sentences.append(f"{sentence} regret for {text.listed(cases)} observations.")
  return " ".join(sentences)
