"""The nodes that a query read, and the tokens below them."""

import dataclasses

import jax
import numpy as np

import tca_jax
from tca_jax import walk as walk_lib


@dataclasses.dataclass(frozen=True)
class Inspection:
  """Predictions for B contexts, and the trees that were read.

  Attributes:
    prediction: predictions of M queries for each context, as NumPy arrays.
    trees: trees of the contexts, as NumPy arrays; None if the model has no tree.
  """

  prediction: tca_jax.Prediction
  trees: tca_jax.Tree | None

  @property
  def depth(self) -> int:
    """Depth of the trees."""
    return self._walks_and_trees()[1].depth

  def nodes_read(self, context: int, query: int) -> list[tuple[int, np.ndarray]]:
    """The nodes that one query read.

    Args:
      context: number of the context, in [0, B).
      query: number of the query, in [0, M).

    Returns:
      For each node, its level (the root's is 0) and the numbers of the tokens below
      it, `[k]`.

    Raises:
      ValueError: if the model has no tree.
    """
    return nodes_read(*self._walks_and_trees(), context, query)

  def _walks_and_trees(self) -> tuple[walk_lib.NodesRead, tca_jax.Tree]:
    walks = self.prediction.reading.walk
    if walks is None or self.trees is None:
      raise ValueError("only a model with a tree reads nodes")
    return walks, self.trees


def nodes_read(
  walks: walk_lib.NodesRead, trees: tca_jax.Tree, context: int, query: int
) -> list[tuple[int, np.ndarray]]:
  """The nodes that one query of a batch read; see `Inspection.nodes_read`.

  Args:
    walks: walks of all queries, with leading `[B, M]`.
    trees: trees of all contexts, with leading `[B]`.
    context: number of the context.
    query: number of the query.
  """
  walk = jax.tree.map(lambda x: np.asarray(x[context, query]), walks)
  tree = jax.tree.map(lambda x: np.asarray(x[context]), trees)
  nodes = []
  for level, index, valid in zip(walk.level, walk.index, walk.mask, strict=True):
    if valid:
      width = tree.num_leaves // tree.branch_factor ** int(level)
      leaves = slice(int(index) * width, (int(index) + 1) * width)
      tokens = tree.leaf_index[leaves]
      nodes.append((int(level), tokens[tree.leaf_mask[leaves]]))
  return nodes
