"""Read-outs: layers that index a context once and read it with queries."""

import functools
import typing

from flax import linen as nn
import jax
import jax.numpy as jnp

from tca_jax import checks
from tca_jax import memory as memory_lib
from tca_jax import retrieval
from tca_jax import sharded_building
from tca_jax import tree as tree_lib
from tca_jax.growth import NodeFunctions
from tca_jax.memory import FlatMemory
from tca_jax.memory import TrainingMemory
from tca_jax.memory import TreeMemory
from tca_jax.modules import trees
from tca_jax.modules.growing import GrowingReadOut
from tca_jax.modules.interface import attend_all
from tca_jax.modules.interface import DotProductReadOut
from tca_jax.modules.interface import Reading
from tca_jax.modules.interface import TrainingReading
from tca_jax.modules.layers import Aggregator
from tca_jax.modules.layers import DistanceBias
from tca_jax.modules.layers import Encoder

__all__ = [
  "CrossAttention",
  "PerceiverIO",
  "TreeCrossAttention",
]


class _FlatReadOut(DotProductReadOut):
  """A read-out without a tree: every query reads the whole memory."""

  def retrieve(
    self,
    memory: FlatMemory,
    queries: jax.Array,
    query_coords: jax.Array | None,
    train: bool,
    num_paths: int | None,
  ) -> Reading:
    self._check_one_path(num_paths)
    return self._retrieve_flat(memory, queries, query_coords, train)


class CrossAttention(_FlatReadOut):
  """Full cross attention: every query reads all N tokens."""

  def store(
    self,
    tokens: jax.Array,
    coords: jax.Array,
    values: jax.Array | None,
    mask: jax.Array,
    train: bool,
    tree: tree_lib.Tree | None,
  ) -> FlatMemory:
    del values, train
    self._check_no_tree(tree)
    self._check_tokens(tokens)
    return self._store_flat(tokens, mask, coords)


class PerceiverIO(_FlatReadOut):
  """Perceiver IO: L latents attend to the N tokens, and queries read the latents.

  The memory of a context without a valid token is masked everywhere.

  Attributes:
    num_latents: L.
    num_latent_layers: the number of transformer layers over the latents.
  """

  num_latents: int = 8
  num_latent_layers: int = 1

  def setup(self) -> None:
    super().setup()
    checks.check_sizes(num_latents=self.num_latents)
    if self.sees_distance:
      raise ValueError(
        "sees_distance must be False in PerceiverIO, whose latents have no location"
      )
    shape = (self.num_latents, self.width)
    init = nn.initializers.normal(1.0)
    self.latents = self.param("latents", init, shape, jnp.float32)
    self.distil = CrossAttention(
      self.width, self.num_heads, self.hidden, self.dropout, self.dtype
    )
    self.latent_encoder = Encoder(
      self.num_latent_layers,
      self.num_heads,
      self.hidden,
      self.dropout,
      self.dtype,
    )

  def store(
    self,
    tokens: jax.Array,
    coords: jax.Array,
    values: jax.Array | None,
    mask: jax.Array,
    train: bool,
    tree: tree_lib.Tree | None,
  ) -> FlatMemory:
    self._check_no_tree(tree)
    self._check_tokens(tokens)
    shape = (tokens.shape[0], *self.latents.shape)
    latents = jnp.broadcast_to(self.latents, shape).astype(self.dtype)
    context = self.distil.store(tokens, coords, values, mask, train, tree=None)
    latents = self.distil.retrieve(context, latents, None, train, None).output
    any_valid = jnp.any(mask, axis=-1, keepdims=True)
    latent_mask = jnp.broadcast_to(any_valid, latents.shape[:2])
    latents = self.latent_encoder(latents, latent_mask, train)
    return self._store_flat(latents, latent_mask)


