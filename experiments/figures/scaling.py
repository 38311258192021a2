"""Figure of quality, calibration and time against the size of the context."""

from etils import epath
from matplotlib.figure import Figure

from experiments.figures import style

# Line styles of Tree Cross Attention with beam widths 1, 2 and 4.
_LINE_STYLES = {"tca": "-", "tca_2": "--", "tca_4": "-."}
_PANELS = {
  "log_likelihood": "log-likelihood",
  "rmse_metres": "RMSE, m",
  "coverage_90": "share within 90 % intervals",
  "us_per_query": "us per query",
}


def plot_scaling(
  rows: list[dict], titles: dict[str, str], path: epath.PathLike
) -> None:
  """Draws scores of several methods on an elevation map against context size.

  Args:
    rows: a row per method and context size. The keys "system" (the name of a method),
      "num_context", "log_likelihood", "rmse_metres", "coverage_90", "us_per_query" and
      "interpolation_rmse_metres" are used.
    titles: the title of each method, by its name, in the order of the legend.
    path: the PNG file to write.
  """
  figure = Figure(figsize=(18, 4), layout="constrained")
  grid = figure.subplots(1, len(_PANELS))
  for axes, (key, label) in zip(grid, _PANELS.items(), strict=True):
    for i, (name, title) in enumerate(titles.items()):
      selected = [row for row in rows if row["system"] == name]
      if not selected:
        continue
      line_style = _LINE_STYLES.get(name)
      axes.plot(
        [row["num_context"] for row in selected],
        [row[key] for row in selected],
        marker=".",
        color=style.RED if line_style else style.OTHERS[i],
        linestyle=line_style or "-",
        linewidth=2.5 if name == "tca" else 1.2,
        label=title,
      )
    axes.set(xscale="log", xlabel="context points", ylabel=label)
    axes.grid(alpha=0.3)
  linear = {row["num_context"]: row["interpolation_rmse_metres"] for row in rows}
  grid[1].plot(*zip(*linear.items(), strict=True), ":", color="0.5")
  grid[1].set_title("dotted: linear interpolation", fontsize="small")
  grid[2].axhline(0.9, color="0.5", linestyle=":")
  grid[3].set_yscale("log")
  grid[0].legend(fontsize="small")
  style.save(figure, path)
