"""Section of docs/results.md on contexts of 1,000 and more tokens."""

import statistics
import typing

from experiments.common import tables
from experiments.common.systems import TITLES
from experiments.report_pages import map_grids
from experiments.report_pages import runs
from experiments.report_pages import text
from experiments.report_pages.runs import Results

ScalingRow = dict[str, typing.Any]

# The order of the tables: relative TCA first, then the baselines, then the others.
_FIRST = ("relative_tca", "kriging", "vecchia", "linear")
_ORDER = [*_FIRST, *(name for name in TITLES if name not in _FIRST)]


def files_of(results: Results) -> dict[str, list[runs.File]]:
  """Groups the evaluations on whole maps by data set.

  Of the published models, only the runs of the main results count, as `runs.ROWS`
  selects them. Of a relative model, the run with the smallest seed counts.
  """
  by_map: dict[str, list[runs.File]] = {}
  for row in runs.ROWS:
    dataset = row.options.get("dataset", "")
    files = _relative_runs(results, dataset)[:1] + [
      file
      for file in results.with_rows("num_context")
      if file.matches(row.options) and file.config["model"] in runs.MODELS
    ]
    if files:
      by_map[dataset] = sorted(files, key=lambda f: _ORDER.index(f.config["model"]))
  return by_map


def _relative_runs(results: Results, dataset: str) -> list[runs.File]:
  """The evaluations of relative TCA on a whole map, by seed."""
  files = [
    file
    for file in results.with_rows("num_context")
    if file.matches(dict(dataset=dataset, model="relative_tca", validation=False))
  ]
  return sorted(files, key=lambda file: file.config["seed"])


def rows_of(files: list[runs.File]) -> list[ScalingRow]:
  """Collects the rows of files, by context size and then in the order of the tables.

  The rows of baselines are those of the first file that has them.
  """
  rows = [row for file in files for row in file.content["rows"]]
  rows += next(filter(None, (file.content.get("baselines") for file in files)), [])
  return sorted(rows, key=lambda row: (row["num_context"], _ORDER.index(row["system"])))


def section(results: Results) -> str:
  """Predictions of whole maps, from contexts of different sizes."""
  by_map = files_of(results)
  if not by_map:
    return ""
  files = [file for map_files in by_map.values() for file in map_files]
  trained = max(file.config["num_context"] for file in files)
  spread = text.listed(
    [
      f"{map_files[0].content['value_std']:.0f} {unit_of(map_files)} in `{name}`"
      for name, map_files in by_map.items()
    ]
  )
  hardware = sorted({_hardware(file) for file in files})
  minutes = max(_minutes(results, file) for file in files)
  return text.section(
    "Large contexts",
    text.paragraph(
      "The models predict the values of held-out points of a real map from a context of"
      " other points of that map. They were trained on windows with at most"
      f" {trained:,} points of context, for {minutes:.0f} minutes or less. The standard"
      f" deviation of the values is {spread}.",
      "RMSE is the root-mean-square error of the predicted mean. With several paths, a"
      " query follows the most probable paths down the tree, not only one. Relative TCA"
      " sees each node's location and values relative to the query.",
      f"The times are of {text.listed(hardware)}; build is the time for the tree and for"
      " what is cached of its nodes, or for the fit of a baseline. Where linear"
      " interpolation has no build time, its time per query contains it. Relative TCA and"
      " the baselines were timed in one run, the other models in earlier ones: compare times"
      " only within these groups. Relative TCA predicts mixtures, all others normal"
      " distributions.",
    ),
    _winners(by_map),
    *(
      part
      for name, map_files in by_map.items()
      for part in _map(results, name, map_files)
    ),
    *map_grids.parts(by_map),
    _whole_maps(results),
    *_pictures(results),
  )


def _minutes(results: Results, file: runs.File) -> float:
  """The training time of the run behind an evaluation on whole maps; 0 if unknown."""
  names = ("dataset", "whole_map", "num_steps", "teacher_temperature")
  options = {name: file.config[name] for name in names if name in file.config}
  same_run = results.runs(options, file.config["model"])
  return max((run.content["train_seconds"] / 60 for run in same_run), default=0)


