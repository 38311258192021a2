"""Figures."""

import dataclasses

from etils import epath
import jax
import matplotlib

matplotlib.use("agg")  # no screen is needed

from matplotlib import colors
from matplotlib import patches
from matplotlib import pyplot as plt
from matplotlib import ticker
import numpy as np

import tca_jax

_QUERY = "#d62728"
_LEVELS = plt.get_cmap("viridis")
_CHANNELS = plt.get_cmap("plasma")
_RIVALS = [f"C{i}" for i in range(10) if i != 3]  # C3 is the red of TCA
_PATH_STYLES = {"tca": "-", "tca_2": "--", "tca_4": "-."}  # of TCA's lines


@dataclasses.dataclass(frozen=True)
class Completion:
  """One image completed from some of its pixels, and what one query read.

  Attributes:
    truth: `[H, W, E]` in [0, 1], grey or RGB.
    mean: `[H, W, E]`.
    std: `[H, W]`, the mean of the channels'.
    pixels: `[n, 2]` int, row and column of the context's pixels.
    query: `[2]` int, row and column of the query shown.
    boxes: for every node read, its level and the pixels under it, `[k, 2]`.
    depth: of the tree.
  """

  truth: np.ndarray
  mean: np.ndarray
  std: np.ndarray
  pixels: np.ndarray
  query: np.ndarray
  boxes: list[tuple[int, np.ndarray]]
  depth: int


