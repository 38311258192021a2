"""The interface of the read-outs, and the layers that they share."""

import typing

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from tca_jax import attention
from tca_jax import checks
from tca_jax import retrieval
from tca_jax.memory import FlatMemory
from tca_jax.modules.layers import DistanceBias
from tca_jax.modules.layers import Dtype
from tca_jax.modules.layers import FeedForward
from tca_jax.tree import Tree
from tca_jax.walk import NodesRead

__all__ = [
  "DotProductReadOut",
  "ReadOut",
  "Reading",
  "TrainingReading",
  "Units",
  "attend_all",
]


@chex.dataclass(frozen=True)
class Units:
  """The units in which a relative read-out describes values.

  If the head gives a mean m and a standard deviation s, the prediction has the mean
  origin + scale * m and the standard deviation std_scale * s.

  Attributes:
    origin: `[B, M, E]` float32.
    scale: `[B, M, E]` float32, positive.
    std_scale: `[B, M, E]` float32, positive.
  """

  origin: jax.Array
  scale: jax.Array
  std_scale: jax.Array


@chex.dataclass(frozen=True)
class Reading:
  """The result of reading each of B memories with M queries.

  Attributes:
    output: `[B, M, D]`.
    num_read: `[B, M]` int32, the number of tokens, latents or nodes that each query
      read.
    walk: the nodes read, with leading axes `[B, M]`; None for read-outs without a
      tree.
    units: the `Units` of a prediction from the output; None for read-outs that are not
      relative.
  """

  output: jax.Array
  num_read: jax.Array
  walk: NodesRead | None = None
  units: Units | None = None


@chex.dataclass(frozen=True, kw_only=True)
class TrainingReading(Reading):
  """The result of `TreeCrossAttention.read` with train=True.

  Attributes:
    walk: the sampled walks and the policy along them, with leading axes `[B, M]`.
    leaf_output: `[B, M, D]`, the output of full attention over all leaves with the
      same parameters.
    leaf_weights: `[B, M, L]` float32, the weights of that attention, averaged over
      heads.
  """

  walk: retrieval.TreeAttentionOutput
  leaf_output: jax.Array
  leaf_weights: jax.Array


