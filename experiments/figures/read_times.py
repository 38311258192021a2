"""Figure of the time per query against the size of the context."""

from etils import epath
from matplotlib.figure import Figure

from experiments.figures import style


def plot_read_times(
  rows: list[dict], crossovers: dict[int, int | None], path: epath.PathLike
) -> None:
  """Draws time per query against context size, a panel per number of queries.

  Args:
    rows: the rows of benchmarks.retrieval. The keys "num_queries", "num_tokens",
      "system" (the name of a method) and "us_per_query" are used.
    crossovers: by the number of queries, the smallest number of context tokens from
      which Tree Cross Attention is faster than full attention; None if there is none.
    path: the PNG file to write.
  """
  counts = sorted({row["num_queries"] for row in rows})
  figure = Figure(figsize=(5 * len(counts), 4.2), layout="constrained")
  grid = figure.subplots(1, len(counts), squeeze=False)
  names = list(dict.fromkeys(row["system"] for row in rows))
  for axes, count in zip(grid[0], counts, strict=True):
    for i, name in enumerate(names):
      selected = [r for r in rows if r["num_queries"] == count and r["system"] == name]
      if selected:
        axes.loglog(
          [row["num_tokens"] for row in selected],
          [row["us_per_query"] for row in selected],
          "--" if name == "gather_floor" else "-",
          base=2,
          marker=".",
          color=style.RED if name == "tca" else style.OTHERS[i % len(style.OTHERS)],
          linewidth=2.5 if name == "tca" else 1,
          label=name,
        )
    queries = "1 query" if count == 1 else f"{count:,} queries"
    axes.set(title=queries, xlabel="context tokens", ylabel="us per query")
    axes.set_yscale("log", base=10)
    crossover = crossovers[count]
    if crossover:
      axes.axvline(crossover, color=style.RED, linestyle=":")
      axes.set_title(f"{queries}: TCA faster from {crossover:,} tokens")
    axes.grid(alpha=0.3)
  grid[0][0].legend(fontsize="small")
  style.save(figure, path)
