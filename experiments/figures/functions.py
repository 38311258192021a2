"""Figure of predicted functions and of the tree's nodes that queries read."""

import dataclasses

from etils import epath
from matplotlib.figure import Figure
import numpy as np

from experiments.figures import style


@dataclasses.dataclass(frozen=True)
class FunctionFit:
  """A function, its prediction from some of its points, and the nodes queries read.

  Attributes:
    x: `[n]`, ascending.
    truth: `[n]`, the function at x.
    mean: `[n]`, predicted.
    std: `[n]`, predicted.
    exact_mean: `[n]`, of the exact posterior, the best possible prediction.
    exact_std: `[n]`.
    context: `[k, 2]`, x and y of the context points.
    queries: by the x of the query: for each node it read, its level and the x of the
      points it contains.
    depth: the depth of the tree.
  """

  x: np.ndarray
  truth: np.ndarray
  mean: np.ndarray
  std: np.ndarray
  exact_mean: np.ndarray
  exact_std: np.ndarray
  context: np.ndarray
  queries: dict[float, list[tuple[int, np.ndarray]]]
  depth: int


def plot_functions(fits: list[FunctionFit], path: epath.PathLike) -> None:
  """Draws a column per function: the prediction, and below it the nodes read.

  Args:
    fits: the functions.
    path: the PNG file to write.
  """
  figure = Figure(figsize=(5 * len(fits), 6), layout="constrained")
  grid = figure.subplots(2, len(fits), sharex=True, squeeze=False, height_ratios=(2, 1))
  for (above, below), fit in zip(grid.T, fits, strict=True):
    band = (fit.mean - 2 * fit.std, fit.mean + 2 * fit.std)
    above.fill_between(fit.x, *band, color="C0", alpha=0.25, label="mean, 2 std")
    above.plot(fit.x, fit.mean, color="C0")
    for sign in (-1, 1):
      edge = fit.exact_mean + sign * 2 * fit.exact_std
      label = "exact posterior, 2 std" if sign == 1 else None
      above.plot(fit.x, edge, color="0.5", linewidth=0.8, linestyle=":", label=label)
    above.plot(fit.x, fit.truth, color="k", linewidth=1, linestyle="--", label="truth")
    above.plot(*fit.context.T, "o", color="k", markersize=4, label="context")
    for row, (query, nodes) in enumerate(fit.queries.items()):
      for axes in (above, below):
        axes.axvline(query, color=style.RED, linewidth=0.8)
      style.draw_read(below, row, query, nodes, fit.depth)
    below.set(ylim=(len(fit.queries) - 0.5, -0.5), yticks=[], xlabel="x")
  grid[0][0].legend(fontsize="small")
  grid[1][0].set_ylabel("read by each query")
  figure.supxlabel(
    "bottom: each query (x) reads single points (dots) and nodes of several points (bars"
    " that span them, dark near the root)",
    fontsize=9,
  )
  style.save(figure, path)
