"""The table of all results beside the paper's, and the figures that JSON can draw.

  python -m experiments.report

reads the JSON files under results/, puts the table into README.md and draws the
learning curves and the benchmarks' times anew.
"""

import dataclasses
import json
import re
import statistics
import typing

from absl import app
from absl import flags
from etils import epath

from experiments.common import ratios
from experiments.common import config as config_lib
from experiments.common import plots

_ROOT = flags.DEFINE_string("root", ".", "A clone: holds README.md and results/.")

_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"
_OTHER_RUNS = re.compile(r"_seed\d+")


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
  Row(task="Smart watch, by subject *", stem="activity_watch_{}", metric="accuracy"),
  Row(task="Terrain *", stem="terrain_{}", metric="log_likelihood"),
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

  >>> cell([{"accuracy": 0.5}, {"accuracy": 0.7}], "accuracy")
  '60.00 ± 14.14'
  """
  scale, digits = (100, 2) if metric.endswith("accuracy") else (1, 3)
  values = [scale * run[metric] for run in runs if metric in run]
  if not values:
    return ""
  text = f"{statistics.mean(values):.{digits}f}"
  if len(values) > 1:
    text += f" ± {statistics.stdev(values):.{digits}f}"
  return text


def table(results: epath.Path) -> str:
  """The table in Markdown: each task's systems, ours and the paper's."""
  header = "task|CA|paper|PIO|paper|TCA|paper|TCA, all leaves|tokens %|paper|steps|seeds"
  lines = [header, "|".join(["---"] * len(header.split("|")))]
  for row in ROWS:
    runs = {s: load(results, row.stem.format(s)) for s in config_lib.MODELS}
    steps = {run["step"] for own in runs.values() for run in own}
    seeds = {len(own) for own in runs.values() if own}
    cells = [row.task]
    for system in ("ca", "perceiver", "tca"):
      cells += [cell(runs[system], row.metric), row.published.get(system, "")]
    tokens = [f"{100 * run['tokens_fraction_largest']:.1f}" for run in runs["tca"][:1]]
    cells += [cell(runs["tca"], f"full_{row.metric}"), *(tokens or [""])]
    cells += [row.published_tokens]
    cells += ["; ".join(f"{x:,}" for x in sorted(steps))]
    cells += ["; ".join(map(str, sorted(seeds, reverse=True)))]
    lines.append("|".join(cells))
  return "\n".join(f"| {' | '.join(line.split('|'))} |" for line in lines)


def with_table(readme: str, text: str) -> str:
  """A README with the table between its two marks.

  Raises:
    ValueError: if it does not hold the two marks once each, in order.
  """
  before, found, rest = readme.partition(_BEGIN)
  _, closed, after = rest.partition(_END)
  if not found or not closed or _BEGIN in rest or _END in after:
    raise ValueError(f"README.md must hold {_BEGIN} and {_END} once each, in order")
  return f"{before}{_BEGIN}\n{text}\n{_END}{after}"


def draw(results: epath.Path) -> list[epath.Path]:
  """Draws the figures that follow from JSON alone, and returns where they are."""
  figures = []
  for path in sorted((results / "ablation").glob("*.json")):
    figures.append(path.with_suffix(".png"))
    plots.plot_curves(json.loads(path.read_text()), figures[-1])
  path = results / "benchmarks" / "retrieval.json"
  if path.exists():
    rows = json.loads(path.read_text())
    counts = sorted({row["num_queries"] for row in rows})
    figures.append(path.with_suffix(".png"))
    plots.plot_read_times(
      rows, {m: ratios.crossover(rows, m) for m in counts}, figures[-1]
    )
  return figures


def main(argv: list[str]) -> None:
  """Rebuilds the README's table and the figures."""
  del argv
  root = epath.Path(_ROOT.value)
  text = table(root / "results")
  print(text)
  readme = root / "README.md"
  config_lib.replace_text(readme, with_table(readme.read_text(), text))
  for figure in draw(root / "results"):
    print(figure)


if __name__ == "__main__":
  app.run(main)
