"""Colours, and the elements that several figures share.

Figures are made as `matplotlib.figure.Figure` objects. Unlike `pyplot`, these need no
display and are freed without being closed.
"""

from etils import epath
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

# Queries, and curves of Tree Cross Attention, are drawn in the red of C3.
RED = "#d62728"
OTHERS = [f"C{i}" for i in range(10) if i != 3]
LEVELS = matplotlib.colormaps["viridis"]  # level / depth of a node: dark near the root
CHANNELS = matplotlib.colormaps["plasma"]


def draw_read(
  axes: Axes,
  row: int,
  query: float,
  nodes: list[tuple[int, np.ndarray]],
  depth: int,
) -> None:
  """Draws the nodes that a query read, along a horizontal line.

  A node with one token is a dot; other nodes are bars that span their tokens.

  Args:
    axes: the axes to draw on.
    row: the vertical position of the line.
    query: the horizontal position of the query.
    nodes: for each node read, its level and the positions of its tokens, `[k]`.
    depth: the depth of the tree.
  """
  for level, x in nodes:
    color = LEVELS(level / depth)
    if len(x) == 1:
      axes.plot(x, [row], "o", color=color, markersize=6)
    else:
      axes.plot([x.min(), x.max()], [row, row], "|-", color=color, linewidth=4)
  axes.plot([query], [row], "x", color=RED, markersize=9, markeredgewidth=2)


def save(figure: Figure, path: epath.PathLike) -> None:
  """Writes a figure as a PNG file."""
  with epath.Path(path).open("wb") as file:
    figure.savefig(file, format="png", dpi=110)
