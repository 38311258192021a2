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
from tca_jax.modules.layers import Dtype
from tca_jax.modules.layers import FeedForward
from tca_jax.tree import Tree

__all__ = ["ReadOut", "Reading", "TrainingReading", "attend_all"]


@chex.dataclass(frozen=True)
class Reading:
  """The result of reading each of B memories with M queries.

  Attributes:
    output: `[B, M, D]`.
    num_read: `[B, M]` int32, the number of tokens, latents or nodes that each query
      read.
    walk: the nodes read, with leading axes `[B, M]`; None for read-outs without a
      tree.
  """

  output: jax.Array
  num_read: jax.Array
  walk: retrieval.TreeReading | None = None


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
  """The interface and the shared layers of the read-outs.

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
    """Indexes a context and reads it, as a drop-in cross-attention layer.

    Args:
      queries: `[B, M, D]`.
      tokens: `[B, N, D]`.
      coords: `[B, N, C]`, the location of each token.
      mask: `[B, N]` bool, True at valid tokens; None means that all are valid.
      train: whether to sample walks and to use dropout.

    Returns:
      `[B, M, D]`.

    Raises:
      ValueError: see `index` and `read`.
    """
    return self.read(self.index(tokens, coords, mask, train), queries, train).output

  def index(
    self,
    tokens: jax.Array,
    coords: jax.Array,
    mask: jax.Array | None = None,
    train: bool = False,
    tree: Tree | None = None,
  ) -> typing.Any:
    """Computes the memory of each context.

    Args:
      tokens: `[B, N, D]`.
      coords: `[B, N, C]`, the location of each token.
      mask: `[B, N]` bool, True at valid tokens; None means that all are valid.
      train: whether to use dropout.
      tree: a batch of trees over the same coordinates and mask, for
        `TreeCrossAttention`; None means that the trees are built here.

    Returns:
      A `TreeMemory` from `TreeCrossAttention`, else a `FlatMemory`, with leading axis
      B.

    Raises:
      ValueError: if a shape, a dtype or an option is wrong, if a given tree does not
        fit the tokens, or if a tree is given to a read-out without one; outside a
        transformation also if a context has no valid token, or if a coordinate or a
        feature of a valid token is not finite.
    """
    coords, mask, tokens = checks.clean_context(coords, mask, tokens=tokens)
    return self.store(tokens, coords, mask, train, tree)

  def read(
    self,
    memory: typing.Any,
    queries: jax.Array,
    train: bool = False,
    num_paths: int = 1,
  ) -> Reading:
    """Reads memories with queries.

    Args:
      memory: the result of `index` for B contexts.
      queries: `[B, M, D]`.
      train: whether to use dropout. `TreeCrossAttention` then also samples its walks
        with the random stream "policy", and reads all leaves.
      num_paths: the number of paths that each query follows in a tree, see
        `retrieval.read`; must be 1 for read-outs without a tree, and in training.

    Returns:
      A `Reading`; from `TreeCrossAttention` with train=True a `TrainingReading`.

    Raises:
      ValueError: if a shape or dtype is wrong, or if num_paths is not allowed; outside
        a transformation also if a query is not finite.
    """
    checks.check_finite(queries=queries)
    return self.retrieve(memory, queries, train, num_paths)

  def read_leaves(self, memory: typing.Any, queries: jax.Array) -> Reading:
    """Reads all leaves of a tree with the same parameters (ReTreever-Full).

    Args:
      memory: the result of `TreeCrossAttention.index` for B contexts.
      queries: `[B, M, D]`.

    Returns:
      A `Reading` without a walk.

    Raises:
      ValueError: if a shape or dtype is wrong, or if the read-out has no tree; outside
        a transformation also if a query is not finite.
    """
    checks.check_finite(queries=queries)
    return self.retrieve_leaves(memory, queries)

  def store(
    self,
    tokens: jax.Array,
    coords: jax.Array,
    mask: jax.Array,
    train: bool,
    tree: Tree | None,
  ) -> typing.Any:
    """Implements `index`; tokens and coords are checked, and 0 where masked."""
    raise NotImplementedError

  def retrieve(
    self, memory: typing.Any, queries: jax.Array, train: bool, num_paths: int
  ) -> Reading:
    """Implements `read`; queries are checked."""
    raise NotImplementedError

  def retrieve_leaves(self, memory: typing.Any, queries: jax.Array) -> Reading:
    """Implements `read_leaves`; queries are checked."""
    del memory, queries
    raise self._no_tree_error()

  def _no_tree_error(self) -> ValueError:
    return ValueError(
      f"read_out must be a TreeCrossAttention, got {type(self).__name__}"
    )

  def _store_flat(self, tokens: jax.Array, mask: jax.Array) -> FlatMemory:
    return FlatMemory(
      keys=self._heads(self.key, tokens),
      values=self._heads(self.value, tokens),
      mask=mask,
    )

  def _retrieve_flat(
    self, memory: FlatMemory, queries: jax.Array, train: bool
  ) -> Reading:
    """Full attention over a flat memory."""
    out = attend_all(self._queries(queries, memory.mask.shape[0]), memory)
    num_read = jnp.sum(memory.mask, axis=-1, keepdims=True, dtype=jnp.int32)
    return Reading(
      output=self._finish(queries, out.output, train),
      num_read=jnp.broadcast_to(num_read, queries.shape[:2]),
    )

  def _check_tokens(self, tokens: jax.Array) -> None:
    if tokens.ndim != 3 or tokens.shape[-1] != self.width:
      raise ValueError(f"tokens must be [B, N, {self.width}], got shape {tokens.shape}")

  def _heads(self, projection: nn.Dense, x: jax.Array) -> jax.Array:
    """`[..., D] -> [..., H, Dh]`."""
    return attention.split_heads(projection(x), self.num_heads)

  def _queries(self, queries: jax.Array, batch: int) -> jax.Array:
    """Projects queries, `[B, M, D] -> [B, M, H, Dh]`."""
    if queries.ndim != 3 or queries.shape[::2] != (batch, self.width):
      raise ValueError(
        f"queries must be [{batch}, M, {self.width}], got {queries.shape}"
      )
    return self._heads(self.query, self.query_norm(queries))

  def _finish(self, queries: jax.Array, attended: jax.Array, train: bool) -> jax.Array:
    """Projection, skip connection, feed-forward: `[B, M, H, Dh] -> [B, M, D]`."""
    h = self.out(attention.merge_heads(attended))
    h = queries + self.out_dropout(h, deterministic=not train)
    return self.feed_forward(h, train)


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
