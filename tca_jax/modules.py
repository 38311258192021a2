"""Flax Linen modules: the learned parts, and ReTreever, which composes them.

Modules take batches, `[B, ...]`. The three read-outs `TreeCrossAttention`,
`CrossAttention` and `PerceiverIO` have one interface:

  index(tokens, coords, mask) -> memory      once per context
  read(memory, queries, train) -> Reading    as often as there are queries
  (queries, tokens, coords, mask) -> output  both, as a drop-in layer

Random streams: "policy" samples the walks where `train` is True, "dropout" is
needed if dropout is above 0. Parameters are float32; `dtype` is what
activations are computed in (softmax and layer norm statistics stay float32).
"""

from collections.abc import Sequence
import functools
import typing

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tca_jax import attention
from tca_jax import objectives
from tca_jax import retrieval
from tca_jax import tree as tree_lib
from tca_jax.retrieval import TreeMemory

Dtype = typing.Any


class MLP(nn.Module):
  """Dense layers with an activation between them, `[..., D] -> [..., features[-1]]`.

  Attributes:
    features: the width of each layer.
    activation: between layers, not after the last.
    dtype: of the activations.
  """

  features: Sequence[int]
  activation: typing.Callable[[jax.Array], jax.Array] = nn.elu
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for i, width in enumerate(self.features):
      x = self.activation(x) if i else x
      x = nn.Dense(width, dtype=self.dtype)(x)
    return x


class FeedForward(nn.Module):
  """Pre-norm GEGLU block with its residual, `[..., D] -> [..., D]`."""

  hidden: int = 128
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    h = nn.LayerNorm(dtype=self.dtype)(x)
    gate, h = jnp.split(nn.Dense(2 * self.hidden, dtype=self.dtype)(h), 2, -1)
    h = nn.Dense(x.shape[-1], dtype=self.dtype)(nn.gelu(gate) * h)
    return x + nn.Dropout(self.dropout)(h, deterministic=not train)


class SelfAttention(nn.Module):
  """Multi-head self-attention, `[B, N, D]` with mask `[B, N]` -> `[B, N, D]`.

  Attributes:
    num_heads: H, must divide D.
    small_groups: whether N is a few and the groups are many, as for the
      children of the nodes of a tree: then any leading axes will do.
    dtype: of the activations.
  """

  num_heads: int = 4
  small_groups: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    def project(name: str) -> nn.Dense:
      return nn.Dense(x.shape[-1], dtype=self.dtype, name=name)

    queries, keys, values = (
      attention.split_heads(project(name)(x), self.num_heads)
      for name in ("query", "key", "value")
    )
    if self.small_groups:
      attended = attention.sibling_attention(queries, keys, values, mask)
    else:
      attended = _attend_all(
        queries, FlatMemory(keys=keys, values=values, mask=mask)
      ).output
    return project("out")(attention.merge_heads(attended))


class TransformerLayer(nn.Module):
  """Pre-norm self-attention and feed-forward.

  Attributes:
    num_heads: H, must divide D.
    hidden: the width of the feed-forward.
    dropout: on the output of either half.
    small_groups: see `SelfAttention`.
    dtype: of the activations.
  """

  num_heads: int = 4
  hidden: int = 128
  dropout: float = 0.0
  small_groups: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, train: bool = False) -> jax.Array:
    """`[B, N, D]`, mask `[B, N]` -> `[B, N, D]`; masked tokens are not read."""
    attend = SelfAttention(self.num_heads, self.small_groups, self.dtype)
    h = attend(nn.LayerNorm(dtype=self.dtype)(x), mask)
    x = x + nn.Dropout(self.dropout)(h, deterministic=not train)
    return FeedForward(self.hidden, self.dropout, self.dtype)(x, train)


class Encoder(nn.Module):
  """A stack of transformer layers; with `num_layers=0`, the identity."""

  num_layers: int = 6
  num_heads: int = 4
  hidden: int = 128
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, train: bool = False) -> jax.Array:
    x = jnp.where(mask[..., None], x, 0)
    for _ in range(self.num_layers):
      x = TransformerLayer(self.num_heads, self.hidden, self.dropout, dtype=self.dtype)(
        x, mask, train
      )
    return x


