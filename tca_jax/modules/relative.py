"""Relative read-outs: a query sees all tokens, or the nodes of a tree, relative to itself.

See `tca_jax.modules.relative_layers` for their layers.
"""

import dataclasses
import functools
import typing

from flax import linen as nn
import jax

from tca_jax import node_memory
from tca_jax import relative
from tca_jax import sharded_building
from tca_jax import sharded_tree
from tca_jax import tree as tree_lib
from tca_jax.growth import NodeFunctions
from tca_jax.modules import trees
from tca_jax.modules.growing import GrowingReadOut
from tca_jax.modules.interface import Reading
from tca_jax.modules.layers import Aggregator
from tca_jax.modules.relative_layers import RelativeReadOut
from tca_jax.node_memory import NodeMemory
from tca_jax.node_memory import Nodes
from tca_jax.node_memory import PointMemory
from tca_jax.walk import NodesRead

__all__ = ["RelativeCrossAttention", "RelativeTreeCrossAttention"]


class RelativeCrossAttention(RelativeReadOut):
  """Full cross attention to all tokens, as they are seen from the query."""

  def store(
    self,
    tokens: jax.Array,
    coords: jax.Array,
    values: jax.Array | None,
    mask: jax.Array,
    train: bool,
    tree: tree_lib.Tree | None,
  ) -> PointMemory:
    del train
    self._check_no_tree(tree)
    self._check_tokens(tokens)
    values = self._check_values(values)
    summaries = self._summaries(tokens.astype(self.dtype))
    memory = jax.vmap(node_memory.pack_points)(coords, values, mask, summaries)
    if not self.fits_covariance:
      return memory
    # In the order of the leaves of a tree, near tokens follow each other.
    tree = trees.build_or_check(None, coords, mask, branch_factor=2)
    statistics = jax.vmap(sharded_building.node_statistics)(tree, coords, values)
    evidence = self._evidence(tree, statistics)
    return dataclasses.replace(memory, evidence=evidence)

  def retrieve(
    self,
    memory: PointMemory,
    queries: jax.Array,
    query_coords: jax.Array | None,
    train: bool,
    num_paths: int | None,
  ) -> Reading:
    self._check_one_path(num_paths)
    return self._retrieve_points(memory, queries, query_coords, train)


class RelativeTreeCrossAttention(GrowingReadOut, RelativeReadOut):
  """Tree Cross Attention to nodes as they are seen from the query.

  The policy is `relative.nearest_nodes`, in training and in evaluation. It is not
  learned, so that training needs no reinforcement learning.

  Attributes:
    branch_factor: b.
    order: how tokens are ordered into leaves, see `build_tree`.
    num_paths: the number of paths that a query follows, unless `read` is given another.
    upper_paths: the number of paths on all but the lowest six levels, in evaluation;
      None means num_paths. See `relative.nearest_nodes`.
    border_tokens: the largest number of tokens that a node is read together with, those
      on its border that are nearest to the query, see `relative.split_off_border`.
  """

  branch_factor: int = 2
  order: tree_lib.Order = "kd"
  num_paths: int = 8
  upper_paths: int | None = None
  border_tokens: int = 0

  def setup(self) -> None:
    super().setup()
    if self.border_tokens < 0:
      raise ValueError(f"border_tokens must be at least 0, got {self.border_tokens}")
    if self.summary_width:
      self.place = nn.Dense(self.width, dtype=self.dtype)
      self.aggregator = Aggregator(
        self.num_heads, self.hidden, self.dropout, self.dtype
      )

  def store(
    self,
    tokens: jax.Array,
    coords: jax.Array,
    values: jax.Array | None,
    mask: jax.Array,
    train: bool,
    tree: tree_lib.Tree | None,
  ) -> NodeMemory:
    """Builds the trees, and packs the statistics and summaries of all nodes."""
    self._check_tokens(tokens)
    values = self._check_values(values)
    tree = trees.build_or_check(
      tree, coords, mask, self.branch_factor, order=self.order
    )
    measure = functools.partial(
      sharded_building.node_statistics, keep_border=self.border_tokens > 0
    )
    statistics = jax.vmap(measure)(tree, coords, values)
    levels = [x.count[..., None][..., :0] for x in statistics.levels]
    if self.summary_width:
      families = jax.vmap(sharded_tree.families)(tree, statistics.levels)
      features = [relative.child_features(*family) for family in families]
      levels = trees.aggregate(
        self.aggregator,
        tree,
        tokens.astype(self.dtype),
        [self._place(level) for level in features],
        train=train,
        gradient=True,
      )
      levels = [self._summaries(level) for level in levels]
    evidence = self._evidence(tree, statistics)
    return jax.vmap(node_memory.pack_nodes)(tree, statistics, levels, evidence)

  def _num_parts(self) -> int:
    return 1 + self.border_tokens

  def node_functions(self) -> NodeFunctions:
    return NodeFunctions(
      self._aggregate, self._summaries, self.border_tokens > 0, self._noise()
    )

  def order_options(self) -> dict[str, typing.Any]:
    return dict(order=self.order)

  def _aggregate(
    self, children: jax.Array, mask: jax.Array, features: jax.Array
  ) -> jax.Array:
    """The value of nodes, as in `store`."""
    if not self.summary_width:
      return children[..., 0, :]  # of width 0
    return self.aggregator(children + self._place(features), mask)

  def _place(self, features: jax.Array) -> jax.Array:
    """Embeds `relative.child_features`, `[..., G] -> [..., D]`."""
    if self.border_tokens and not self.sees_scale:
      features = features[..., : -relative.ABSOLUTE_FEATURES]
    return self.place(features.astype(self.dtype))

  def _stored(self, tokens: jax.Array) -> jax.Array:
    tokens = tokens.astype(self.dtype)
    return tokens if self.summary_width else tokens[..., :0]

  def _stored_values(self, values: jax.Array | None = None) -> jax.Array:
    return self._check_values(values)

  def retrieve(
    self,
    memory: NodeMemory,
    queries: jax.Array,
    query_coords: jax.Array | None,
    train: bool,
    num_paths: int | None,
  ) -> Reading:
    """Reads the nodes near each query."""
    num_paths = self.num_paths if num_paths is None else num_paths
    upper_paths = None if train else self.upper_paths
    query_coords = self._relative_coords(memory.domain, query_coords)

    def find(memory: NodeMemory, query: jax.Array) -> tuple[NodesRead, Nodes]:
      walk, slots = relative.nearest_nodes(
        query, memory, num_paths, self.periods, upper_paths
      )
      nodes = node_memory.slot_nodes(memory, slots)
      if self.border_tokens:
        nodes = relative.split_off_border(
          query, nodes, self.border_tokens, self.periods
        )
      return walk, nodes

    find_all = jax.vmap(jax.vmap(find, in_axes=(None, 0)))
    walk, nodes = find_all(memory, query_coords)
    output, units = self._attend(
      queries, query_coords, nodes, memory, train, self._num_parts()
    )
    return Reading(output=output, num_read=walk.num_read, walk=walk, units=units)

  def retrieve_leaves(
    self, memory: NodeMemory, queries: jax.Array, query_coords: jax.Array | None
  ) -> Reading:
    points = node_memory.leaf_nodes(memory)
    return self._retrieve_points(points, queries, query_coords, train=False)
