"""Part of docs/results.md: nodes as they are seen from the query, on the paper's tasks."""

from experiments.common import tables
from experiments.common.systems import TITLES
from experiments.report_pages import runs
from experiments.report_pages import text
from experiments.report_pages.runs import File
from experiments.report_pages.runs import Results

_MODELS = ("relative_tca", "tca", "ca")
_DATA = tuple(row for row in runs.ROWS if {"kernel", "dataset"} & row.options.keys())
# Options that select the same data; others select a number of steps.
_NAMES = ("kernel", "dataset", "unseen")
# What a title says of runs with one of these options.
_VARIANTS = {
  "fits_covariance": "fitted covariance",
  "joined_share": "joined images",
  "weight_decay": "weight decay",
}
_FIGURES = {
  "completion_relative.png": "Digits completed by Relative TCA along one path",
  "photos_relative.png": "Photo patches completed by Relative TCA along one path",
}


def section(results: Results) -> str:
  """Relative reads along one path, beside the published forms."""
  lines, paths = [], []
  for row in _DATA:
    options = {name: row.options[name] for name in _NAMES if name in row.options}
    if not _by_examples(results, options, "relative_tca"):
      continue
    for model in _MODELS:
      for (examples, title), files in _by_examples(results, options, model):
        paths += [file.path for file in files]
        lines.append([row.title, title, f"{examples:,}", *_cells(files)])
  if not lines:
    return ""
  header = ["data set", "model", "training examples", "tokens read"]
  header += ["log-likelihood", "below the exact posterior", "within 90 %"]
  return text.section(
    "Nodes as they are seen from the query, along one path",
    text.paragraph(
      "Relative TCA follows one path to the nodes nearest to the query, and reads with"
      " each node the two tokens on its border that are nearest"
      " (`--model=relative_tca --beam_width=1 --border_tokens=2`; see"
      " [Relative reads](concepts/relative.md)). A node with these tokens counts as one"
      " token read, although it has up to three values. Unlike the other models, it"
      " embeds no absolute locations, except on digits (`--sees_location`). With a fitted"
      " covariance (`--fits_covariance`), the nodes are interpolated by the covariance"
      " function that fits all values of the context; otherwise each query chooses one."
      " With joined images (`--joined_share`), training images are joined from parts of"
      " two; with weight decay (`--weight_decay`), by AdamW."
      " A training example is a function or an image; it counts each time it is drawn."
      " Runs with other batch sizes are evaluated on other functions of the same"
      " distribution: compare their distances to the exact posterior."
    ),
    tables.markdown(header, lines),
    *(text.image(results.folder, *item) for item in _FIGURES.items()),
    text.links(paths),
  )


def _by_examples(
  results: Results, options: runs.Options, model: str
) -> list[tuple[tuple[int, str], list[File]]]:
  """The runs of a model for each number of examples, the largest first, and title."""
  if model == "relative_tca":
    options = {**options, "beam_width": 1}
  groups: dict[tuple[int, str], list[File]] = {}
  for file in results.evaluations():
    if file.matches({**options, "model": model}):
      config = file.config
      variants = [words for name, words in _VARIANTS.items() if config.get(name)]
      title = ", ".join([TITLES[model], *variants])
      examples = config["num_steps"] * config["batch_size"]
      groups.setdefault((examples, title), []).append(file)
  return sorted(groups.items(), reverse=True)


def _cells(files: list[File]) -> list[str]:
  found, best = (
    runs.mean(files, metric) for metric in ("log_likelihood", "ceiling_log_likelihood")
  )
  gap = "" if found is None or best is None else f"{best - found:.3f}"
  tokens = f"{files[0].content['tokens_fraction_largest']:.1%}"
  inside = runs.mean(files, "coverage_90")
  calibration = "" if inside is None else f"{inside:.1%}"
  return [tokens, runs.cell(files, "log_likelihood"), gap, calibration]