class Aggregator(nn.Module):
  """One transformer layer over the children, then their masked mean (Sec. 3.1).

  An `AggregateFn` once bound: children `[..., b, D]` and mask `[..., b]` give
  `[..., D]`; zeros, without gradient, where every child is masked.
  """

  num_heads: int = 4
  hidden: int = 128
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, children: jax.Array, mask: jax.Array, train: bool = False
  ) -> jax.Array:
    x = TransformerLayer(self.num_heads, self.hidden, self.dropout, True, self.dtype)(
      children, mask, train
    )
    return objectives.masked_mean(x, mask[..., None], axis=-2)


@chex.dataclass(frozen=True)
class FlatMemory:
  """The keys and values that a query reads one by one.

  Attributes:
    keys: `[B, N, H, Dh]`.
    values: `[B, N, H, Dh]`.
    mask: `[B, N]` bool.
  """

  keys: jax.Array
  values: jax.Array
  mask: jax.Array


@chex.dataclass(frozen=True)
class Reading:
  """What M queries read from each of B memories.

  Attributes:
    output: `[B, M, D]`.
    num_read: `[B, M]` int32, the tokens, latents or nodes read by each query.
    walk: the walks, with leading `[B, M]`, from `TreeCrossAttention`: a
      `TreeAttentionOutput` where `train` is True, else a `TreeReading`.
    leaf_output: `[B, M, D]`, read from all leaves with the same weights; from
      `TreeCrossAttention` where `train` is True, as is what follows.
    routing_targets: `[B, M, depth, b]`.
    best_leaf_read: `[B, M]` bool, whether the leaf to which the leaf attention gives
      most was read by itself.
  """

  output: jax.Array
  num_read: jax.Array
  walk: retrieval.TreeReading | None = None
  leaf_output: jax.Array | None = None
  routing_targets: jax.Array | None = None
  best_leaf_read: jax.Array | None = None