class ReadOut(nn.Module):
  """The interface of the read-outs.

  The public methods check and clean their inputs, then call the hooks `store`,
  `retrieve` and `retrieve_leaves`. A module that has already checked its inputs, such
  as `ReTreever`, calls the hooks directly.

  Attributes:
    width: D, the width of tokens, queries and outputs.
    num_heads: H, must divide D.
    hidden: the width of the feed-forward block.
    dropout: the dropout rate of the output of each block.
    dtype: the data type of activations.
  """

  width: int = 64
  num_heads: int = 4
  hidden: int = 128
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  def __call__(
    self,
    queries: jax.Array,
    tokens: jax.Array,
    coords: jax.Array,
    mask: jax.Array | None = None,
    train: bool = False,
    *,
    values: jax.Array | None = None,
    query_coords: jax.Array | None = None,
  ) -> jax.Array:
    """Indexes a context and reads it, as a drop-in cross-attention layer.

    Args:
      queries: `[B, M, D]`.
      tokens: `[B, N, D]`.
      coords: `[B, N, C]`, the location of each token.
      mask: `[B, N]` bool, True at valid tokens; None means that all are valid.
      train: whether to sample walks and to use dropout.
      values: `[B, N, E]`, the observed values, which relative read-outs need.
      query_coords: `[B, M, C]`, the locations of the queries, which they need too, and
        so do read-outs with `sees_distance`.

    Returns:
      `[B, M, D]`.

    Raises:
      ValueError: see `index` and `read`.
    """
    memory = self.index(tokens, coords, mask, train, values=values)
    return self.read(memory, queries, train, query_coords=query_coords).output

  def index(
    self,
    tokens: jax.Array,
    coords: jax.Array,
    mask: jax.Array | None = None,
    train: bool = False,
    tree: Tree | None = None,
    *,
    values: jax.Array | None = None,
  ) -> typing.Any:
    """Computes the memory of each context.

    Args:
      tokens: `[B, N, D]`.
      coords: `[B, N, C]`, the location of each token.
      mask: `[B, N]` bool, True at valid tokens; None means that all are valid.
      train: whether to use dropout, and to make memories for training.
      tree: a batch of trees over the same coordinates and mask, for read-outs with a
        tree; None means that the trees are built here.
      values: `[B, N, E]`, the observed values, which relative read-outs need.

    Returns:
      The memory, with leading axis B: a `TreeMemory` from `TreeCrossAttention`, which
      is a `TrainingMemory` if train is True; a `NodeMemory` from
      `RelativeTreeCrossAttention`, a `PointMemory` from `RelativeCrossAttention`, else a
      `FlatMemory`.

    Raises:
      ValueError: if a shape, a dtype or an option is wrong, if a given tree does not
        fit the tokens, if a tree is given to a read-out without one, or if values are
        missing; outside a transformation also if a context has no valid token, or if
        a coordinate, a value or a feature of a valid token is not finite.
    """
    given = {} if values is None else {"values": values}
    coords, mask, tokens, *cleaned = checks.clean_context(
      coords, mask, tokens=tokens, **given
    )
    values = cleaned[0] if cleaned else None
    return self.store(tokens, coords, values, mask, train, tree)

  def read(
    self,
    memory: typing.Any,
    queries: jax.Array,
    train: bool = False,
    num_paths: int | None = None,
    *,
    query_coords: jax.Array | None = None,
  ) -> Reading:
    """Reads memories with queries.

    Args:
      memory: the result of `index` for B contexts.
      queries: `[B, M, D]`.
      train: whether to use dropout. `TreeCrossAttention` then also samples its walks
        with the random stream "policy", and reads all leaves.
      num_paths: the number of paths that each query follows in a tree, see
        `retrieval.read`; None means the read-out's own number. For read-outs without
        a tree, and for `TreeCrossAttention` in training, it must be 1 or None.
      query_coords: `[B, M, C]`, the locations of the queries, which relative read-outs
        and those with `sees_distance` need.

    Returns:
      A `Reading`; from `TreeCrossAttention` with train=True a `TrainingReading`.

    Raises:
      ValueError: if a shape or dtype is wrong, if num_paths is not allowed, or if
        query_coords are missing; outside a transformation also if a query or a
        location is not finite.
    """
    queries, query_coords = _check_queries(queries, query_coords)
    return self.retrieve(memory, queries, query_coords, train, num_paths)

  def read_leaves(
    self,
    memory: typing.Any,
    queries: jax.Array,
    query_coords: jax.Array | None = None,
  ) -> Reading:
    """Reads all leaves of a tree with the same parameters (ReTreever-Full).

    Args:
      memory: the result of `index` of a read-out with a tree, for B contexts.
      queries: `[B, M, D]`.
      query_coords: see `read`.

    Returns:
      A `Reading` without a walk.

    Raises:
      ValueError: if a shape or dtype is wrong, or if the read-out has no tree; outside
        a transformation also if a query is not finite.
    """
    queries, query_coords = _check_queries(queries, query_coords)
    return self.retrieve_leaves(memory, queries, query_coords)

  def store(
    self,
    tokens: jax.Array,
    coords: jax.Array,
    values: jax.Array | None,
    mask: jax.Array,
    train: bool,
    tree: Tree | None,
  ) -> typing.Any:
    """Implements `index`; arrays are checked, and 0 where masked."""
    raise NotImplementedError

  def retrieve(
    self,
    memory: typing.Any,
    queries: jax.Array,
    query_coords: jax.Array | None,
    train: bool,
    num_paths: int | None,
  ) -> Reading:
    """Implements `read`; queries are checked."""
    raise NotImplementedError

  def retrieve_leaves(
    self, memory: typing.Any, queries: jax.Array, query_coords: jax.Array | None
  ) -> Reading:
    """Implements `read_leaves`; queries are checked."""
    del memory, queries, query_coords
    raise self._no_tree_error()

  def _no_tree_error(self) -> ValueError:
    return ValueError(
      f"read_out must have a tree, such as TreeCrossAttention, got"
      f" {type(self).__name__}"
    )

  def _check_heads(self, **widths: int) -> None:
    sizes = dict(width=self.width, num_heads=self.num_heads, hidden=self.hidden)
    checks.check_sizes(**sizes | widths)
    checks.check_rate(dropout=self.dropout)
    for name, width in widths.items():
      if width % self.num_heads:
        raise ValueError(
          f"{name} must be a multiple of num_heads={self.num_heads}, got {width}"
        )

  def _check_no_tree(self, tree: Tree | None) -> None:
    if tree is not None:
      raise self._no_tree_error()

  def _check_one_path(self, num_paths: int | None) -> None:
    if num_paths not in (1, None):
      raise ValueError(
        f"num_paths must be 1 for {type(self).__name__}, which has no tree, got"
        f" {num_paths}"
      )

  def _check_tokens(self, tokens: jax.Array) -> None:
    if tokens.ndim != 3 or tokens.shape[-1] != self.width:
      raise ValueError(f"tokens must be [B, N, {self.width}], got shape {tokens.shape}")


