"""Sections of docs/results.md that compare the models on all data sets."""

from collections.abc import Iterable
import typing

from experiments import published
from experiments.common import tables
from experiments.common.systems import TITLES
from experiments.report_pages import runs
from experiments.report_pages import text
from experiments.report_pages.runs import MODELS
from experiments.report_pages.runs import Results
from experiments.report_pages.runs import Row

_METRICS = {"accuracy": "accuracy, %", "log_likelihood": "log-likelihood"}
_UNCHECKED = f"{published.MARK} Not yet compared with the paper."


def how_to_read(results: Results) -> str:
  """Explains the models, the columns and the JSON files."""
  tca, ca, perceiver, full = (TITLES[name] for name in (*MODELS, "tca_full"))
  files = results.evaluations()
  trained = [run for file in files for run in file.content.get("trained", [])]
  sources = [*trained, *(file.content for file in files)]
  devices = text.listed(sorted({str(source["device"]) for source in sources}))
  seeds = max((len(files) for files in _all_runs(results)), default=1)
  models = [
    f"**{tca}** is ReTreever: a query walks down the tree along one path.",
    f"**{ca}** reads all tokens of the context.",
    f"**{perceiver}** reads latents. Unless a table says otherwise, there are as many"
    f" latents as {tca} reads nodes of the largest context.",
    f"**{full}** is the trained {tca} model, read with cross attention to all leaves.",
  ]
  columns = [
    "**accuracy** is in per cent; **log-likelihood** is the mean log-density of the"
    " targets, summed over their channels. Higher is better for both.",
    f"**tokens read** is the share of the task's largest context that one query of"
    f" {tca} reads, in per cent. {ca} and {full} read 100 %.",
    "**steps** is the number of training steps; **test examples** is the number of"
    " contexts in the evaluation.",
    "Columns that begin with **paper** contain numbers that the paper reports.",
  ]
  return text.section(
    "How to read this page",
    text.paragraph(
      "All models have the same embedder, encoder and head. They differ in the"
      " read-out, that is, in how a query reads the context:"
    ),
    text.bullets(models),
    text.paragraph("The tables have these columns:"),
    text.bullets(columns),
    text.paragraph(
      "Each number is of one training run with one seed, unless its cell gives a number"
      " of seeds: then it is the mean and the sample standard deviation. No cell has"
      f" more than {seeds} seeds, so small differences between models are not evidence.",
      f"The models were trained and evaluated on these devices: {devices}."
      if devices
      else "",
    ),
    text.paragraph(
      "All numbers, also those in sentences, are computed from JSON files in"
      " `results/`, except the paper's. Each file also contains the command,"
      " the configuration, the commit and the training time of the run.",
      "`python -m experiments.report` writes this page and its figures again.",
    ),
    _demo(results),
  )


def _demo(results: Results) -> str:
  if not results.under("demo.json"):
    return ""
  return text.paragraph(
    f"The summary of `make demo` is in {text.link('demo.json')}; its copy task is the"
    " first row of the main results."
  )


def _all_runs(results: Results) -> Iterable[list[runs.File]]:
  for row in runs.ROWS:
    for model in MODELS:
      yield results.runs(row.options, model)


def _ran(results: Results) -> list[Row]:
  """The rows of which at least one model was run."""
  return [
    row
    for row in runs.ROWS
    if any(results.runs(row.options, model) for model in MODELS)
  ]


