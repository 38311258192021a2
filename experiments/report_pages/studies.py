"""Sections of docs/results.md on single tasks, ablations and beam widths."""

import typing

from experiments import published
from experiments.common import tables
from experiments.common.systems import TITLES
from experiments.report_pages import runs
from experiments.report_pages import text
from experiments.report_pages.runs import MODELS
from experiments.report_pages.runs import Results

# Plainer names for rows of the JSON files of grids.
_ROW_TITLES = {
  "positions go through the MLP alone": "no skip connection for positions",
}
_GRIDS = {
  "recipe": (
    "Each row changes one part of the default recipe. The published recipe is the"
    " paper's, with fewer steps."
  ),
  "length": "The most important changes again, on longer sequences.",
  "sensitivity": (
    "Each row changes the weight of the REINFORCE loss or the peak learning rate."
    f" The paper reports that its recipe fails with weights of"
    f" {text.listed([f'{x:g}' for x in published.FAILING_LAMBDA_RL])}."
  ),
  "tree": (
    "Each row changes the order of the leaves or the branch factor b. A random order"
    " puts unrelated symbols below the same node, which gives the policy nothing to"
    " choose by."
  ),
  "latents": "The models of the main results, and Perceiver IO with more latents.",
  "regression": (
    "The default recipe and the published one, after the same number of functions."
  ),
  "relative_map": (
    "Each row changes one part of a relative model: what nodes show to a query, and which"
    " nodes it reads. Trained for few steps, to compare."
    " Other programs ran meanwhile, so do not compare the seconds."
  ),
  "relative_functions": (
    "The same for relative models on functions. Along one path, a model reads 15 % of the"
    " largest context. Here, too, other programs ran meanwhile, and one row was paused, so"
    " do not compare the seconds."
  ),
  "pixels": (
    "Each row changes how the tree over the pixels is built. With more children per node"
    " (b), a walk reads more nodes."
  ),
}


def copying(results: Results) -> str:
  """The copy task by length: accuracy of TCA, and the cost of training."""
  lines, paths, sequences = [], [], []
  for row in runs.ROWS:
    files = results.runs(row.options, "tca")
    if "sequence_length" not in row.options or not files:
      continue
    paths += [file.path for file in files]
    config = files[0].config
    sequences.append(config["num_steps"] * config["batch_size"])
    paper = published.RESULTS[row.published].texts()["tca"] if row.published else ""
    lines.append(
      [
        f"{config['sequence_length']:,}",
        ", ".join(f"{file.content['accuracy']:.2%}" for file in files),
        f"{files[0].content['tokens_fraction_largest']:.1%}",
        f"{sequences[-1]:,}",
        f"{config.get('mixed_length_steps', 0):,} of {config['num_steps']:,}",
        ", ".join(f"{file.content['train_seconds'] / 60:.1f}" for file in files),
        paper,
      ]
    )
  if not lines:
    return ""
  header = ["T", f"{TITLES['tca']}: accuracy, by seed", "tokens read"]
  header += ["training sequences", "steps on shorter parts", "minutes, by seed"]
  header += [f"paper: {TITLES['tca']}, %"]
  return text.section(
    "Copy task by length",
    text.paragraph(
      "The query of a symbol must find its mirror position among T / 2 tokens. The table"
      f" gives the accuracy of {TITLES['tca']} on fresh sequences.",
      f"We train on {min(sequences):,} to {max(sequences):,} sequences; the paper trains"
      f" on {published.COPY_SEQUENCES:,} at each length.",
      "On the longest sequences, the first training steps use shorter parts from the"
      " middle of a sequence (`--mixed_length_steps`). The minutes were measured on a"
      " machine that also ran other programs.",
    ),
    tables.markdown(header, lines),
    text.links(paths),
  )


def _task(config: dict[str, typing.Any]) -> str:
  """Names the task of a grid."""
  if "sequence_length" in config:
    return f"Copy task, T = {config['sequence_length']}."
  if "kernel" in config:
    return "GP regression, RBF kernel."
  if "dataset" in config and "context_sizes" in config:
    return f"Map {config['dataset']}, points of the validation tenth."
  if "synthetic" in config:
    return "Random surfaces, and windows of real maps."
  if "num_inputs" in config:
    return f"Random functions of 1 to {config['num_inputs']} inputs."
  return "Completion of MNIST digits."