@dataclasses.dataclass(frozen=True)
class FunctionFit:
  """A function predicted from some of its points, and what queries read.

  Attributes:
    x: `[n]`, where it is predicted, ascending.
    truth: `[n]`.
    mean: `[n]`.
    std: `[n]`.
    exact_mean: `[n]`, the best prediction that the points allow.
    exact_std: `[n]`.
    context: `[k, 2]`, the points given, x and y.
    queries: by the query's x, for every node read its level and the x of the
      points under it.
    depth: of the tree.
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


@dataclasses.dataclass(frozen=True)
class LabelledSegment:
  """A piece of a recording, the classes of its rows, and what one query read.

  Attributes:
    time: `[n]` seconds, ascending.
    channels: `[n, E]`, NaN where nothing was recorded.
    truth: `[n]` int, classes.
    predicted: `[n]` int.
    query: the time of the query shown.
    nodes: for every node read, its level and the times of the rows under it.
    depth: of the tree.
  """

  time: np.ndarray
  channels: np.ndarray
  truth: np.ndarray
  predicted: np.ndarray
  query: float
  nodes: list[tuple[int, np.ndarray]]
  depth: int


@dataclasses.dataclass(frozen=True)
class TerrainFit:
  """A map completed from some of its points, and what one query read.

  Attributes:
    coords: `[n, 2]`, east and north, of the points predicted.
    truth: `[n]`, metres.
    mean: `[n]`.
    std: `[n]`.
    context: `[k, 2]`, the points given.
    context_values: `[k]`.
    query: `[2]`, the query shown.
    boxes: for every node read, its level and the points under it, `[m, 2]`.
    depth: of the tree.
    pixel: the side of a pixel, in units of the coordinates.
  """

  coords: np.ndarray
  truth: np.ndarray
  mean: np.ndarray
  std: np.ndarray
  context: np.ndarray
  context_values: np.ndarray
  query: np.ndarray
  boxes: list[tuple[int, np.ndarray]]
  depth: int
  pixel: float


def nodes_read(
  walks: tca_jax.TreeReading, trees: tca_jax.Tree, example: int, query: int
) -> list[tuple[int, np.ndarray]]:
  """What one query of a batch read.

  Args:
    walks: of all queries, `[B, M, ...]`.
    trees: of all examples, `[B, ...]`.
    example: which.
    query: which of its queries.

  Returns:
    The level of every node read, and the tokens under it, `[k]`.
  """
  walk = jax.tree.map(lambda x: np.asarray(x[example, query]), walks)
  tree = jax.tree.map(lambda x: np.asarray(x[example]), trees)
  found = []
  for level, index, valid in zip(walk.level, walk.index, walk.mask, strict=True):
    if valid:
      width = tree.num_leaves // tree.branch_factor ** int(level)
      leaves = slice(int(index) * width, (int(index) + 1) * width)
      tokens = tree.leaf_index[leaves]
      found.append((int(level), tokens[tree.leaf_mask[leaves]]))
  return found


def plot_completions(completions: list[Completion], path: epath.PathLike) -> None:
  """Draws a row an image: context, mean, std, truth, and the nodes one query read."""
  titles = ("context", "mean", "std", "truth", "read by one query")
  figure, grid = plt.subplots(
    len(completions),
    len(titles),
    figsize=(2.2 * len(titles), 2.3 * len(completions) + 0.6),
    squeeze=False,
    layout="constrained",
  )
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
          color=_LEVELS(level / item.depth),
          lw=1.8,
        )
      )
    row[4].plot(*item.query[::-1], "x", color=_QUERY, ms=9, mew=2.5)
  for axis, title in zip(grid[0], titles, strict=True):
    axis.set_title(title, fontsize=10)
  for axis in grid.flat:
    axis.set_xticks([])
    axis.set_yticks([])
  figure.supxlabel(
    "x: the query; boxes: the tree's nodes read, dark near the root; filled: single"
    " pixels",
    fontsize=9,
  )
  _save(figure, path)


def plot_functions(fits: list[FunctionFit], path: epath.PathLike) -> None:
  """Draws a column a function: the prediction above, what its queries read below."""
  figure, grid = plt.subplots(
    2,
    len(fits),
    figsize=(5 * len(fits), 6),
    sharex=True,
    squeeze=False,
    height_ratios=(2, 1),
    layout="constrained",
  )
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
        axes.axvline(query, color=_QUERY, linewidth=0.8)
      _draw_read(below, row, query, nodes, fit.depth)
    below.set(ylim=(len(fit.queries) - 0.5, -0.5), yticks=[], xlabel="x")
  grid[0][0].legend(fontsize="small")
  grid[1][0].set_ylabel("read by each query")
  figure.supxlabel(
    "below: a query (x) reads single points (dots) and inner nodes (bars over the points"
    " they sum up, dark near the root)",
    fontsize=9,
  )
  _save(figure, path)


def plot_segments(
  segments: list[LabelledSegment], classes: tuple[str, ...], path: epath.PathLike
) -> None:
  """Draws a column a segment: its channels, its classes, and what one query read."""
  figure, grid = plt.subplots(
    3,
    len(segments),
    figsize=(5.5 * len(segments), 6.5),
    sharex="col",
    squeeze=False,
    height_ratios=(4, 1, 1),
    layout="constrained",
  )
  palette = colors.ListedColormap(_RIVALS[: len(classes)])
  for (above, strips, below), segment in zip(grid.T, segments, strict=True):
    for i, values in enumerate(segment.channels.T):
      seen = np.isfinite(values)
      color = _CHANNELS(i / segment.channels.shape[1])
      above.plot(
        segment.time[seen], values[seen], ".-", color=color, markersize=3, linewidth=0.8
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
      axes.axvline(segment.query, color=_QUERY, linewidth=0.8)
    _draw_read(below, 0, segment.query, segment.nodes, segment.depth)
    below.set(ylim=(0.5, -0.5), yticks=[], xlabel="seconds")
  grid[0][0].set_ylabel("channels")
  grid[2][0].set_ylabel("read")
  handles = [
    patches.Patch(color=palette(i), label=name) for i, name in enumerate(classes)
  ]
  figure.legend(
    handles=handles, loc="outside upper center", ncols=len(classes), fontsize="small"
  )
  figure.supxlabel(
    "below: the query (x) reads single rows (dots) and inner nodes (bars over the rows"
    " they sum up, dark near the root)",
    fontsize=9,
  )
  _save(figure, path)


def plot_terrain(fit: TerrainFit, path: epath.PathLike) -> None:
  """Draws a map: truth, context, mean, std, and the nodes one query read."""
  titles = (
    "truth",
    f"context, {len(fit.context):,} of {len(fit.coords):,} points",
    "mean",
    "std",
    "read by one query",
  )
  figure, (row,) = plt.subplots(
    1, len(titles), figsize=(20, 4), squeeze=False, layout="constrained"
  )
  low, high = fit.coords.min(0) - fit.pixel / 2, fit.coords.max(0) + fit.pixel / 2
  frame = dict(extent=(low[0], high[0], low[1], high[1]), origin="lower")
  elevation = dict(cmap="terrain", vmin=fit.truth.min(), vmax=fit.truth.max())
  truth, mean, std = (
    _raster(fit.coords, x, fit.pixel) for x in (fit.truth, fit.mean, fit.std)
  )
  row[0].imshow(truth, **frame, **elevation)
  row[1].scatter(*fit.context.T, c=fit.context_values, s=4, linewidths=0, **elevation)
  height = row[2].imshow(mean, **frame, **elevation)
  doubt = row[3].imshow(std, **frame, cmap="magma", vmin=0)
  row[4].imshow(truth, **frame, cmap="gray", alpha=0.45)
  for level, points in fit.boxes:
    color = _LEVELS(level / fit.depth)
    if len(points) == 1:
      row[4].plot(*points.T, "o", color=color, markersize=5)
      continue
    corner, sides = points.min(0), np.ptp(points, axis=0)
    row[4].add_patch(patches.Rectangle(corner, *sides, fill=False, color=color, lw=1.8))
  row[4].plot(*fit.query, "x", color=_QUERY, ms=9, mew=2.5)
  for axes, title in zip(row, titles, strict=True):
    axes.set(title=title, xticks=[], yticks=[], aspect="equal")
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
  figure.colorbar(height, ax=row[:3], label="elevation, m", shrink=0.7)
  figure.colorbar(doubt, ax=row[3], label="m", shrink=0.7)
  figure.supxlabel(
    "x: the query; boxes: the tree's nodes read, dark near the root; dots: single points",
    fontsize=9,
  )
  _save(figure, path)


def _raster(coords: np.ndarray, values: np.ndarray, pixel: float) -> np.ndarray:
  """`[rows, columns]`, the mean of the values in each pixel; NaN where there is none.

  >>> _raster(np.array([[0, 0], [1, 0], [1.1, 0]]), np.array([1, 2, 4]), 1).tolist()
  [[1.0, 3.0]]
  """
  column, row = np.rint((coords - coords.min(0)) / pixel).astype(int).T
  shape = row.max() + 1, column.max() + 1
  place = np.ravel_multi_index((row, column), shape)
  count, total = (
    np.bincount(place, weights, minlength=shape[0] * shape[1])
    for weights in (None, values)
  )
  mean = np.full(count.shape, np.nan)
  np.divide(total, count, out=mean, where=count > 0)
  return mean.reshape(shape)


def plot_read_times(
  rows: list[dict], crossovers: dict[int, int | None], path: epath.PathLike
) -> None:
  """Draws time per query against context size, a panel for each number of queries.

  Args:
    rows: of benchmarks.retrieval.
    crossovers: by number of queries, the tokens from which TCA is ahead, if it is.
    path: of the PNG.
  """
  counts = sorted({row["num_queries"] for row in rows})
  figure, grid = plt.subplots(
    1, len(counts), figsize=(5 * len(counts), 4.2), squeeze=False, layout="constrained"
  )
  names = list(dict.fromkeys(row["system"] for row in rows))
  for axes, count in zip(grid[0], counts, strict=True):
    for i, name in enumerate(names):
      own = [r for r in rows if r["num_queries"] == count and r["system"] == name]
      if own:
        style = "--" if name == "gather_floor" else "-"
        axes.loglog(
          [row["num_tokens"] for row in own],
          [row["us_per_query"] for row in own],
          style,
          base=2,
          marker=".",
          color=_QUERY if name == "tca" else _RIVALS[i % len(_RIVALS)],
          linewidth=2.5 if name == "tca" else 1,
          label=name,
        )
    queries = "1 query" if count == 1 else f"{count:,} queries"
    axes.set(title=queries, xlabel="context tokens", ylabel="us per query")
    axes.set_yscale("log", base=10)
    ahead = crossovers[count]
    if ahead:
      axes.axvline(ahead, color=_QUERY, linestyle=":")
      axes.set_title(f"{queries}: TCA ahead from {ahead:,} tokens")
    axes.grid(alpha=0.3)
  grid[0][0].legend(fontsize="small")
  _save(figure, path)


def plot_scaling(rows: list[dict], names: dict[str, str], path: epath.PathLike) -> None:
  """Draws quality, calibration and time of all systems against context size.

  Args:
    rows: of `TerrainTask.evaluate_sizes`.
    names: of the systems, by what the rows call them.
    path: of the PNG.
  """
  panels = {
    "log_likelihood": "log-likelihood",
    "rmse_metres": "RMSE, m",
    "coverage_90": "share within 90 % intervals",
    "us_per_query": "us per query",
  }
  figure, grid = plt.subplots(1, len(panels), figsize=(18, 4), layout="constrained")
  for axes, (key, label) in zip(grid, panels.items(), strict=True):
    for i, (system, name) in enumerate(names.items()):
      own = [row for row in rows if row["system"] == system]
      if not own:
        continue
      style = _PATH_STYLES.get(system)
      axes.plot(
        [row["num_context"] for row in own],
        [row[key] for row in own],
        marker=".",
        color=_QUERY if style else _RIVALS[i],
        linestyle=style or "-",
        linewidth=2.5 if system == "tca" else 1.2,
        label=name,
      )
    axes.set(xscale="log", xlabel="context points", ylabel=label)
    axes.grid(alpha=0.3)
  linear = {row["num_context"]: row["interpolation_rmse_metres"] for row in rows}
  grid[1].plot(*zip(*linear.items(), strict=True), ":", color="0.5")
  grid[1].set_title("dotted: linear interpolation", fontsize="small")
  grid[2].axhline(0.9, color="0.5", linestyle=":")
  grid[3].set_yscale("log")
  grid[0].legend(fontsize="small")
  _save(figure, path)


def plot_curves(results: list[dict], path: epath.PathLike) -> None:
  """Draws learning curves, against the examples seen and against seconds.

  Args:
    results: with the keys "row", the name; "curve", a list of (examples, seconds,
      reward of the sampled walks), drawn as the mean of the last twentieth of the
      curve up to a point; "accuracy", if that is the reward; and "config". Rows with
      another reward than the first one's are left out.
    path: of the PNG.
  """
  results = [
    r for r in results if r["config"]["reward"] == results[0]["config"]["reward"]
  ]
  figure, panels = plt.subplots(
    1, 2, figsize=(12, 4.5), sharey=True, layout="constrained"
  )
  rewards = [_smooth(np.array(result["curve"])[:, 2]) for result in results]
  for i, result in enumerate(results):
    examples, seconds, _ = np.array(result["curve"]).T
    for panel, x in zip(panels, (examples, seconds), strict=True):
      panel.plot(
        x,
        rewards[i],
        label=result["row"],
        color=_QUERY if i == 0 else _RIVALS[i % len(_RIVALS)],
        linestyle=("-", "--")[i // len(_RIVALS) % 2],
        linewidth=2.5 if i == 0 else 1.2,
        zorder=3 if i == 0 else 2,
      )
  accuracies = all("accuracy" in result for result in results)
  low, high = (
    (0, 1.02) if accuracies else (np.quantile(np.concatenate(rewards), 0.02), None)
  )
  for panel, label in zip(panels, ("examples", "seconds of training"), strict=True):
    panel.set(xlabel=label, xscale="log", ylim=(low, high))
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    panel.xaxis.set_minor_formatter(ticker.NullFormatter())
    panel.grid(alpha=0.3)
  panels[0].set_ylabel("reward in training (sampled walks)")
  figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
  _save(figure, path)


def _smooth(curve: np.ndarray) -> np.ndarray:
  """Means of the last twentieth of a curve, up to each of its points.

  >>> _smooth(np.arange(40.0))[:4].tolist()
  [0.0, 0.5, 1.5, 2.5]
  """
  window = max(len(curve) // 20, 1)
  total = np.concatenate([[0], np.cumsum(curve)])
  end = np.arange(1, len(curve) + 1)
  start = np.maximum(end - window, 0)
  return (total[end] - total[start]) / (end - start)


def _draw_read(
  axes: plt.Axes,
  row: int,
  query: float,
  nodes: list[tuple[int, np.ndarray]],
  depth: int,
) -> None:
  """Draws the nodes that a query read of a line: dots, and bars over what they hold."""
  for level, x in nodes:
    color = _LEVELS(level / depth)
    if len(x) == 1:
      axes.plot(x, [row], "o", color=color, markersize=6)
    else:
      axes.plot([x.min(), x.max()], [row, row], "|-", color=color, linewidth=4)
  axes.plot([query], [row], "x", color=_QUERY, markersize=9, markeredgewidth=2)


def _save(figure: plt.Figure, path: epath.PathLike) -> None:
  """Writes a figure as PNG, and frees it."""
  figure.savefig(path, dpi=110)
  plt.close(figure)