class DotProductReadOut(ReadOut):
  """The layers of the read-outs whose attention is a dot product of embeddings.

  Attributes:
    sees_distance: whether attention, and the policy, see how far a node is from the
      query, by a `DistanceBias`. Queries then need locations. No axis is periodic.
  """

  sees_distance: bool = False

  def setup(self) -> None:
    self._check_heads(width=self.width)
    self.query_norm = nn.LayerNorm(dtype=self.dtype)
    self.query = nn.Dense(self.width, dtype=self.dtype)
    self.key = nn.Dense(self.width, dtype=self.dtype)
    self.value = nn.Dense(self.width, dtype=self.dtype)
    self.out = nn.Dense(self.width, dtype=self.dtype)
    self.out_dropout = nn.Dropout(self.dropout)
    self.feed_forward = FeedForward(self.hidden, self.dropout, self.dtype)
    if self.sees_distance:
      self.distance = DistanceBias(self.num_heads)

  def _store_flat(
    self, tokens: jax.Array, mask: jax.Array, coords: jax.Array | None = None
  ) -> FlatMemory:
    keys = self._heads(self.key, tokens)
    if self.sees_distance and coords is not None:
      keys = self.distance.keys(keys, coords, jnp.zeros_like(coords), mask)
    return FlatMemory(keys=keys, values=self._heads(self.value, tokens), mask=mask)

  def _retrieve_flat(
    self,
    memory: FlatMemory,
    queries: jax.Array,
    query_coords: jax.Array | None,
    train: bool,
  ) -> Reading:
    """Full attention over a flat memory."""
    projected = self._queries(queries, query_coords, memory.mask.shape[0])
    out = attend_all(projected, memory)
    num_read = jnp.sum(memory.mask, axis=-1, keepdims=True, dtype=jnp.int32)
    return Reading(
      output=self._finish(queries, out.output, train),
      num_read=jnp.broadcast_to(num_read, queries.shape[:2]),
    )

  def _heads(self, projection: nn.Dense, x: jax.Array) -> jax.Array:
    """`[..., D] -> [..., H, Dh]`."""
    return attention.split_heads(projection(x), self.num_heads)

  def _queries(
    self, queries: jax.Array, query_coords: jax.Array | None, batch: int
  ) -> jax.Array:
    """Projects queries, `[B, M, D] -> [B, M, H, Dh]`."""
    if queries.ndim != 3 or queries.shape[::2] != (batch, self.width):
      raise ValueError(
        f"queries must be [{batch}, M, {self.width}], got {queries.shape}"
      )
    projected = self._heads(self.query, self.query_norm(queries))
    if not self.sees_distance:
      return projected
    return self.distance.queries(projected, self._check_coords(query_coords))

  def _check_coords(self, query_coords: jax.Array | None) -> jax.Array:
    if query_coords is None:
      raise ValueError("query_coords must be given to a read-out with sees_distance")
    return query_coords

  def _finish(self, queries: jax.Array, attended: jax.Array, train: bool) -> jax.Array:
    """Projection, skip connection, feed-forward: `[B, M, H, Dh] -> [B, M, D]`."""
    h = self.out(attention.merge_heads(attended))
    h = queries + self.out_dropout(h, deterministic=not train)
    return self.feed_forward(h, train)


def _check_queries(
  queries: jax.Array, query_coords: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
  """Converts queries and their locations; raises an error if they are not valid."""
  queries = checks.as_array("queries", queries)
  checks.check_finite(queries=queries)
  if query_coords is not None:
    query_coords = checks.as_array("query_coords", query_coords)
    checks.check_finite(query_coords=query_coords)
    if query_coords.ndim != 3 or query_coords.shape[:2] != queries.shape[:2]:
      raise ValueError(
        f"query_coords must be {queries.shape[:2]} + (C,) to match queries"
        f" {queries.shape}, got shape {query_coords.shape}"
      )
  return queries, query_coords


def attend_all(
  queries: jax.Array, memory: FlatMemory
) -> attention.CrossAttentionOutput:
  """Computes full attention of each query over the memory of its context.

  Args:
    queries: `[B, M, H, Dh]`.
    memory: a batch of B memories.

  Returns:
    A `CrossAttentionOutput` with leading axis B.
  """
  return jax.vmap(attention.cross_attention)(
    queries, memory.keys, memory.values, memory.mask
  )