def main_results(results: Results) -> str:
  """The main table: all models on all data sets that were run."""
  lines, files, unchecked = [], [], False
  differences: dict[str, list[float]] = {"perceiver": [], "ca": []}
  rows = _ran(results)
  for row in rows:
    by_model = {model: results.runs(row.options, model) for model in MODELS}
    selected = [file for same_model in by_model.values() for file in same_model]
    steps = sorted({file.content["step"] for file in selected})
    examples = sorted({file.content["num_examples"] for file in selected})
    paper = _paper_cells(row)
    unchecked |= any(published.MARK in cell for cell in paper)
    tokens = [f"{x.content['tokens_fraction_largest']:.1%}" for x in by_model["tca"]]
    lines.append(
      [
        row.title,
        _METRICS[row.metric],
        *(runs.cell(by_model[model], row.metric) for model in MODELS),
        runs.cell(by_model["tca"], f"full_{row.metric}"),
        *(tokens[:1] or [""]),
        " / ".join(f"{x:,}" for x in steps),
        " / ".join(f"{x:,}" for x in examples),
        *paper,
      ]
    )
    files.append((row.title, selected))
    for other, values in differences.items():
      if by_model["tca"] and by_model[other]:
        values.append(_difference(by_model["tca"], by_model[other], row.metric))
  names = [TITLES[model] for model in MODELS]
  header = ["data set", "metric", *names, TITLES["tca_full"], "tokens read"]
  header += ["steps", "test examples"]
  header += [*(f"paper: {name}" for name in names), "paper: tokens read"]
  return text.section(
    "Main results",
    text.paragraph(
      "In each row, the models are trained for the same number of steps, unless two"
      " numbers are given.",
      *(_wins(other, values) for other, values in differences.items()),
      "The paper's columns are for orientation: our training recipe and numbers of steps"
      " differ from the paper's (see [Differences from the"
      " paper](paper_differences.md)).",
    ),
    tables.markdown(header, lines),
    _UNCHECKED if unchecked else "",
    text.bullets(f"{row.title}: {row.note}" for row in rows if row.note),
    "JSON files, by row:",
    text.bullets(
      f"{title}: {', '.join(text.link(file.path) for file in selected)}"
      for title, selected in files
    ),
    *_pictures(results),
  )


def _difference(
  tca: list[runs.File], other: list[runs.File], metric: published.Metric
) -> float:
  """TCA's advantage over another model, from means rounded as in the table."""
  digits = 4 if metric == "accuracy" else 3
  means = [runs.mean(files, metric) for files in (tca, other)]
  a, b = (round(mean or 0.0, digits) for mean in means)
  return a - b


def _wins(other: str, differences: list[float]) -> str:
  """States in how many rows TCA is better than another model."""
  if not differences:
    return ""
  better = sum(x > 0 for x in differences)
  worse = sum(x < 0 for x in differences)
  equal = len(differences) - better - worse
  return (
    f"{TITLES['tca']} is better than {TITLES[other]} in {better} of {len(differences)}"
    f" rows, worse in {worse}{f' and equal in {equal}' if equal else ''}."
  )


def _paper_cells(row: Row) -> list[str]:
  if row.published is None:
    return ["", "", "", ""]
  item = published.RESULTS[row.published]
  figures = item.texts()
  return [*(figures[model] for model in MODELS), f"{item.tokens:g}%"]


def _pictures(results: Results) -> list[str]:
  captions = {
    "completion.png": "Digits completed by TCA, and the nodes that one query read",
    "photos.png": "Photo patches completed by TCA, and the nodes that one query read",
    "activity.png": "Exercises recognised by TCA, and the nodes that one query read",
  }
  return [text.image(results.folder, *item) for item in captions.items()]


def only_published(results: Results) -> str:
  """The paper's numbers for the data sets that were not run."""
  ran = {row.title for row in _ran(results)}
  missing = [
    (row.title, published.RESULTS[row.published])
    for row in runs.ROWS
    if row.published and row.title not in ran
  ]
  if not missing:
    return ""
  lines = []
  for title, item in missing:
    figures = item.texts()
    cells = [figures[model] for model in MODELS]
    lines.append([title, _METRICS[item.metric], *cells, f"{item.tokens:g}%"])
  names = [f"paper: {TITLES[model]}" for model in MODELS]
  unchecked = any(published.MARK in cell for line in lines for cell in line)
  return text.section(
    "The paper's numbers for data sets that we have not run",
    text.paragraph(
      "No number of this table is ours. The data sets need official files that this"
      " repository does not ship; `--dataset` and `--manual_dir` of"
      " `experiments.image_completion` and `experiments.activity` read them."
    ),
    tables.markdown(["data set", "metric", *names, "paper: tokens read"], lines),
    _UNCHECKED if unchecked else "",
  )