def unit_of(files: list[runs.File]) -> str:
  """The unit of a map's values; old files, which do not name it, have metres."""
  return files[0].content.get("unit", "m")


def _hardware(file: runs.File) -> str:
  cores = file.content.get("cores")
  device = file.content["device"]
  return (
    f"{device} with {cores} CPU {'core' if cores == 1 else 'cores'}"
    if cores
    else device
  )


def _winners(by_map: dict[str, list[runs.File]]) -> str:
  """Compares relative TCA with the baselines at the largest contexts."""
  parts = []
  for name, files in by_map.items():
    rows, unit = rows_of(files), unit_of(files)
    largest = max(row["num_context"] for row in rows)
    errors = [
      f"{row['rmse']:.1f} {unit} for {TITLES[system]}"
      for system in (*_FIRST, "tca", "ca")
      if (row := _at(rows, system).get(largest)) is not None
    ]
    parts.append(
      f"From {largest:,} points of `{name}`, the RMSE is {text.listed(errors)}."
    )
  return text.paragraph(
    "Local kriging predicts from the 48 nearest points, with a Gaussian process whose"
    " parameters are fitted to 400 points. The Gaussian process in Vecchia's"
    " approximation, by gpboost, has 30 neighbours; its parameters are fitted to all"
    " points. Linear interpolation predicts no uncertainty.",
    *parts,
  )


def _map(results: Results, name: str, files: list[runs.File]) -> list[str]:
  """The text, table and figure of one map."""
  rows, seeds = rows_of(files), _relative_runs(results, name)
  levels = runs.levels(rows)
  lines = []

  for row in rows:
    seconds = row.get("tree_seconds", 0) + row.get("index_seconds", 0)
    lines.append(
      [
        f"{row['num_context']:,}",
        TITLES[row["system"]],
        tables.cell(row, "log_likelihood", ".3f"),
        f"{row['rmse']:.1f}",
        *(tables.cell(row, f"coverage_{level}", ".1f", 100) for level in levels),
        tables.cell(row, "tokens_read", ",.1f"),
        f"{row['us_per_query']:,.1f}",
        f"{row.get('fit_seconds', seconds):.2f}",
      ]
    )
  header = ["context points", "model", "log-likelihood", f"RMSE, {unit_of(files)}"]
  header += [f"within {level} %" for level in levels]
  header += ["nodes read", "us per query", "build, s"]
  figure = f"scaling_{name}.png"
  return [
    f"### `{name}`",
    text.paragraph(
      _growth(rows),
      _paths(rows, unit_of(files)),
      _seeds(seeds, unit_of(files)),
      _scale(name),
    ),
    tables.markdown(header, lines),
    text.image(
      results.folder,
      figure,
      f"Quality, calibration and time against context size, {name}",
    ),
    text.links(file.path for file in [*files, *seeds[1:]]),
  ]


def _at(rows: list[ScalingRow], system: str) -> dict[int, ScalingRow]:
  return {row["num_context"]: row for row in rows if row["system"] == system}


def _growth(rows: list[ScalingRow]) -> str:
  """How the log-likelihood changes from the smallest to the largest context."""
  changes = []
  for system in ("relative_tca", *runs.MODELS):
    by_size = _at(rows, system)
    if len(by_size) > 1:
      first, last = (by_size[n]["log_likelihood"] for n in (min(by_size), max(by_size)))
      changes.append(f"from {first:.3f} to {last:.3f} for {TITLES[system]}")
  if not changes:
    return ""
  sizes = sorted({row["num_context"] for row in rows})
  return (
    f"From {sizes[0]:,} to {sizes[-1]:,} points, the log-likelihood changes"
    f" {text.listed(changes)}."
  )


