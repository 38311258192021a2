"""Figure of the regret and the time of optimisers against the number of observations."""

from collections.abc import Mapping
from collections.abc import Sequence
import statistics
import typing

from etils import epath
from matplotlib.figure import Figure

from experiments.figures import style

_LINE_STYLES = {"ei": "-", "thompson": "--"}
_SMALLEST = 1e-5  # regret at which the axis ends


def plot_regret(
  rows: Sequence[Mapping[str, typing.Any]],
  functions: Mapping[str, str],
  methods: Mapping[str, str],
  path: epath.PathLike,
) -> None:
  """Draws a column for each function: regret above, and seconds of a step below.

  Args:
    rows: the rows of `experiments.bayesopt`. A line is the median of the seeds.
    functions: the title of each function, by its name.
    methods: the title of each method, by its name. The first is drawn in red.
    path: the PNG file to write.
  """
  drawn = [name for name in functions if any(row["function"] == name for row in rows)]
  figure = Figure(figsize=(4.6 * len(drawn) + 2, 6.4), layout="constrained")
  grid = figure.subplots(2, len(drawn), sharex=True, squeeze=False)
  for name, axes in zip(drawn, grid.T, strict=True):
    colours = dict(zip(methods, [style.RED, *style.OTHERS], strict=False))
    for method, title in methods.items():
      for line, line_style in {"": "-", **_LINE_STYLES}.items():
        curves = [
          entry
          for row in rows
          if (row["function"], row["method"]) == (name, method)
          and row.get("acquisition", "") == line
          for entry in row["curve"]
        ]
        for panel, key in zip(axes, ("regret", "step_seconds"), strict=True):
          sizes = sorted({x["num_observations"] for x in curves if key in x})
          medians = [
            statistics.median(
              x[key] for x in curves if x["num_observations"] == size and key in x
            )
            for size in sizes
          ]
          if sizes:
            panel.plot(
              sizes,
              [max(x, _SMALLEST) for x in medians],
              marker=".",
              color=colours[method],
              linestyle=line_style,
              label=f"{title}, {line}" if line else title,
            )
    axes[0].set(title=functions[name], ylabel="regret")
    axes[1].set(xlabel="observations", ylabel="seconds of a step")
    for panel in axes:
      panel.set(xscale="log", yscale="log")
      panel.grid(alpha=0.3)
  figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right center")
  style.save(figure, path)
