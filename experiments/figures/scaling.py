"""Figure of quality, calibration and time against the size of the context."""

from etils import epath
from matplotlib.figure import Figure

from experiments.figures import style

# Line styles of Tree Cross Attention, and with beam widths 2 and 4.
_LINE_STYLES = {"relative_tca": "-", "tca": ":", "tca_2": "--", "tca_4": "-."}
_PANELS = {
  "log_likelihood": "log-likelihood",
  "rmse": "RMSE, {unit}",
  "coverage_90": "share within 90 % intervals",
  "us_per_query": "us per query",
}


def plot_scaling(
  rows: list[dict], titles: dict[str, str], unit: str, path: epath.PathLike
) -> None:
  """Draws scores of several methods on a map against context size.

  Args:
    rows: a row per method and context size. The keys "system" (the name of a method),
      "num_context", "log_likelihood", "rmse", "coverage_90" and "us_per_query"
      are used; linear interpolation has no "log_likelihood" and no "coverage_90".
    titles: the title of each method, by its name, in the order of the legend.
    unit: the unit of the map's values, such as "m".
    path: the PNG file to write.
  """
  figure = Figure(figsize=(18, 4), layout="constrained")
  grid = figure.subplots(1, len(_PANELS))
  for axes, (key, label) in zip(grid, _PANELS.items(), strict=True):
    others = iter(style.OTHERS)
    for name, title in titles.items():
      line_style = _LINE_STYLES.get(name)
      color = style.RED if line_style else next(others)
      selected = [row for row in rows if row["system"] == name and key in row]
      if not selected:
        continue
      axes.plot(
        [row["num_context"] for row in selected],
        [row[key] for row in selected],
        marker=".",
        color=color,
        linestyle=line_style or "-",
        linewidth=2.5 if name == "relative_tca" else 1.2,
        label=title,
      )
    axes.set(xscale="log", xlabel="context points", ylabel=label.format(unit=unit))
    axes.grid(alpha=0.3)
  grid[2].axhline(0.9, color="0.5", linestyle=":")
  grid[1].set_yscale("log")
  grid[3].set_yscale("log")
  handles = {
    label: handle
    for axes in grid
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
  }
  figure.legend(
    handles.values(), handles.keys(), loc="outside right center", fontsize="small"
  )
  style.save(figure, path)
