"""What the models are compared with on the whole map, and the search for seams."""

import typing

import jax
import numpy as np

from experiments.common import evaluate
from experiments.common import interpolation
from experiments.common import kriging
from experiments.common import timing
from experiments.data import elevation
import tca_jax

_SEAM_LEVELS = 8  # levels of the tree whose cuts are searched for seams


def rows(
  points: elevation.ElevationMap, num_context: int, targets: elevation.Points
) -> list[dict[str, typing.Any]]:
  """Measures linear interpolation and local kriging from the first training points.

  Args:
    points: the map.
    num_context: number of points in the context.
    targets: points to predict.

  Returns:
    Rows as those of `terrain_scaling.MapScaling`; linear interpolation predicts no
    uncertainty, so that its row has no log-likelihood and no coverage.
  """
  context = points.train.take_first(num_context)
  truth = points.to_metres(targets.values)
  shared = dict(num_context=num_context, num_queries=len(truth))
  clock = timing.Clock()
  linear = interpolation.interpolated(
    context.coords, points.to_metres(context.values), targets.coords
  )
  linear_us = 1e6 * clock.lap() / len(truth)
  model = kriging.fit(np.asarray(context.coords), np.asarray(context.values)[:, 0])
  fit_seconds = clock.lap()
  output = model.predict(np.asarray(targets.coords))
  kriging_us = 1e6 * clock.lap() / len(truth)
  mean, _ = points.predicted_in_metres(output)
  return [
    dict(system="linear", **shared)
    | dict(rmse_metres=interpolation.rmse(linear, truth), us_per_query=linear_us),
    dict(system="kriging", **shared)
    | evaluate.mean_scores(output, targets.values)
    | dict(rmse_metres=interpolation.rmse(mean, truth), us_per_query=kriging_us)
    | dict(tokens_read=min(kriging.NUM_NEIGHBOURS, num_context))
    | dict(fit_seconds=fit_seconds),
  ]


def node_boxes(tree: tca_jax.Tree, context: elevation.Points) -> np.ndarray:
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


def seam_ratio(means: np.ndarray, locations: np.ndarray, boxes: np.ndarray) -> float:
  """Measures how much more a map jumps across the cuts of a tree than elsewhere.

  A pixel belongs to the node whose box is nearest to it.

  Args:
    means: `[height, width]`, predicted means of pixels.
    locations: `[height, width, 2]`, their locations.
    boxes: `[2, nodes, 2]`, see `node_boxes`; at least two nodes.

  Returns:
    The mean absolute difference of neighbouring pixels of different nodes, divided by
    that of neighbouring pixels of the same node; 1 means that there are no seams.
  """

  def nearest(row: np.ndarray) -> np.ndarray:
    gap = np.maximum(boxes[0] - row[:, None], row[:, None] - boxes[1])
    return np.argmin(np.sum(np.maximum(gap, 0) ** 2, axis=-1), axis=-1)

  node = np.stack([nearest(row) for row in locations])
  axes = (0, 1)
  jump = np.concatenate([np.abs(np.diff(means, axis=i)).ravel() for i in axes])
  crosses = np.concatenate([np.diff(node, axis=i).ravel() != 0 for i in axes])
  return float(jump[crosses].mean() / jump[~crosses].mean())
