"""Figure of completed images and of the tree's nodes that a query read."""

import dataclasses

from etils import epath
from matplotlib import patches
from matplotlib.figure import Figure
import numpy as np

from experiments.figures import style


@dataclasses.dataclass(frozen=True)
class Completion:
  """One image, its prediction from some of its pixels, and the nodes one query read.

  Attributes:
    truth: `[H, W, E]` in [0, 1], grey or RGB.
    mean: `[H, W, E]`, predicted.
    std: `[H, W]`, predicted, averaged over channels.
    pixels: `[n, 2]` int, row and column of each context pixel.
    query: `[2]` int, row and column of one query.
    boxes: for each node the query read, its level and the pixels it contains,
      `[k, 2]` int.
    depth: the depth of the tree.
  """

  truth: np.ndarray
  mean: np.ndarray
  std: np.ndarray
  pixels: np.ndarray
  query: np.ndarray
  boxes: list[tuple[int, np.ndarray]]
  depth: int


def plot_completions(completions: list[Completion], path: epath.PathLike) -> None:
  """Draws a row of panels per image: context, mean, std, truth, and nodes read.

  Args:
    completions: the images.
    path: the PNG file to write.
  """
  titles = ("context", "mean", "std", "truth", "read by one query")
  figure = Figure(
    figsize=(2.2 * len(titles), 2.3 * len(completions) + 0.6), layout="constrained"
  )
  grid = figure.subplots(len(completions), len(titles), squeeze=False)
  for row, item in zip(grid, completions, strict=True):
    truth, mean = (
      np.broadcast_to(x.clip(0, 1), (*x.shape[:2], 3)) for x in (item.truth, item.mean)
    )
    context = np.full(truth.shape, (0.25, 0.35, 0.6))
    at = tuple(item.pixels.T)
    context[at] = truth[at]
    row[0].imshow(context)
    row[1].imshow(mean)
    row[2].imshow(item.std, cmap="magma", vmin=0)
    row[3].imshow(truth)
    row[4].imshow(truth, alpha=0.45)
    for level, pixels in item.boxes:
      top, left = pixels.min(0) - 0.5
      height, width = pixels.max(0) - pixels.min(0) + 1
      row[4].add_patch(
        patches.Rectangle(
          (left, top),
          width,
          height,
          fill=len(pixels) == 1,
          color=style.LEVELS(level / item.depth),
          lw=1.8,
        )
      )
    row[4].plot(*item.query[::-1], "x", color=style.RED, ms=9, mew=2.5)
  for axes, title in zip(grid[0], titles, strict=True):
    axes.set_title(title, fontsize=10)
  for axes in grid.flat:
    axes.set_xticks([])
    axes.set_yticks([])
  figure.supxlabel(
    "x: the query; boxes: the nodes of the tree it read, dark near the root; filled"
    " boxes: single pixels",
    fontsize=9,
  )
  style.save(figure, path)