class _ReadOut(nn.Module):
  """What the read-outs share: projections, residuals and the feed-forward."""

  width: int = 64
  num_heads: int = 4
  hidden: int = 128
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  def setup(self) -> None:
    if self.width % self.num_heads:
      raise ValueError(
        f"width must be a multiple of num_heads={self.num_heads}, got {self.width}"
      )
    self.query_norm = nn.LayerNorm(dtype=self.dtype)
    self.query = nn.Dense(self.width, dtype=self.dtype)
    self.key = nn.Dense(self.width, dtype=self.dtype)
    self.value = nn.Dense(self.width, dtype=self.dtype)
    self.out = nn.Dense(self.width, dtype=self.dtype)
    self.out_dropout = nn.Dropout(self.dropout)
    self.feed_forward = FeedForward(self.hidden, self.dropout, self.dtype)

  def __call__(
    self,
    queries: jax.Array,
    tokens: jax.Array,
    coords: jax.Array,
    mask: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """Indexes the context and reads it, in the place of a cross-attention layer.

    Args:
      queries: `[B, M, D]`.
      tokens: `[B, N, D]`.
      coords: `[B, N, C]`, where each token lies.
      mask: `[B, N]` bool, True at valid tokens; None means all.
      train: whether to sample walks and to use dropout.

    Returns:
      `[B, M, D]`.

    Raises:
      ValueError: as `index` and `read`.
    """
    return self.read(self.index(tokens, coords, mask, train), queries, train).output

  def _check(self, tokens, coords, mask) -> tuple[jax.Array, jax.Array]:
    """Returns tokens with zeros where masked, and the mask."""
    tree_lib.check_context(coords, mask, tokens=tokens)
    if tokens.ndim != 3 or tokens.shape[-1] != self.width:
      raise ValueError(f"tokens must be [B, N, {self.width}], got shape {tokens.shape}")
    if mask is None:
      mask = jnp.ones(tokens.shape[:2], bool)
    return jnp.where(mask[..., None], tokens, 0), mask

  def _heads(self, projection: nn.Dense, x: jax.Array) -> jax.Array:
    return attention.split_heads(projection(x), self.num_heads)

  def _queries(self, queries: jax.Array, batch: int) -> jax.Array:
    """`[B, M, D] -> [B, M, H, Dh]`."""
    tree_lib.check_finite(queries=queries)
    if queries.ndim != 3 or queries.shape[::2] != (batch, self.width):
      raise ValueError(
        f"queries must be [{batch}, M, {self.width}], got {queries.shape}"
      )
    return self._heads(self.query, self.query_norm(queries))

  def _read_flat(self, memory: FlatMemory, queries: jax.Array, train: bool) -> Reading:
    """Full attention over a flat memory."""
    out = _attend_all(self._queries(queries, memory.mask.shape[0]), memory)
    num_read = jnp.sum(memory.mask, axis=-1, keepdims=True)
    return Reading(
      output=self._finish(queries, out.output, train),
      num_read=jnp.broadcast_to(num_read, queries.shape[:2]),
    )

  def _finish(self, queries: jax.Array, attended: jax.Array, train: bool) -> jax.Array:
    """Output projection, residual and feed-forward, `[B, M, H, Dh] -> [B, M, D]`."""
    h = self.out(attention.merge_heads(attended))
    h = queries + self.out_dropout(h, deterministic=not train)
    return self.feed_forward(h, train)


def _attend_all(
  queries: jax.Array, memory: FlatMemory
) -> attention.CrossAttentionOutput:
  """`cross_attention` of `[B, M, H, Dh]` queries over their own memory."""
  return jax.vmap(attention.cross_attention)(
    queries, memory.keys, memory.values, memory.mask
  )


class CrossAttention(_ReadOut):
  """Full cross attention: every query reads all N tokens."""

  def index(
    self,
    tokens: jax.Array,
    coords: jax.Array,
    mask: jax.Array | None = None,
    train: bool = False,
  ) -> FlatMemory:
    """Computes keys and values once per context; arguments as `__call__`.

    Raises:
      ValueError: if a shape or dtype is wrong; outside a transformation also
        if a context has no valid token or holds NaN.
    """
    del train
    tokens, mask = self._check(tokens, coords, mask)
    return FlatMemory(
      keys=self._heads(self.key, tokens),
      values=self._heads(self.value, tokens),
      mask=mask,
    )

  def read(
    self, memory: FlatMemory, queries: jax.Array, train: bool = False
  ) -> Reading:
    """Reads a memory with `[B, M, D]` queries; ValueError if shapes do not fit."""
    return self._read_flat(memory, queries, train)


class PerceiverIO(_ReadOut):
  """Perceiver IO: N tokens are distilled into L latents, which queries read.

  Attributes:
    num_latents: L.
    num_latent_layers: transformer layers over the latents.
  """

  num_latents: int = 8
  num_latent_layers: int = 1

  def setup(self) -> None:
    super().setup()
    if self.num_latents < 1:
      raise ValueError(f"num_latents must be at least 1, got {self.num_latents}")
    self.latents = self.param(
      "latents", nn.initializers.normal(1.0), (self.num_latents, self.width)
    )
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

  def index(
    self,
    tokens: jax.Array,
    coords: jax.Array,
    mask: jax.Array | None = None,
    train: bool = False,
  ) -> FlatMemory:
    """Distils each context into L latents; arguments and errors as CrossAttention.

    A context without a valid token gives a memory that is masked altogether.
    """
    tokens, mask = self._check(tokens, coords, mask)
    shape = (tokens.shape[0], *self.latents.shape)
    latents = jnp.broadcast_to(self.latents, shape).astype(self.dtype)
    latents = self.distil(latents, tokens, coords, mask, train)
    any_valid = jnp.any(mask, axis=-1, keepdims=True)
    latent_mask = jnp.broadcast_to(any_valid, latents.shape[:2])
    latents = self.latent_encoder(latents, latent_mask, train)
    return FlatMemory(
      keys=self._heads(self.key, latents),
      values=self._heads(self.value, latents),
      mask=latent_mask,
    )

  read = CrossAttention.read


class TreeCrossAttention(_ReadOut):
  """Tree Cross Attention: every query reads |S| <= (b - 1) depth + 1 nodes.

  Attributes:
    branch_factor: b.
    order: how the tree is built, see `build_tree`.
    axis: for order "axis".
    order_seed: for the random orders, of all contexts.
    share_policy: whether policy and attention share the projections of query
      and key, as published.
    tree_gradient: whether gradients flow down through the inner nodes. The
      paper stops them at the input of every aggregation.
    num_paths: how many paths are followed where `train` is False, see
      `retrieval.read`.
    teacher_temperature: of the leaf attention as the target of routing: weights,
      averaged over heads, to the power of 1 / temperature. Below 1, heads that
      attend to nothing in particular matter less; but where what matters is spread
      over many tokens, attention and policy may sharpen each other until all
      queries read one leaf.
  """

  branch_factor: int = 2
  order: tree_lib.Order = "kd"
  axis: int = 0
  order_seed: int = 0
  share_policy: bool = True
  tree_gradient: bool = True
  num_paths: int = 1
  teacher_temperature: float = 1.0

  def setup(self) -> None:
    super().setup()
    tree_lib.check_num_paths(self.num_paths)
    if self.teacher_temperature <= 0:
      raise ValueError(
        f"teacher_temperature must be above 0, got {self.teacher_temperature}"
      )
    self.aggregator = Aggregator(self.num_heads, self.hidden, self.dropout, self.dtype)
    if not self.share_policy:
      self.policy_query = nn.Dense(self.width, dtype=self.dtype)
      self.policy_key = nn.Dense(self.width, dtype=self.dtype)

  def index(
    self,
    tokens: jax.Array,
    coords: jax.Array,
    mask: jax.Array | None = None,
    train: bool = False,
    tree: tree_lib.Tree | None = None,
  ) -> TreeMemory:
    """Builds the trees, aggregates them and caches keys and values of all nodes.

    Arguments and errors as `CrossAttention.index`; ValueError also if an
    option of the tree is not one that `build_tree` takes, or if a given tree
    does not fit the tokens.

    `tree` is a batch of trees, built before of these coordinates and this mask (the
    options `order`, `axis` and `order_seed` are then not read); None builds them.
    """
    tokens, mask = self._check(tokens, coords, mask)
    if tree is None:
      tree = jax.vmap(self._build_tree)(coords, mask)
    else:
      _check_trees(tree, mask, self.branch_factor)
    if self.is_initializing():
      # Large levels are aggregated within a loop, where parameters cannot be made.
      children = jnp.zeros((1, self.branch_factor, self.width), self.dtype)
      self.aggregator(children, jnp.ones(children.shape[:2], bool))

    def aggregate(aggregator, tree, tokens):
      def aggregate_fn(children, child_mask):
        if not self.tree_gradient:
          children = jax.lax.stop_gradient(children)
        return aggregator(children, child_mask, train)

      draws = train and self.dropout > 0
      return tree_lib.aggregate(aggregate_fn, tree, tokens, in_chunks=not draws)

    levels = nn.vmap(
      aggregate,
      variable_axes={"params": None},
      split_rngs={"params": False, "dropout": True},
    )(self.aggregator, tree, tokens.astype(self.dtype))

    b = self.branch_factor
    nodes = jax.vmap(lambda levels: retrieval.join_levels(levels, b))(levels)
    sibling_rows = jax.vmap(lambda keys: retrieval.sibling_rows(keys, b))
    return TreeMemory(
      tree=tree,
      keys=sibling_rows(self._heads(self.key, nodes)),
      values=self._heads(self.value, nodes),
      policy_keys=(
        None if self.share_policy else sibling_rows(self._heads(self.policy_key, nodes))
      ),
    )

  def _build_tree(self, coords: jax.Array, mask: jax.Array) -> tree_lib.Tree:
    rng = None
    if self.order in ("random", "random_projection"):
      rng = jax.random.key(self.order_seed)
    return tree_lib.build_tree(
      coords,
      mask,
      branch_factor=self.branch_factor,
      order=self.order,
      axis=self.axis,
      rng=rng,
    )

  def read(
    self, memory: TreeMemory, queries: jax.Array, train: bool = False
  ) -> Reading:
    """Walks and reads the trees with `[B, M, D]` queries.

    Greedy, unless `train`: then walks are sampled with the stream "policy",
    and the leaves are read in full too, for L_CA and the routing targets.

    Raises:
      ValueError: if shapes do not fit.
    """
    batch = memory.tree.leaf_mask.shape[0]
    projected = self._queries(queries, batch)
    policy_query = None
    if not self.share_policy:
      policy_query = self._heads(self.policy_query, self.query_norm(queries))
    if not train:
      read_one = functools.partial(_read_one, num_paths=self.num_paths)
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
    leaves = _attend_all(projected, _leaves(memory))
    weights = jax.lax.stop_gradient(jnp.mean(leaves.weights, axis=-2))
    weights **= 1 / self.teacher_temperature
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights /= jnp.where(total > 0, total, 1)
    mass = tree_lib.subtree_mass(weights, memory.tree.branch_factor)
    targets = jax.vmap(jax.vmap(objectives.routing_targets))(mass, out.path)
    # The children of the last node visited are the leaves read by themselves.
    last = targets[..., -1, :] if memory.tree.depth else weights
    return Reading(
      output=self._finish(queries, out.output, train),
      num_read=out.num_read,
      walk=out,
      leaf_output=self._finish(queries, leaves.output, train),
      routing_targets=targets,
      best_leaf_read=jnp.max(last, axis=-1) >= jnp.max(weights, axis=-1),
    )

  def read_leaves(self, memory: TreeMemory, queries: jax.Array) -> Reading:
    """Reads all leaves with the same weights: the system ReTreever-Full."""
    return self._read_flat(_leaves(memory), queries, train=False)


def _check_has_tree(read_out: nn.Module) -> None:
  """Raises ValueError on a read-out that has no tree."""
  if not isinstance(read_out, TreeCrossAttention):
    raise ValueError(
      f"read_out must be a TreeCrossAttention, got {type(read_out).__name__}"
    )


def _check_trees(tree: tree_lib.Tree, mask: jax.Array, branch_factor: int) -> None:
  """Raises ValueError unless trees `[B]` can be of contexts with a mask `[B, N]`."""
  if tree.branch_factor != branch_factor:
    raise ValueError(
      f"tree must have the branch factor {branch_factor}, got {tree.branch_factor}"
    )
  batch, num_tokens = mask.shape
  num_leaves = branch_factor ** tree_lib.tree_depth(num_tokens, branch_factor)
  if tree.leaf_index.shape != (batch, num_leaves):
    raise ValueError(
      f"tree must be a batch of {batch} trees of {num_leaves} leaves, for"
      f" {num_tokens} tokens each, got leaves of shape {tree.leaf_index.shape}"
    )
  if tree_lib.is_traced(tree.leaf_index, tree.leaf_mask, mask):
    return
  held = np.zeros((batch, num_tokens + 1), int)
  leaf = np.where(tree.leaf_mask, np.minimum(tree.leaf_index, num_tokens), num_tokens)
  np.add.at(held, (np.arange(batch)[:, None], leaf), np.asarray(tree.leaf_mask))
  if not np.array_equal(held, np.pad(mask, ((0, 0), (0, 1)))):
    raise ValueError(
      "tree must hold every valid token of its context once and no other; build it of"
      " the same coordinates and mask"
    )


def _read_one(query, memory, policy_query, num_paths) -> retrieval.TreeReading:
  return retrieval.read(query, memory, policy_query=policy_query, num_paths=num_paths)


def _attend_one(query, memory, policy_query, rng) -> retrieval.TreeAttentionOutput:
  return retrieval.attend(query, memory, rng=rng, policy_query=policy_query)


def _leaves(memory: TreeMemory) -> FlatMemory:
  """The leaves of a batch of memories."""
  slots = retrieval.level_slots(memory.tree, memory.tree.depth)
  batch, b = memory.values.shape[0], memory.tree.branch_factor
  keys = jnp.swapaxes(memory.keys[:, slots.start // b :], 2, 3)
  keys = keys.reshape(batch, -1, *memory.values.shape[2:])
  return FlatMemory(
    keys=keys[:, : memory.tree.num_leaves],
    values=memory.values[:, slots],
    mask=memory.tree.leaf_mask,
  )


class PointEmbedder(nn.Module):
  """Embeds points of a function: tokens from (x, y), queries from x alone.

  With a skip around the MLPs, a projection of the Fourier features that tokens and
  queries share is added to both: how near two points are is then a bilinear function of
  theirs, which attention learns at once.

  Attributes:
    width: D.
    depth: the layers of the MLPs.
    num_frequencies: of Fourier features that stand beside the coordinates; they
      help where neighbours matter, such as pixels. 0, as published: none.
    position_skip: whether there is the skip. The paper has none.
    dtype: of the activations.
  """

  width: int = 64
  depth: int = 4
  num_frequencies: int = 0
  position_skip: bool = False
  dtype: Dtype = jnp.float32

  def setup(self) -> None:
    features = [self.width] * self.depth
    self.token = MLP(features, nn.elu, self.dtype)
    self.query = MLP(features, nn.elu, self.dtype)
    if self.position_skip:
      self.place = nn.Dense(self.width, use_bias=False, dtype=self.dtype)

  def tokens(self, coords: jax.Array, values: jax.Array) -> jax.Array:
    """`[B, N, C]`, `[B, N, E] -> [B, N, D]`."""
    places = fourier_features(coords, self.num_frequencies)
    x = self.token(jnp.concatenate([places, values], axis=-1))
    return x + self.place(places) if self.position_skip else x

  def queries(self, coords: jax.Array) -> jax.Array:
    """`[B, M, C] -> [B, M, D]`."""
    places = fourier_features(coords, self.num_frequencies)
    x = self.query(places)
    return x + self.place(places) if self.position_skip else x


class SequenceEmbedder(nn.Module):
  """Embeds symbols and their positions: MLP, plus sinusoids, then a ReLU MLP.

  With a skip around the latter, a read-out sees the sinusoids themselves: whether two
  positions are the same, mirrored or a fixed distance apart is then a bilinear function
  of theirs, which attention learns at once.

  Coordinates are positions `[..., 1]`. A query is the embedding of an all-zero
  symbol at its position.

  Attributes:
    width: D.
    num_features: E, the width of a one-hot symbol.
    depth: the layers of the first MLP.
    position_skip: whether there is the skip. The paper has none.
    dtype: of the activations.
  """

  width: int = 64
  num_features: int = 12
  depth: int = 4
  position_skip: bool = True
  dtype: Dtype = jnp.float32

  def setup(self) -> None:
    if self.width % 2:
      raise ValueError(f"width must be even, got {self.width}")
    self.symbol = MLP([self.width] * self.depth, nn.elu, self.dtype)
    hidden = 2 * self.width
    self.mix = MLP([hidden, hidden, self.width], nn.relu, self.dtype)

  def tokens(self, coords: jax.Array, values: jax.Array) -> jax.Array:
    """`[B, N, 1]`, `[B, N, E] -> [B, N, D]`."""
    positions = sinusoids(coords[..., 0], self.width).astype(self.dtype)
    x = self.symbol(values) + positions
    return x + self.mix(x) if self.position_skip else self.mix(x)

  def queries(self, coords: jax.Array) -> jax.Array:
    """`[B, M, 1] -> [B, M, D]`."""
    return self.tokens(coords, jnp.zeros((*coords.shape[:2], self.num_features)))


def fourier_features(coords: jax.Array, num_frequencies: int) -> jax.Array:
  """Coordinates, and sines and cosines of 2**k pi times them, k < K.

  Args:
    coords: `[..., C]`, best within a span of 2, the longest wave.
    num_frequencies: K.

  Returns:
    `[..., C * (1 + 2 * K)]`.

  >>> fourier_features(jnp.array([0.5]), 1).round(3).tolist()
  [0.5, 1.0, -0.0]
  """
  angles = [jnp.pi * 2**k * coords for k in range(num_frequencies)]
  waves = [wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)]
  return jnp.concatenate([coords, *waves], axis=-1)


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
  """Sines and cosines of a position at `width / 2` wavelengths, 2 pi to 2e4 pi.

  >>> sinusoids(jnp.zeros(1), 4).tolist()
  [[0.0, 0.0, 1.0, 1.0]]
  """
  frequencies = 1e4 ** -(jnp.arange(width // 2) / (width // 2))
  angles = positions[..., None] * frequencies
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class ClassificationHead(nn.Module):
  """`[..., D] -> [..., num_classes]` logits, float32."""

  num_classes: int
  hidden: int = 128
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    mlp = MLP([self.hidden, self.num_classes], nn.relu, self.dtype)
    return mlp(x).astype(jnp.float32)


@chex.dataclass(frozen=True)
class Gaussian:
  """Independent normal distributions: mean and std, `[..., E]` float32 each."""

  mean: jax.Array
  std: jax.Array


class GaussianHead(nn.Module):
  """`[..., D]` to a `Gaussian` of E outputs.

  Attributes:
    num_outputs: E.
    min_std: the std is min_std + (1 - min_std) * softplus(raw); or exp(raw) if
      None, which is not bounded.
    hidden: the width of the hidden layer.
    dtype: of the activations.
  """

  num_outputs: int
  min_std: float | None = 0.05
  hidden: int = 128
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> Gaussian:
    mlp = MLP([self.hidden, 2 * self.num_outputs], nn.relu, self.dtype)
    mean, raw = jnp.split(mlp(x).astype(jnp.float32), 2, axis=-1)
    if self.min_std is None:
      return Gaussian(mean=mean, std=jnp.exp(raw))
    std = self.min_std + (1 - self.min_std) * nn.softplus(raw)
    return Gaussian(mean=mean, std=std)


@chex.dataclass(frozen=True)
class Prediction:
  """What `ReTreever` returns.

  Attributes:
    output: what the head makes of the reading, `[B, M, ...]`.
    reading: the `Reading`.
    leaf_output: the same from all leaves, from TCA where `train` is True.
  """

  output: typing.Any
  reading: Reading
  leaf_output: typing.Any = None


class ReTreever(nn.Module):
  """Embed, encode, index, read, predict (Sec. 3.3), with any of the read-outs.

  Attributes:
    embedder: `PointEmbedder` or `SequenceEmbedder`, or any module with their
      two methods.
    read_out: `TreeCrossAttention`, `CrossAttention` or `PerceiverIO`.
    head: `ClassificationHead` or `GaussianHead`, or any module.
    encoder: an `Encoder`, or None.
  """

  embedder: nn.Module
  read_out: nn.Module
  head: nn.Module
  encoder: nn.Module | None = None

  def __call__(
    self,
    coords: jax.Array,
    values: jax.Array,
    query_coords: jax.Array,
    mask: jax.Array | None = None,
    train: bool = False,
  ) -> Prediction:
    """Predicts at the query coordinates from a context.

    Args:
      coords: `[B, N, C]`, where the context's tokens lie.
      values: `[B, N, E]`, what was observed there.
      query_coords: `[B, M, C]`.
      mask: `[B, N]` bool, True at valid tokens; None means all.
      train: whether to sample walks, to read the leaves too, and to use dropout.

    Returns:
      A `Prediction`.

    Raises:
      ValueError: if a shape or dtype is wrong; outside a transformation also
        if a context has no valid token or holds NaN.
    """
    return self.read(self.index(coords, values, mask, train), query_coords, train)

  def index(
    self,
    coords: jax.Array,
    values: jax.Array,
    mask: jax.Array | None = None,
    train: bool = False,
    tree: tree_lib.Tree | None = None,
  ) -> FlatMemory | TreeMemory:
    """Makes a memory of each context, once; arguments and errors as `__call__`.

    `tree` is for `TreeCrossAttention`: a batch of trees over the coordinates. Large
    contexts gain by it on a CPU, as `build_tree` is faster outside `jax.jit`.
    """
    if coords.ndim != 3:
      raise ValueError(f"coords must be [B, N, C], got shape {coords.shape}")
    tree_lib.check_context(coords, mask, values=values)
    if mask is None:
      mask = jnp.ones(coords.shape[:2], bool)
    coords = jnp.where(mask[..., None], coords, 0)
    values = jnp.where(mask[..., None], values, 0)
    tokens = self.embedder.tokens(coords, values)
    if self.encoder is not None:
      tokens = self.encoder(tokens, mask, train)
    given = {}
    if tree is not None:
      _check_has_tree(self.read_out)
      given["tree"] = tree
    return self.read_out.index(tokens, coords, mask, train, **given)

  def read(
    self,
    memory: FlatMemory | TreeMemory,
    query_coords: jax.Array,
    train: bool = False,
  ) -> Prediction:
    """Predicts at `[B, M, C]` query coordinates from memories.

    Raises:
      ValueError: if a shape or dtype is wrong; outside a transformation also if
        a coordinate is not finite.
    """
    tree_lib.check_finite(query_coords=query_coords)
    reading = self.read_out.read(memory, self.embedder.queries(query_coords), train)
    leaf_output = None
    if reading.leaf_output is not None:
      leaf_output = self.head(reading.leaf_output)
    return Prediction(
      output=self.head(reading.output), reading=reading, leaf_output=leaf_output
    )

  def read_leaves(self, memory: TreeMemory, query_coords: jax.Array) -> Prediction:
    """Predicts from all leaves of a tree's memory: ReTreever-Full.

    Arguments and errors as `read`; ValueError also if the read-out has no tree.
    """
    _check_has_tree(self.read_out)
    tree_lib.check_finite(query_coords=query_coords)
    queries = self.embedder.queries(query_coords)
    reading = self.read_out.read_leaves(memory, queries)
    return Prediction(output=self.head(reading.output), reading=reading)