class TreeCrossAttention(GrowingReadOut, DotProductReadOut):
  """Tree Cross Attention: every query reads at most (b - 1) * depth + 1 nodes.

  Attributes:
    branch_factor: b.
    order: how tokens are ordered into leaves, see `build_tree`.
    axis: the coordinate that order "axis" sorts by.
    order_seed: the random seed of the random orders, the same for all contexts.
    share_policy: whether policy and attention share the projections of query and
      key, as published.
    tree_gradient: whether gradients flow through the inner nodes to their children.
      The paper stops gradients at the input of every aggregation.
  """

  branch_factor: int = 2
  order: tree_lib.Order = "kd"
  axis: int = 0
  order_seed: int = 0
  share_policy: bool = True
  tree_gradient: bool = True

  def setup(self) -> None:
    super().setup()
    self.aggregator = Aggregator(self.num_heads, self.hidden, self.dropout, self.dtype)
    if not self.share_policy:
      self.policy_query = nn.Dense(self.width, dtype=self.dtype)
      self.policy_key = nn.Dense(self.width, dtype=self.dtype)
      if self.sees_distance:
        self.policy_distance = DistanceBias(self.num_heads)

  def store(
    self,
    tokens: jax.Array,
    coords: jax.Array,
    values: jax.Array | None,
    mask: jax.Array,
    train: bool,
    tree: tree_lib.Tree | None,
  ) -> TreeMemory:
    """Builds and aggregates the trees, and caches keys and values of all nodes."""
    del values
    self._check_tokens(tokens)
    options = dict(order=self.order, axis=self.axis, order_seed=self.order_seed)
    tree = trees.build_or_check(tree, coords, mask, self.branch_factor, **options)
    levels = trees.aggregate(
      self.aggregator,
      tree,
      tokens.astype(self.dtype),
      train=train,
      gradient=self.tree_gradient,
    )
    join = functools.partial(memory_lib.join_levels, branch_factor=self.branch_factor)
    keys, values, policy_keys = self._project(jax.vmap(join)(levels))
    if self.sees_distance:
      measure = jax.vmap(sharded_building.node_statistics)
      found = measure(tree, coords, coords[..., :0])
      nodes = jax.tree.map(lambda *levels: jax.vmap(join)(levels), *found.levels)
      centroid = nodes.centroid + found.domain.origin[:, None]
      node = (centroid, nodes.high - nodes.low, nodes.count)
      keys = self.distance.keys(keys, *node)
      if policy_keys is not None:
        policy_keys = self.policy_distance.keys(policy_keys, *node)
    memory = memory_lib.from_slots(tree, keys, values, policy_keys)
    if train and tree.is_even:
      return memory_lib.for_training(memory, keys, tokens.shape[1])
    return memory

  def node_functions(self) -> NodeFunctions:
    if self.sees_distance:
      raise ValueError(
        "sees_distance must be False in a model whose contexts grow; use"
        " RelativeTreeCrossAttention, which sees distances and can grow"
      )
    return NodeFunctions(aggregate=self.aggregator, project=self._project)

  def order_options(self) -> dict[str, typing.Any]:
    return dict(order=self.order, axis=self.axis)

  def _stored_values(self, values: jax.Array | None = None) -> None:
    del values

  def _project(self, nodes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Keys, values and the policy's own keys of nodes, `[..., D]`."""
    keys, values = self._heads(self.key, nodes), self._heads(self.value, nodes)
    own = None if self.share_policy else self._heads(self.policy_key, nodes)
    return keys, values, own

  def retrieve(
    self,
    memory: TreeMemory,
    queries: jax.Array,
    query_coords: jax.Array | None,
    train: bool,
    num_paths: int | None,
  ) -> Reading:
    """Walks down the trees: greedily, or with sampled walks if `train`."""
    num_paths = 1 if num_paths is None else num_paths
    checks.check_num_paths(num_paths)
    if train and num_paths > 1:
      raise ValueError(f"num_paths must be 1 in training, got {num_paths}")
    batch = memory.tree.leaf_mask.shape[0]
    projected = self._queries(queries, query_coords, batch)
    policy_query = None
    if not self.share_policy:
      policy_query = self._heads(self.policy_query, self.query_norm(queries))
      if self.sees_distance:
        coords = self._check_coords(query_coords)
        policy_query = self.policy_distance.queries(policy_query, coords)
    if not train:
      read_one = functools.partial(_read_one, num_paths=num_paths)
      read = jax.vmap(read_one, in_axes=(0, None, 0))
      out = jax.vmap(read)(projected, memory, policy_query)
      return Reading(
        output=self._finish(queries, out.output, train),
        num_read=out.num_read,
        walk=out,
      )
    rngs = jax.random.split(self.make_rng("policy"), projected.shape[:2])
    attend = jax.vmap(_attend_one, in_axes=(0, None, 0, 0))
    out = jax.vmap(attend)(projected, memory, policy_query, rngs)
    prepared = isinstance(memory, TrainingMemory)
    tokens = memory.tokens if prepared else memory_lib.leaves(memory)
    leaves = attend_all(projected, tokens)
    # On a CPU, sums of slices are faster than sums along a short axis.
    heads = [leaves.weights[..., h, :] for h in range(self.num_heads)]
    leaf_weights = memory_lib.spread_leaves(
      functools.reduce(jnp.add, heads) / len(heads),
      memory.tree.num_leaves,
      self.branch_factor,
    )
    return TrainingReading(
      output=self._finish(queries, out.output, train),
      num_read=out.num_read,
      walk=out,
      leaf_output=self._finish(queries, leaves.output, train),
      leaf_weights=leaf_weights,
    )

  def retrieve_leaves(
    self, memory: TreeMemory, queries: jax.Array, query_coords: jax.Array | None
  ) -> Reading:
    leaves = memory_lib.leaves(memory)
    return self._retrieve_flat(leaves, queries, query_coords, train=False)


def _read_one(query, memory, policy_query, num_paths) -> retrieval.TreeReading:
  return retrieval.read(query, memory, policy_query=policy_query, num_paths=num_paths)


def _attend_one(query, memory, policy_query, rng) -> retrieval.TreeAttentionOutput:
  return retrieval.attend(query, memory, rng=rng, policy_query=policy_query)
