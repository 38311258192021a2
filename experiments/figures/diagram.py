"""Diagram of a tree, of one walk, and of the nodes read; for README and docs.

python -m experiments.figures.diagram
"""

import pathlib
import sys

import jax.numpy as jnp
import matplotlib as mpl
from matplotlib import lines
from matplotlib import patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from experiments.figures import style
import tca_jax

PATH = pathlib.Path(__file__).parents[2] / "docs" / "images" / "tree_walk.svg"

_GREY = "#c8c8c8"
_SETTINGS = {
  "svg.hashsalt": "tca_jax",  # the identifiers in the file are then the same each time
  "svg.fonttype": "path",
  "font.family": "DejaVu Sans",
  "font.size": 10,
}

Node = tuple[int, int]  # level, and index on that level


def plot_diagram(path: pathlib.Path = PATH) -> None:
  """Draws 16 points, their k-d tree, and the nodes that one query reads.

  The walk ends at the leaf nearest to the query, as the walk of a trained policy would.
  Every call writes the same bytes.

  Args:
    path: the SVG file to write.
  """
  points, query = _layout()
  tree = tca_jax.build_tree(jnp.asarray(points))
  tokens, depth = np.asarray(tree.leaf_index), tree.depth
  leaf = int(np.argmin(np.linalg.norm(points[tokens] - query, axis=1)))
  walk = [(level, leaf >> (depth - level)) for level in range(depth + 1)]
  read = [(level, index ^ 1) for level, index in walk[1:]] + [walk[-1]]
  with mpl.rc_context(_SETTINGS):
    figure = Figure(figsize=(10, 4.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.75))
    _draw_points(left, points[tokens], query, read, depth)
    _draw_tree(right, walk, read, depth)
    metadata = {"Date": None, "Creator": None}
    figure.savefig(path, format="svg", metadata=metadata, facecolor="white")


def _layout() -> tuple[np.ndarray, np.ndarray]:
  """The points `[16, 2]`, a grid with noise, and the query `[2]`."""
  rng = np.random.default_rng(4)
  grid = np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(-1, 2)
  points = (grid + rng.uniform(-0.33, 0.33, grid.shape)).astype(np.float32)
  return points * np.array([1.06, 1], np.float32), np.array([1.16, 1.38], np.float32)


def _color(level: int, depth: int) -> tuple[float, float, float, float]:
  """The colour of a level, without the palest end of the scale."""
  return style.LEVELS(level / (depth + 0.5))


def _draw_points(
  axes: Axes, leaves: np.ndarray, query: np.ndarray, read: list[Node], depth: int
) -> None:
  """Draws the points in leaf order, the query, and a box around each node read."""
  for level, index in read:
    width = 1 << (depth - level)
    members = leaves[index * width : (index + 1) * width]
    low, high = members.min(axis=0) - 0.16, members.max(axis=0) + 0.16
    color = _color(level, depth)
    axes.add_patch(
      patches.FancyBboxPatch(
        low,
        *(high - low),
        boxstyle="round,pad=0,rounding_size=0.12",
        facecolor=(*color[:3], 0.13),
        edgecolor=color,
        linewidth=1.8,
      )
    )
  axes.plot(*leaves.T, "o", color="0.25", markersize=5)
  axes.plot(*query, "X", color=style.RED, markersize=11, markeredgecolor="white")
  axes.annotate(
    "query", tuple(query), (9, -4), textcoords="offset points", color=style.RED
  )
  axes.set_title(f"context of {len(leaves)} tokens", fontsize=11)
  axes.set_aspect("equal")
  axes.axis("off")


def _draw_tree(axes: Axes, walk: list[Node], read: list[Node], depth: int) -> None:
  """Draws the tree, the walk, and the nodes read."""

  def position(level: int, index: int) -> tuple[float, float]:
    width = 1 << (depth - level)
    return (index + 0.5) * width - 0.5, depth - level

  for level in range(depth + 1):
    name = {0: "root", depth: "leaves"}.get(level, f"level {level}")
    axes.text(-1.2, depth - level, name, ha="right", va="center", color="0.4")
    for index in range(1 << level):
      node, parent = (level, index), (level - 1, index >> 1)
      is_walked, is_read = node in walk, node in read
      if level > 0:
        axes.plot(
          *zip(position(*parent), position(*node), strict=True),
          color=style.RED if is_walked else _GREY,
          linewidth=3 if is_walked else 1,
          zorder=2 if is_walked else 1,
        )
      fill = _color(level, depth) if is_read else "white"
      axes.plot(
        *position(*node),
        "o",
        color=fill,
        markeredgecolor=style.RED if is_walked else fill if is_read else _GREY,
        markeredgewidth=2 if is_walked else 1.2,
        markersize=11 if is_read else 8,
        zorder=3,
      )
  walked = lines.Line2D([], [], color=style.RED, linewidth=3, label="walk (policy)")
  nodes = lines.Line2D(
    [],
    [],
    color=_color(2, depth),
    marker="o",
    markersize=11,
    linestyle="",
    label=f"read: {len(read)} nodes cover all {1 << depth} tokens",
  )
  axes.legend(
    handles=[walked, nodes],
    loc="upper center",
    bbox_to_anchor=(0.5, -0.02),
    ncols=2,
    frameon=False,
  )
  axes.set_title("balanced tree over the context", fontsize=11)
  axes.set(xlim=(-3.6, (1 << depth) - 0.2), ylim=(-0.4, depth + 0.4))
  axes.axis("off")


if __name__ == "__main__":
  plot_diagram(*map(pathlib.Path, sys.argv[1:]))