def ablations(results: Results) -> str:
  """All rows of all grids of experiments.ablation."""
  files = {file.path: file for file in results.under("ablation/")}
  names = [path.removeprefix("ablation/").removesuffix(".json") for path in files]
  order = [*(name for name in _GRIDS if name in names)]
  order += [name for name in names if name not in _GRIDS]
  parts = []
  for name in order:
    file = files[f"ablation/{name}.json"]
    rows = rows_of_grid(file)
    figure = f"ablation/{name}.png"
    header, lines = tables.of_grid(rows)
    parts.append(
      text.section(
        name.replace("_", " ").capitalize(),
        text.paragraph(_task(rows[0]["config"]), _GRIDS.get(name, ""), _range(rows)),
        tables.markdown(header, lines),
        text.image(results.folder, figure, f"Learning curves of the grid {name}"),
        text.links([file.path]),
        level=3,
      )
    )
  return text.section(
    "Ablations",
    text.paragraph(
      "Quality is the accuracy or the log-likelihood on the validation seed. Tokens"
      " read is the mean share over the evaluation. Each row is one training run with"
      " one seed, on one CPU core of a machine that trained other models as well.",
      "`python -m experiments.ablation --grid=NAME` runs a grid.",
    )
    if parts
    else "",
    *parts,
  )


def rows_of_grid(file: runs.File) -> list[dict[str, typing.Any]]:
  """Reads the rows of a grid, with plainer names for some."""
  return [
    row | {"row": _ROW_TITLES.get(row["row"], row["row"])} for row in file.content
  ]


def _range(rows: list[dict[str, typing.Any]]) -> str:
  """States which rows of a grid have the best quality, and which are worse."""
  metric = "accuracy" if "accuracy" in rows[0] else "log_likelihood"
  values = {row["row"]: tables.quality(row) for row in rows}
  best = values[max(rows, key=lambda row: row[metric])["row"]]
  worse = [f'"{name}" ({value})' for name, value in values.items() if value != best]
  if not worse:
    return f"All rows reach {best}."
  if len(worse) <= len(rows) / 2:
    verb = "is" if len(worse) == 1 else "are"
    return f"The best rows reach {best}; {text.listed(worse)} {verb} lower."
  lowest = min(rows, key=lambda row: row[metric])["row"]
  names = text.listed([f'"{name}"' for name, value in values.items() if value == best])
  return (
    f'The best quality is {best} ({names}), the worst {values[lowest]} ("{lowest}").'
  )


def regression(results: Results) -> str:
  """GP regression with the exact posterior as the ceiling."""
  kernels = {row.title: row for row in runs.ROWS if "kernel" in row.options}
  lines, paths, sentences = [], [], []
  ceilings: dict[str, str] = {}
  for model in MODELS:
    by_kernel = {
      title: results.runs(row.options, model) for title, row in kernels.items()
    }
    same_model = [file for files in by_kernel.values() for file in files]
    if not same_model:
      continue
    paths += [file.path for file in same_model]
    config = same_model[0].config
    functions = f"{config['num_steps'] * config['batch_size']:,}"
    tokens = f"{same_model[0].content['tokens_fraction_largest']:.1%}"
    cells = [runs.cell(files, "log_likelihood") for files in by_kernel.values()]
    lines.append([TITLES[model], *cells, tokens, functions])
    if model == "tca":
      cells = [runs.cell(files, "full_log_likelihood") for files in by_kernel.values()]
      lines.append([TITLES["tca_full"], *cells, "100.0%", functions])
      sentences += [_gap(title, files) for title, files in by_kernel.items()]
    for title, files in by_kernel.items():
      ceilings[title] = ceilings.get(title) or runs.cell(
        files, "ceiling_log_likelihood"
      )
  if not lines:
    return ""
  cells = [ceilings[title] for title in kernels]
  lines.append(["exact posterior, true hyper-parameters", *cells, "", ""])
  header = ["model", *kernels, "tokens read of the largest context"]
  return text.section(
    "GP regression with the exact posterior",
    text.paragraph(
      "The last row is the log-likelihood of the same targets under the exact posterior"
      " of the process that generated them. No model can exceed it on average.",
      *sentences,
    ),
    tables.markdown([*header, "training functions"], lines),
    text.image(
      results.folder,
      "functions.png",
      "Two functions predicted, and the nodes that queries read",
    ),
    text.links(paths),
  )


