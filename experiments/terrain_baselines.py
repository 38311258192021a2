"""What the models are compared with on the whole map, and the search for seams."""

from collections.abc import Callable
from collections.abc import Sequence
import typing

import jax
import numpy as np

from experiments.common import evaluate
from experiments.common import interpolation
from experiments.common import kriging
from experiments.common import timing
from experiments.common import vecchia
from experiments.data import elevation
from experiments.data import windows
import tca_jax

_SEAM_LEVELS = 8  # levels of the tree whose cuts are searched for seams


def rows(
  points: elevation.ValueMap,
  num_context: int,
  targets: windows.Points,
  processes: bool = True,
  linear: bool = True,
) -> list[dict[str, typing.Any]]:
  """Measures linear interpolation and Gaussian processes from the first points.

  The Gaussian processes are local kriging and, where gpboost is installed, one in
  Vecchia's approximation, for at most `vecchia.MAX_OBSERVATIONS` points.

  Args:
    points: the map.
    num_context: number of training points in the context.
    targets: points to predict.
    processes: whether to measure the Gaussian processes too.
    linear: whether to measure linear interpolation.

  Returns:
    Rows as those of `terrain_scaling.MapScaling`. The first is that of linear
    interpolation, which predicts no uncertainty and has no log-likelihood.
  """
  context = points.train.take_first(num_context)
  coords, values = np.asarray(context.coords), np.asarray(context.values)[:, 0]
  queries, truth = np.asarray(targets.coords), points.to_units(targets.values)

  def row(
    system: str, mean: np.ndarray, fit_seconds: float, seconds: float
  ) -> dict[str, typing.Any]:
    return dict(
      system=system,
      num_context=num_context,
      num_queries=len(truth),
      rmse=interpolation.rmse(mean, truth),
      us_per_query=1e6 * seconds / len(truth),
      fit_seconds=fit_seconds,
      peak_memory_bytes=timing.peak_memory_bytes(),
    )

  found = []
  clock = timing.Clock()
  if linear:
    known = points.to_units(context.values)
    triangulation = interpolation.triangulate(coords)
    fit_seconds = clock.lap()
    mean = triangulation.interpolate(known, queries)
    found.append(row("linear", mean, fit_seconds, clock.lap()))
  fits: dict[str, Callable[..., typing.Any]] = {}
  if processes:
    fits["kriging"] = kriging.fit
  if processes and vecchia.is_installed() and num_context <= vecchia.MAX_OBSERVATIONS:
    fits["vecchia"] = vecchia.fit
  for system, fit in fits.items():
    clock.lap()
    model = fit(coords, values)
    fit_seconds = clock.lap()
    output = model.predict(queries)
    seconds = clock.lap(output)
    mean, _ = points.predicted_in_units(output)
    found.append(
      row(system, mean, fit_seconds, seconds)
      | evaluate.mean_scores(output, targets.values)
      | dict(tokens_read=model.num_neighbours)
    )
  return found


def node_boxes(tree: tca_jax.Tree, context: windows.Points) -> np.ndarray:
  """Bounding boxes of the nodes of the level whose cuts are searched for seams.

  Args:
    tree: tree of one context.
    context: its points.

  Returns:
    `[2, nodes, 2]`, the smallest and the largest coordinates.
  """
  statistics = jax.jit(tca_jax.node_statistics)(tree, context.coords, context.values)
  level = statistics.levels[min(_SEAM_LEVELS, tree.depth)]
  boxes = np.stack([level.low, level.high]) + np.asarray(statistics.domain.origin)
  return boxes[:, np.asarray(level.count) > 0]


def seam_ratios(
  maps: Sequence[np.ndarray], locations: np.ndarray, boxes: np.ndarray
) -> list[float | None]:
  """Measures how much more maps jump across the cuts of a tree than elsewhere.

  A pixel belongs to the node whose box is nearest to it. Where points are dense, cuts
  are, and the map may vary more there than elsewhere; the ratio of a method without a
  tree, such as interpolation, shows how much of the ratio that explains.

  Args:
    maps: predicted means of pixels, `[height, width]` each.
    locations: `[height, width, 2]`, their locations.
    boxes: `[2, nodes, 2]`, see `node_boxes`; at least two nodes.

  Returns:
    For each map, the mean absolute difference of neighbouring pixels of different nodes,
    divided by that of neighbouring pixels of the same node; None if there are no pixels
    of one of the two kinds, or if those of the same node do not differ.
  """

  def nearest(row: np.ndarray) -> np.ndarray:
    gap = np.maximum(boxes[0] - row[:, None], row[:, None] - boxes[1])
    return np.argmin(np.sum(np.maximum(gap, 0) ** 2, axis=-1), axis=-1)

  node = np.stack([nearest(row) for row in locations])
  axes = (0, 1)
  crosses = np.concatenate([np.diff(node, axis=i).ravel() != 0 for i in axes])
  ratios: list[float | None] = []
  for means in maps:
    jump = np.concatenate([np.abs(np.diff(means, axis=i)).ravel() for i in axes])
    across, within = jump[crosses], jump[~crosses]
    defined = across.size and np.any(within)
    ratios.append(float(across.mean() / within.mean()) if defined else None)
  return ratios
