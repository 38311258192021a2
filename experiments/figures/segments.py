"""Figure of labelled segments of recordings and of the nodes that a query read."""

import dataclasses

from etils import epath
from matplotlib import colors
from matplotlib import patches
from matplotlib.figure import Figure
import numpy as np

from experiments.figures import style


@dataclasses.dataclass(frozen=True)
class LabelledSegment:
  """A segment of a recording, the classes of its rows, and the nodes one query read.

  Attributes:
    time: `[n]` seconds, ascending.
    channels: `[n, E]`, NaN where no value was recorded.
    truth: `[n]` int, classes.
    predicted: `[n]` int, classes.
    query: the time of one query.
    nodes: for each node the query read, its level and the times of the rows it
      contains.
    depth: the depth of the tree.
  """

  time: np.ndarray
  channels: np.ndarray
  truth: np.ndarray
  predicted: np.ndarray
  query: float
  nodes: list[tuple[int, np.ndarray]]
  depth: int


def plot_segments(
  segments: list[LabelledSegment], classes: tuple[str, ...], path: epath.PathLike
) -> None:
  """Draws a column per segment: its channels, its classes, and the nodes read.

  Args:
    segments: the segments.
    classes: the names of the classes.
    path: the PNG file to write.
  """
  figure = Figure(figsize=(5.5 * len(segments), 6.5), layout="constrained")
  grid = figure.subplots(
    3, len(segments), sharex="col", squeeze=False, height_ratios=(4, 1, 1)
  )
  palette = colors.ListedColormap(style.OTHERS[: len(classes)])
  for (above, strips, below), segment in zip(grid.T, segments, strict=True):
    for i, values in enumerate(segment.channels.T):
      recorded = np.isfinite(values)
      above.plot(
        segment.time[recorded],
        values[recorded],
        ".-",
        color=style.CHANNELS(i / segment.channels.shape[1]),
        markersize=3,
        linewidth=0.8,
      )
    middle = (segment.time[1:] + segment.time[:-1]) / 2
    edges = np.concatenate([segment.time[:1], middle, segment.time[-1:]])
    for row, labels in enumerate((segment.truth, segment.predicted)):
      strips.pcolormesh(
        edges,
        [row - 0.4, row + 0.4],
        labels[None],
        cmap=palette,
        vmin=-0.5,
        vmax=len(classes) - 0.5,
      )
    strips.set(ylim=(1.5, -0.5), yticks=(0, 1), yticklabels=("truth", "predicted"))
    for axes in (above, strips, below):
      axes.axvline(segment.query, color=style.RED, linewidth=0.8)
    style.draw_read(below, 0, segment.query, segment.nodes, segment.depth)
    below.set(ylim=(0.5, -0.5), yticks=[], xlabel="seconds")
  grid[0][0].set_ylabel("channels")
  grid[2][0].set_ylabel("nodes read")
  handles = [
    patches.Patch(color=palette(i), label=name) for i, name in enumerate(classes)
  ]
  figure.legend(
    handles=handles, loc="outside upper center", ncols=len(classes), fontsize="small"
  )
  figure.supxlabel(
    "bottom: the query (x) reads single rows (dots) and nodes of several rows (bars that"
    " span them, dark near the root)",
    fontsize=9,
  )
  style.save(figure, path)