def _gap(title: str, files: list[runs.File]) -> str:
  """Splits TCA's distance to the exact posterior into walk and model."""
  metrics = ("log_likelihood", "full_log_likelihood", "ceiling_log_likelihood")
  walk, full, ceiling = (runs.mean(files, metric) for metric in metrics)
  if walk is None or full is None or ceiling is None:
    return ""
  return (
    f"{title}: {TITLES['tca']} is {ceiling - walk:.3f} below the exact posterior;"
    f" {TITLES['tca_full']} is {ceiling - full:.3f} below it, so reading"
    f" along one path costs {full - walk:.3f}."
  )


def beam_widths(results: Results) -> str:
  """Quality and time against the number of paths that a query follows."""
  files = results.with_rows("num_paths")
  lines, shares, worse = [], [], []
  for file in files:
    title, rows = runs.title(file), file.content["rows"]
    metric = "accuracy" if "accuracy" in rows[0] else "log_likelihood"
    batches = file.config["eval_batches"]
    for row in rows:
      lines.append(
        [
          title,
          str(row["num_paths"]),
          tables.quality(row),
          f"{row['tokens_fraction']:.1%}",
          f"{row['tokens_fraction_largest']:.1%}",
          f"{row['us_per_query']:.1f}",
          f"{batches:,}" if batches else "all",
        ]
      )
    one, two, leaves = rows[0][metric], rows[1][metric], rows[-1][metric]
    if two < one:
      worse.append(title)
    elif leaves > one:
      shares.append(f"{(two - one) / (leaves - one):.0%} on {title}")
  if not lines:
    return ""
  header = ["data set", "paths", "quality", "tokens read", "of the largest context"]
  return text.section(
    "Beam widths",
    text.paragraph(
      "In evaluation, a query can follow several paths (`--num_paths`, a beam search over"
      " the policy). It then reads more and smaller nodes, which still cover each token"
      " once. The row with all paths reads all leaves.",
      "A second path closes part of the gap between one path and all leaves:"
      f" {'; '.join(shares)}."
      if shares
      else "",
      f"On {text.listed(worse)}, two paths are worse than one: the model was trained"
      " with one path and has not seen the sets of nodes that two paths read."
      if worse
      else "",
      "Times per query are of these small contexts, where full attention is fast, and"
      " were measured on a machine that also ran other programs.",
    ),
    tables.markdown([*header, "us per query", "evaluation batches"], lines),
    text.links(file.path for file in files),
  )


def other_runs(results: Results) -> str:
  """Evaluations that no row of the main results selects."""
  known = [
    file.path
    for row in runs.ROWS
    for model in MODELS
    for count in {0, *results.latents(row.options)}
    for file in results.runs(row.options, model, count)
  ]
  others = [file for file in results.evaluations() if file.path not in known]
  lines = []
  for file in others:
    config = file.config
    data = config.get("dataset") or config.get("kernel") or _task(config)
    lines.append(
      [
        text.link(file.path, file.path.removesuffix(".json")),
        data,
        TITLES[config["model"]],
        f"{config['num_steps']:,}",
        f"{config['learning_rate']:g}",
        tables.quality(file.content),
        tables.quality(file.content, "full_"),
      ]
    )
  if not lines:
    return ""
  header = ["run", "data", "model", "steps", "peak learning rate", "quality"]
  return text.section(
    "Other training settings",
    text.paragraph(
      "These runs have another number of steps, another learning rate or other options"
      " than those of the main results. Their JSON files contain all options."
    ),
    tables.markdown([*header, TITLES["tca_full"]], lines),
  )