def calibration(results: Results) -> str:
  """The coverage of predicted intervals, and the calibration error of classes."""
  intervals, classes = [], []
  errors: list[tuple[float, str]] = []
  over: dict[int, int] = {}
  for row in _ran(results):
    for model in MODELS:
      files = results.runs(row.options, model)
      levels = runs.levels(file.content for file in files)
      if levels:
        shares = [runs.cell(files, f"coverage_{level}") for level in levels]
        intervals.append((levels, [row.title, TITLES[model], *shares]))
        for level in levels:
          share: typing.Any = runs.mean(files, f"coverage_{level}")
          over[level] = over.get(level, 0) + (100 * share > level)
      error = runs.mean(files, "calibration_error")
      if error is not None:
        cell = runs.cell(files, "calibration_error")
        classes.append([row.title, TITLES[model], cell])
        errors.append((error, f"{TITLES[model]} on {row.title}, {100 * error:.1f} %"))
  if not intervals and not classes:
    return ""
  levels = sorted({level for row_levels, _ in intervals for level in row_levels})
  wide = [f"the {level} % interval in {over[level]}" for level in levels]
  return text.section(
    "Calibration",
    text.paragraph(
      "For regression, the table gives the share of targets inside the central intervals"
      " of the predicted distributions, in per cent; for a calibrated model it equals"
      " the level of the interval.",
      f"Coverage is above the level for {text.listed(wide)} of {len(intervals)} rows:"
      " there the intervals are too wide.",
    )
    if intervals
    else "",
    tables.markdown(
      ["data set", "model", *(f"within {level} %" for level in levels)],
      [line for _, line in intervals],
    )
    if intervals
    else "",
    text.paragraph(
      "For classification, the table gives the expected calibration error: the mean"
      " difference between confidence and accuracy in bins of the confidence, in per"
      " cent; 0 is best.",
      f"The largest error is that of {max(errors)[1]}.",
    )
    if classes
    else "",
    tables.markdown(["data set", "model", "calibration error, %"], classes)
    if classes
    else "",
    "The JSON files are those of the main results.",
  )


def latents(results: Results) -> str:
  """Perceiver IO with more latents than TCA reads nodes."""
  lines, paths, not_behind, rows = [], [], [], 0
  for row in _ran(results):
    counts = results.latents(row.options)
    if not any(counts):
      continue
    rows += 1
    tca = results.runs(row.options, "tca")
    others = [
      runs.cell(results.runs(row.options, model), row.metric) for model in ("tca", "ca")
    ]
    for count in counts:
      files = results.runs(row.options, "perceiver", count)
      paths += [file.path for file in files]
      share = f"{files[0].content['tokens_fraction_largest']:.1%}"
      cells = [row.title, str(count or "as TCA reads"), share]
      cells += [runs.cell(files, row.metric), *others]
      lines.append([*cells, f"{files[0].content['step']:,}"])
    widest = results.runs(row.options, "perceiver", counts[-1])
    if _difference(tca, widest, row.metric) <= 0:
      not_behind.append(row.title)
  if not lines:
    return ""
  exceptions = f" (not on {text.listed(not_behind)})" if not_behind else ""
  paper = [f"{x:.2f} with {n}" for n, x in published.PERCEIVER_LATENTS.items()]
  header = ["data set", "latents", "latents / tokens", TITLES["perceiver"]]
  return text.section(
    "Perceiver IO with more latents",
    text.paragraph(
      f"The table compares {TITLES['perceiver']} with more latents to the other models."
      " The share is that of the task's largest context.",
      f"With the most latents that we tried, {TITLES['perceiver']} is behind"
      f" {TITLES['tca']} in {rows - len(not_behind)} of {rows} data sets{exceptions}.",
      f"For GP regression (RBF) the paper reports about {text.listed(paper)} latents.",
    ),
    tables.markdown([*header, TITLES["tca"], TITLES["ca"], "steps"], lines),
    text.links(paths),
  )
