"""Writes docs/results.md and docs/benchmarks.md, and the figures that follow from JSON.

  python -m experiments.report

reads the JSON files under results/. It also draws the learning curves of the ablations,
the scaling with the context size and the times of the benchmarks again. A second run
changes no file.
"""

from absl import app
from absl import flags
from etils import epath

from experiments.common import workdir
from experiments.common.systems import TITLES
from experiments.figures import curves
from experiments.figures import read_times
from experiments.figures import scaling
from experiments.report_pages import benchmarks_page
from experiments.report_pages import large_contexts
from experiments.report_pages import ratios
from experiments.report_pages import results_page
from experiments.report_pages import runs
from experiments.report_pages import studies

# Curves of a scaling figure: the models first, then TCA's other ways to read.
_SCALING = {name: TITLES[name] for name in ("relative_tca", *runs.MODELS, *TITLES)}


def pages(results: runs.Results) -> dict[str, str]:
  """Makes the text of the pages, by their paths in the clone."""
  return {
    "docs/results.md": results_page.make(results),
    "docs/benchmarks.md": benchmarks_page.make(results),
  }


def draw(results: runs.Results) -> list[epath.Path]:
  """Draws the figures that follow from JSON, and returns their paths."""
  figures = []
  for file in results.under("ablation/"):
    figures.append((results.folder / file.path).with_suffix(".png"))
    curves.plot_curves(studies.rows_of_grid(file), figures[-1])
  for name, files in large_contexts.files_of(results).items():
    figures.append(results.folder / f"scaling_{name}.png")
    rows, unit = large_contexts.rows_of(files), large_contexts.unit_of(files)
    scaling.plot_scaling(rows, _SCALING, unit, figures[-1])
  for name in ("retrieval", "retrieval_gpu"):
    rows = benchmarks_page.rows_of(results, name)
    if rows:
      counts = sorted({row["num_queries"] for row in rows})
      crossovers = {m: ratios.crossover(rows, m) for m in counts}
      figures.append(results.folder / "benchmarks" / f"{name}.png")
      read_times.plot_read_times(rows, crossovers, figures[-1])
  return figures


def write(root: epath.PathLike) -> list[epath.Path]:
  """Draws the figures and writes the pages of a clone, and returns their paths."""
  root = epath.Path(root)
  results = runs.Results(root / "results")
  written = draw(results)  # first, because a page embeds the figures that exist
  for path, text in pages(results).items():
    written.append(root / path)
    workdir.replace_text(written[-1], text)
  return written


def main(argv: list[str]) -> None:
  """Writes the pages and figures of the clone that the flags name."""
  del argv
  for path in write(flags.FLAGS.root):
    print(path)


if __name__ == "__main__":
  flags.DEFINE_string(
    "root", ".", "Root folder of a clone; it contains docs/ and results/."
  )
  app.run(main)