def _paths(rows: list[ScalingRow], unit: str) -> str:
  """Compares one path, the widest beam and all leaves at the largest context."""
  largest = max(row["num_context"] for row in rows)
  beams = [name for name in TITLES if name.startswith("tca_") and name != "tca_full"]
  names = ["tca", *beams[-1:], "tca_full"]
  rows_read = {
    name: row for name in names if (row := _at(rows, name).get(largest)) is not None
  }
  parts = [
    f"{row['rmse']:.1f} {unit} with {row['tokens_read']:,.0f} nodes read"
    f" ({TITLES[name]})"
    for name, row in rows_read.items()
  ]
  if len(parts) < 2:
    return ""
  return f"At {largest:,} points, the RMSE is {text.listed(parts)}."


def _seeds(files: list[runs.File], unit: str) -> str:
  """Mean and spread of relative TCA over runs that differ in their seed."""
  steps = {file.config.get("num_steps") for file in files}
  if len(files) < 2 or len(steps) > 1:
    return ""
  by_size: dict[int, list[ScalingRow]] = {}
  for file in files:
    for row in file.content["rows"]:
      by_size.setdefault(row["num_context"], []).append(row)
  parts = [
    f"{_spread(same, 'log_likelihood', 3)} and {_spread(same, 'rmse', 1)} {unit} from"
    f" {size:,} points"
    for size, same in sorted(by_size.items())
  ]
  return (
    f"The mean and standard deviation of {TITLES['relative_tca']} over {len(files)}"
    f" seeds, of log-likelihood and RMSE, are {text.listed(parts)}."
  )


def _spread(rows: list[ScalingRow], key: str, digits: int) -> str:
  numbers = [row[key] for row in rows]
  mean, spread = statistics.mean(numbers), statistics.stdev(numbers)
  return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def _scale(name: str) -> str:
  """The sentence on the scale of a map's values, if there is one."""
  scales = {
    "airports": "The models learn these elevations on a scale that is about linear for"
    " small ones and logarithmic for large ones; the log-likelihood is on that scale.",
    "retina": "Uniform noise of one grey level was added to the values, once for all"
    " methods: a density on integers has no bound.",
  }
  return scales.get(name, "")


def _whole_maps(results: Results) -> str:
  """Runs with other shares of training windows that are the whole map."""
  files = [
    file
    for file in results.with_rows("num_context")
    if file.config.get("dataset") == "fault" and "whole_map" in file.config
    if file.config["model"] in runs.MODELS
  ]
  shares = {file.config["whole_map"] for file in files}
  if len(shares) < 2:
    return ""
  files.sort(
    key=lambda f: (f.config["whole_map"], runs.MODELS.index(f.config["model"]))
  )
  lines = []
  for file in files:
    config, rows = file.config, rows_of([file])
    row = [row for row in rows if row["system"] == config["model"]][-1]
    lines.append(
      [
        f"{config['whole_map']:g}",
        f"{config['num_steps']:,}",
        f"{config['teacher_temperature']:g}" if config["model"] == "tca" else "",
        TITLES[config["model"]],
        f"{row['num_context']:,}",
        f"{row['log_likelihood']:.3f}",
        f"{row['rmse']:.1f}",
      ]
    )
  header = ["final share of whole maps", "steps", "teacher temperature", "model"]
  header += ["context points", "log-likelihood", "RMSE, m"]
  return "\n\n".join(
    [
      "### `fault`, with more whole maps in training",
      text.paragraph(
        "Some training windows are the whole map; their share grows linearly to the"
        " final value in the first column (`--whole_map`). The table compares"
        " evaluations at the largest context; the number of steps and the teacher's"
        " temperature (`--teacher_temperature`, for TCA only) differ as well."
      ),
      tables.markdown(header, lines),
      text.links(file.path for file in files),
    ]
  )


def _pictures(results: Results) -> list[str]:
  caption = "A map completed from 1 % of its points, and the nodes that one query read"
  return [text.image(results.folder, x, caption) for x in ("terrain.png", "retina.png")]
