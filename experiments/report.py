"""The README's tables, and the figures that JSON alone can draw.

  python -m experiments.report

reads the JSON files under results/, puts the tables into README.md, each between its
two marks, and draws the learning curves, the scaling and the benchmarks' times anew.
"""

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import json
import re
import statistics
import typing

from absl import app
from absl import flags
from etils import epath

from experiments import ablation
from experiments.common import config as config_lib
from experiments.common import evaluate
from experiments.common import measure
from experiments.common import plots
from experiments.common import ratios
from experiments.data import terrain

_ROOT = flags.DEFINE_string("root", ".", "A clone: holds README.md and results/.")

_SIZES = [2**i for i in (7, 10, 14, 17, 20)]  # of the contexts that the README tells
_ORDER = ("ca", "perceiver", "tca")  # of the systems in tables
_OTHER_RUNS = re.compile(r"_seed\d+")
_SYSTEMS = config_lib.NAMES | {"tca_full": "ReTreever-Full"}
# Of evaluations on whole maps.
_SCALED = config_lib.NAMES | {
  "tca_2": "TCA, 2 paths",
  "tca_4": "TCA, 4 paths",
  "tca_full": _SYSTEMS["tca_full"],
}
_LEVELS = "|".join(f"within {level} %" for level in evaluate.INTERVALS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """A task of the table.

  Attributes:
    task: its name.
    stem: of its files in results/, where {} stands for the system.
    metric: "accuracy", told in per cent, or "log_likelihood".
    published: the paper's figures, by system.
    published_tokens: per cent that the paper's TCA reads, at the largest context.
  """

  task: str
  stem: str
  metric: typing.Literal["accuracy", "log_likelihood"]
  published: dict[str, str] = dataclasses.field(default_factory=dict)
  published_tokens: str = ""


def _published(ca: str, perceiver: str, tca: str) -> dict[str, str]:
  return dict(ca=ca, perceiver=perceiver, tca=tca)


ROWS = (
  Row(task="Copy, T = 64", stem="demo_copy_{}", metric="accuracy"),
  Row(
    task="Copy, T = 256",
    stem="copy_t256_{}",
    metric="accuracy",
    published=_published("100.0", "15.2", "100.0"),
    published_tokens="6.3",
  ),
  Row(
    task="Copy, T = 512",
    stem="copy_t512_{}",
    metric="accuracy",
    published=_published("100.0", "13.4", "100.0"),
    published_tokens="3.5",
  ),
  Row(
    task="Copy, T = 1024",
    stem="copy_t1024_{}",
    metric="accuracy",
    published=_published("99.9", "11.6", "99.6"),
    published_tokens="2.0",
  ),
  Row(
    task="GP, RBF",
    stem="gp_{}",
    metric="log_likelihood",
    published=_published("1.35", "1.06", "1.25"),
    published_tokens="15",
  ),
  Row(
    task="GP, Matern-5/2",
    stem="gp_{}_matern52",
    metric="log_likelihood",
    published=_published("0.91", "0.58", "0.81"),
    published_tokens="15",
  ),
  Row(
    task="CelebA32",
    stem="image_celeba_{}",
    metric="log_likelihood",
    published=_published("3.88", "3.20", "3.52"),
    published_tokens="4.6",
  ),
  Row(task="Photo patches, 32x32 *", stem="image_photos_{}", metric="log_likelihood"),
  Row(
    task="EMNIST, seen",
    stem="image_emnist_{}",
    metric="log_likelihood",
    published=_published("1.41", "1.25", "1.30"),
    published_tokens="4.6",
  ),
  Row(
    task="EMNIST, unseen",
    stem="image_emnist_{}_unseen",
    metric="log_likelihood",
    published=_published("1.07", "0.85", "0.90"),
    published_tokens="4.6",
  ),
  Row(task="MNIST, 0-4 seen *", stem="image_{}", metric="log_likelihood"),
  Row(task="MNIST, 5-9 unseen *", stem="image_{}_unseen", metric="log_likelihood"),
  Row(
    task="Human Activity",
    stem="activity_uci_{}",
    metric="accuracy",
    published=_published("89.1", "87.6", "88.9"),
    published_tokens="14",
  ),
  Row(
    task="Human Activity, one-person excerpt *",
    stem="activity_excerpt_{}",
    metric="accuracy",
  ),
  Row(
    task="Human Activity, one-person excerpt, by time *",
    stem="activity_excerpt_{}_time",
    metric="accuracy",
  ),
  Row(task="Smart watch, by subject *", stem="activity_watch_{}", metric="accuracy"),
  Row(task="Elevation, windows *", stem="terrain_{}", metric="log_likelihood"),
  Row(
    task="Elevation of airports, windows *",
    stem="terrain_airports_{}",
    metric="log_likelihood",
  ),
)


def load(results: epath.Path, stem: str) -> list[dict[str, typing.Any]]:
  """The results of a run and of its other seeds, in the order of their names."""
  paths = sorted(results.glob(f"{stem}*.json"), key=lambda path: path.stem)
  return [
    json.loads(path.read_text())
    for path in paths
    if path.stem == stem or _OTHER_RUNS.fullmatch(path.stem.removeprefix(stem))
  ]


def cell(runs: list[dict[str, typing.Any]], metric: str) -> str:
  """The mean of a metric over runs, and its standard deviation if they are several.

  Log-likelihoods are told as they are, shares in per cent.

  >>> cell([{"accuracy": 0.5}, {"accuracy": 0.7}], "accuracy")
  '60.00 ± 14.14'
  """
  scale, digits = (1, 3) if metric.endswith("log_likelihood") else (100, 2)
  values = [scale * run[metric] for run in runs if metric in run]
  if not values:
    return ""
  text = f"{statistics.mean(values):.{digits}f}"
  if len(values) > 1:
    text += f" ± {statistics.stdev(values):.{digits}f}"
  return text


def markdown(header: str, rows: Iterable[Iterable[str]]) -> str:
  """A table in Markdown, of a header whose cells are split by "|".

  >>> print(markdown("a|b", [["1", "2"]]))
  | a | b |
  | --- | --- |
  | 1 | 2 |
  """
  names = header.split("|")
  lines = [names, ["---"] * len(names), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def all_results(results: epath.Path) -> str:
  """Each task's systems, ours and the paper's, of what was run or published."""
  lines = []
  for row in ROWS:
    runs = {s: load(results, row.stem.format(s)) for s in config_lib.MODELS}
    if not row.published and not any(runs.values()):
      continue
    steps = {run["step"] for own in runs.values() for run in own}
    seeds = {len(own) for own in runs.values() if own}
    cells = [row.task]
    for system in _ORDER:
      cells += [cell(runs[system], row.metric), row.published.get(system, "")]
    tokens = [f"{100 * run['tokens_fraction_largest']:.1f}" for run in runs["tca"][:1]]
    cells += [cell(runs["tca"], f"full_{row.metric}"), *(tokens or [""])]
    cells += [row.published_tokens]
    cells += ["; ".join(f"{x:,}" for x in sorted(steps))]
    cells += ["; ".join(map(str, sorted(seeds, reverse=True)))]
    lines.append(cells)
  return markdown(
    "task|CA|paper|PIO|paper|TCA|paper|ReTreever-Full|tokens %|paper|steps|seeds",
    lines,
  )


def latents(results: epath.Path) -> str:
  """Perceiver IO with more latents than TCA reads nodes, beside the other systems.

  A run with 32 latents is kept as, for instance, gp_perceiver_l32.json.
  """
  lines = []
  for row in ROWS:
    stem = row.stem.format("perceiver")
    wider = [
      path.stem
      for path in results.glob(f"{stem}_l*.json")
      if re.fullmatch(r"_l\d+", path.stem.removeprefix(stem))
    ]
    runs = [load(results, name) for name in ([stem, *wider] if wider else [])]
    others = [
      cell(load(results, row.stem.format(x)), row.metric) for x in ("tca", "ca")
    ]
    for own in sorted(
      filter(None, runs), key=lambda x: x[0]["tokens_fraction_largest"]
    ):
      share = f"{100 * own[0]['tokens_fraction_largest']:.1f}"
      steps = f"{own[0]['step']:,}"
      lines.append([row.task, share, cell(own, row.metric), *others, steps])
  return markdown("task|latents, % of the tokens|PIO|TCA|CA|steps", lines)


def calibration(results: epath.Path) -> str:
  """How far predictions can be trusted, of every system that was run."""
  lines = []
  for row in ROWS:
    for system in _ORDER:
      runs = load(results, row.stem.format(system))
      if not runs:
        continue
      shares = [cell(runs, f"coverage_{level}") for level in evaluate.INTERVALS]
      shares.append(cell(runs, "calibration_error"))
      if any(shares):
        lines.append([row.task, _SYSTEMS[system], *shares])
  return markdown(f"task|system|{_LEVELS}|calibration error, %", lines)


def _scaling(results: epath.Path, dataset: str) -> list[dict[str, typing.Any]]:
  """What each system's evaluation on the whole of a map wrote."""
  place = "terrain" if dataset == "fault" else f"terrain_{dataset}"
  paths = (results / f"scaling_{place}_{model}.json" for model in _ORDER)
  return [json.loads(path.read_text()) for path in paths if path.exists()]


def _scaling_rows(results: epath.Path, dataset: str) -> list[dict[str, typing.Any]]:
  """The rows of all systems, by the size of their contexts."""
  rows = [row for content in _scaling(results, dataset) for row in content["rows"]]
  return sorted(rows, key=lambda row: row["num_context"])


def scaling(results: epath.Path) -> str:
  """Elevation of whole maps against the number of points given, and of a fine grid."""
  lines, grids = [], []
  for dataset in terrain.DATASETS:
    for row in _scaling_rows(results, dataset):
      cells = [dataset, f"{row['num_context']:,}", _SCALED[row["system"]]]
      cells += [f"{row['log_likelihood']:.3f}", f"{row['rmse_metres']:.1f}"]
      cells += [f"{row['interpolation_rmse_metres']:.1f}"]
      cells += [f"{100 * row[f'coverage_{level}']:.1f}" for level in evaluate.INTERVALS]
      cells += [f"{row['tokens_read']:,.1f}", f"{row['us_per_query']:.1f}"]
      lines.append([*cells, f"{row['tree_seconds'] + row['index_seconds']:.2f}"])
    for grid in (content["grid"] for content in _scaling(results, dataset)):
      if grid:
        parts = ("tree", "index_compile", "index", "read_compile", "read")
        seconds = [f"{grid[f'{part}_seconds']:.1f}" for part in parts]
        cells = [dataset, f"{grid['num_context']:,}", f"{grid['num_queries']:,}"]
        grids.append([*cells, *seconds, f"{grid['seconds']:.1f}"])
  quality = "context|system|log-likelihood|RMSE, m|interpolation's"
  rows = markdown(f"map|{quality}|{_LEVELS}|tokens read|us/query|build, s", lines)
  steps = "tree|compile|index|compile|read|all, s"
  return f"{rows}\n\n{markdown(f'map|context|places|{steps}', grids)}"


def _benchmark(results: epath.Path, name: str) -> list[ratios.Row]:
  path = results / "benchmarks" / f"{name}.json"
  return json.loads(path.read_text()) if path.exists() else []


def _rounded(x: float | None) -> str:
  if x is None:
    return ""
  return f"{x:,.0f}" if x >= 1000 else f"{x:.1f}"


def reading(results: epath.Path) -> str:
  """Microseconds per query, by benchmarks.retrieval, and who is ahead from where."""
  rows, lines, ahead = _benchmark(results, "retrieval"), [], []
  for m in sorted({row["num_queries"] for row in rows}):
    own = [row for row in rows if row["num_queries"] == m]
    full, tca = ratios.fastest_full(own), ratios.times(own, "tca")
    others = [
      ratios.times(own, name) for name in ("perceiver", "faiss_hnsw", "gather_floor")
    ]
    for n in _SIZES:
      if n in tca:
        ratio = f"{full[n] / tca[n]:.1f}x" if n in full else ""
        cells = [f"{m:,}", f"2^{n.bit_length() - 1}", _rounded(tca[n])]
        cells += [_rounded(full.get(n)), ratio]
        lines.append([*cells, *(_rounded(other.get(n)) for other in others)])
    crossover = ratios.crossover(own, m)
    grows = f"{tca[2**20] / tca[2**10]:.1f}x" if {2**10, 2**20} <= set(tca) else ""
    ahead.append([f"{m:,}", f"{crossover:,}" if crossover else "", grows])
  times = markdown(
    "queries|tokens|TCA|full attention|ratio|Perceiver IO|HNSW|floor", lines
  )
  growth = markdown("queries|TCA is ahead from, tokens|TCA, 2^20 of 2^10", ahead)
  return f"{times}\n\n{growth}"


def building(results: epath.Path) -> str:
  """Milliseconds per context, by benchmarks.build."""
  rows = _benchmark(results, "build")
  lines = []
  for n in sorted({row["num_tokens"] for row in rows}):
    own = {row["system"]: row for row in rows if row["num_tokens"] == n}
    names = ("order_host", "order_traced", "order_ckdtree", "order_jaxkd")
    names += ("aggregate_and_cache", "matrix_products")
    pays = own["aggregate_and_cache"].get("pays_after_queries")
    cells = [f"2^{n.bit_length() - 1}"]
    cells += [_rounded(own[name]["ms"]) if name in own else "" for name in names]
    lines.append([*cells, f"{pays:,.0f}" if pays else ""])
  return markdown(
    "tokens|order, host|order, traced|cKDTree|jaxkd|aggregate, cache|products alone"
    "|pays after",
    lines,
  )


def training_steps(results: epath.Path) -> str:
  """Milliseconds per training step, by benchmarks.training."""
  rows = _benchmark(results, "training")
  lines = []
  for task in dict.fromkeys(row["task"] for row in rows):
    ms = {row["system"]: row["ms"] for row in rows if row["task"] == task}
    names = ("tca_shared", "tca", "ca", "perceiver")
    cells = [_rounded(ms[name]) for name in names]
    cells += [f"{ms[name] / ms['ca']:.2f}x" for name in names[:2]]
    lines.append([task, *cells])
  return markdown(
    "task|TCA|TCA, own policy|Cross Attention|Perceiver IO|TCA / CA|own policy / CA",
    lines,
  )


def copying(results: epath.Path) -> str:
  """The copy task by length: accuracy of TCA, and what training took."""
  lines = []
  for row in ROWS:
    runs = load(results, row.stem.format("tca"))
    if not row.stem.startswith(("copy", "demo_copy")) or not runs:
      continue
    config = runs[0]["config"]
    lines.append(
      [
        f"{config['sequence_length']}",
        ", ".join(f"{run['accuracy']:.2%}" for run in runs),
        f"{runs[0]['tokens_fraction_largest']:.1%}",
        f"{config['num_steps'] * config['batch_size']:,}",
        ", ".join(f"{run['train_seconds'] / 60:.1f}" for run in runs),
      ]
    )
  return markdown("T|accuracy, by seed|tokens read|sequences trained on|minutes", lines)


def regression(results: epath.Path) -> str:
  """GP regression: all systems, and what none can surpass."""
  lines, ceiling = [], ["", ""]
  for system in _ORDER:
    kernels = [load(results, f"gp_{system}{name}") for name in ("", "_matern52")]
    if not any(kernels):
      continue
    run = next(run for runs in kernels for run in runs)
    config, tokens = run["config"], f"{run['tokens_fraction_largest']:.1%}"
    functions = f"{config['num_steps'] * config['batch_size']:,}"
    cells = [cell(runs, "log_likelihood") for runs in kernels]
    lines.append([_SYSTEMS[system], *cells, tokens, functions])
    if system == "tca":
      cells = [cell(runs, "full_log_likelihood") for runs in kernels]
      lines.append([_SYSTEMS["tca_full"], *cells, "100.0%", functions])
    ceiling = [cell(runs, "ceiling_log_likelihood") for runs in kernels]
  lines.append(["exact posterior, true hyper-parameters", *ceiling, "", ""])
  return markdown(
    "system|RBF|Matern-5/2|tokens read, at 46 tokens|functions trained on", lines
  )


def ablations(results: epath.Path) -> str:
  """The rows of all grids that experiments.ablation ran."""
  lines = [
    [path.stem, *ablation.cells(row)]
    for path in sorted((results / "ablation").glob("*.json"))
    for row in json.loads(path.read_text())
  ]
  return markdown("|".join(["grid", *ablation.HEADER]), lines)


def path_counts(results: epath.Path) -> str:
  """Quality and time against the number of paths followed, from --mode=paths."""
  lines = []
  for path in sorted(results.glob("paths_*.json")):
    content = json.loads(path.read_text())
    for row in content["rows"]:
      name = path.stem.removeprefix("paths_").replace("_", " ")
      cells = [name, str(row["num_paths"]), measure.quality(row)]
      cells += [f"{row['tokens_fraction']:.1%}"]
      cells += [f"{row['tokens_fraction_largest']:.1%}", f"{row['us_per_query']:.1f}"]
      lines.append(cells)
  return markdown(
    "run|paths|quality|tokens read|at the largest context|us/query", lines
  )


# By the name that its marks in the README have.
TABLES: dict[str, Callable[[epath.Path], str]] = {
  "results": all_results,
  "latents": latents,
  "calibration": calibration,
  "scaling": scaling,
  "reading": reading,
  "building": building,
  "training steps": training_steps,
  "copying": copying,
  "ablations": ablations,
  "regression": regression,
  "paths": path_counts,
}


def with_tables(readme: str, texts: dict[str, str]) -> str:
  """A README with tables between their marks.

  Raises:
    ValueError: if it does not hold the two marks of a table once each, in order.
  """
  for name, text in texts.items():
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = readme.partition(begin)
    _, _, after = rest.partition(end)
    if readme.count(begin) != 1 or readme.count(end) != 1 or end not in rest:
      raise ValueError(f"README.md must hold {begin} and {end} once each, in order")
    readme = f"{before}{begin}\n{text}\n{end}{after}"
  return readme


def draw(results: epath.Path) -> list[epath.Path]:
  """Draws the figures that follow from JSON alone, and returns where they are."""
  figures = []
  for path in sorted((results / "ablation").glob("*.json")):
    figures.append(path.with_suffix(".png"))
    plots.plot_curves(json.loads(path.read_text()), figures[-1])
  for dataset in terrain.DATASETS:
    rows = _scaling_rows(results, dataset)
    if rows:
      figures.append(results / f"scaling_{dataset}.png")
      plots.plot_scaling(rows, _SCALED, figures[-1])
  rows = _benchmark(results, "retrieval")
  if rows:
    counts = sorted({row["num_queries"] for row in rows})
    crossovers = {m: ratios.crossover(rows, m) for m in counts}
    figures.append(results / "benchmarks" / "retrieval.png")
    plots.plot_read_times(rows, crossovers, figures[-1])
  return figures


def main(argv: list[str]) -> None:
  """Rebuilds the README's tables and the figures."""
  del argv
  root = epath.Path(_ROOT.value)
  texts = {name: make(root / "results") for name, make in TABLES.items()}
  print("\n\n".join(texts.values()))
  readme = root / "README.md"
  config_lib.replace_text(readme, with_tables(readme.read_text(), texts))
  for figure in draw(root / "results"):
    print(figure)


if __name__ == "__main__":
  app.run(main)
