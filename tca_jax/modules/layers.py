"""Network layers: feed-forward and attention blocks, encoder, aggregator."""

from collections.abc import Callable
from collections.abc import Sequence
import math
import typing

from flax import linen as nn
import jax
import jax.numpy as jnp

from tca_jax import attention
from tca_jax.checks import as_array
from tca_jax.checks import check_mask
from tca_jax.checks import check_rate
from tca_jax.checks import check_sizes
from tca_jax.masking import masked_mean
from tca_jax.masking import masked_softmax

__all__ = [
  "MLP",
  "Aggregator",
  "BiasOfNodes",
  "DistanceBias",
  "Dtype",
  "Encoder",
  "FeedForward",
  "RelativeLayer",
  "SelfAttention",
  "TransformerLayer",
]

Dtype = typing.Any  # a data type that jax.numpy accepts


class MLP(nn.Module):
  """Dense layers with an activation between them, `[..., D] -> [..., features[-1]]`.

  Attributes:
    features: the width of each layer.
    activation: the function between layers; not applied after the last one.
    dtype: the data type of activations.
  """

  features: Sequence[int]
  activation: Callable[[jax.Array], jax.Array] = nn.elu
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    check_sizes(**{f"features[{i}]": width for i, width in enumerate(self.features)})
    for i, width in enumerate(self.features):
      x = self.activation(x) if i else x
      x = nn.Dense(width, dtype=self.dtype)(x)
    return x


class FeedForward(nn.Module):
  """Pre-norm GEGLU block with a skip connection, `[..., D] -> [..., D]`.

  Attributes:
    hidden: the width of the hidden layer.
    dropout: the dropout rate of the block's output.
    dtype: the data type of activations.
  """

  hidden: int = 128
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    check_sizes(hidden=self.hidden)
    check_rate(dropout=self.dropout)
    h = nn.LayerNorm(dtype=self.dtype)(x)
    gate, h = _TwoDense(self.hidden, self.dtype, name="Dense_0")(h)
    h = nn.Dense(x.shape[-1], dtype=self.dtype, name="Dense_1")(nn.gelu(gate) * h)
    return x + nn.Dropout(self.dropout)(h, deterministic=not train)


class _TwoDense(nn.Module):
  """Two dense layers of one input, with the parameters of one of twice the width.

  Splitting the parameters is faster than splitting the output, whose halves would be
  copied, and joined again in the gradient.

  Attributes:
    features: the width of each output.
    dtype: the data type of activations.
  """

  features: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> list[jax.Array]:
    """`[..., D]` -> two of `[..., features]`."""
    shape = (x.shape[-1], 2 * self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
    x, kernel, bias = (part.astype(self.dtype) for part in (x, kernel, bias))
    kernels, biases = jnp.split(kernel, 2, axis=-1), jnp.split(bias, 2)
    return [
      jnp.matmul(x, half) + jnp.expand_dims(offset, range(x.ndim - 1))
      for half, offset in zip(kernels, biases, strict=True)
    ]


class SelfAttention(nn.Module):
  """Multi-head self-attention, `[B, N, D]` with mask `[B, N]` -> `[B, N, D]`.

  Attributes:
    num_heads: H, must divide D.
    small_groups: whether to use `attention.sibling_attention`, which is faster for
      many groups of few tokens, such as the children of each node of a tree. Then
      any number of leading axes is allowed.
    dtype: the data type of activations.
  """

  num_heads: int = 4
  small_groups: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
    check_sizes(num_heads=self.num_heads)

    def project(name: str) -> nn.Dense:
      return nn.Dense(x.shape[-1], dtype=self.dtype, name=name)

    queries, keys, values = (
      attention.split_heads(project(name)(x), self.num_heads)
      for name in ("query", "key", "value")
    )
    if self.small_groups:
      attended = attention.sibling_attention(queries, keys, values, mask)
    else:
      attend = jax.vmap(attention.cross_attention)
      attended = attend(queries, keys, values, mask).output
    return project("out")(attention.merge_heads(attended))


class TransformerLayer(nn.Module):
  """Pre-norm self-attention and feed-forward.

  Attributes:
    num_heads: H, must divide D.
    hidden: the width of the feed-forward block.
    dropout: the dropout rate of the output of each block.
    small_groups: see `SelfAttention`.
    dtype: the data type of activations.
  """

  num_heads: int = 4
  hidden: int = 128
  dropout: float = 0.0
  small_groups: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, train: bool = False) -> jax.Array:
    """`[B, N, D]`, mask `[B, N]` -> `[B, N, D]`; masked tokens are ignored."""
    attend = SelfAttention(self.num_heads, self.small_groups, self.dtype)
    h = attend(nn.LayerNorm(dtype=self.dtype)(x), mask)
    x = x + nn.Dropout(self.dropout)(h, deterministic=not train)
    return FeedForward(self.hidden, self.dropout, self.dtype)(x, train)


class Encoder(nn.Module):
  """A stack of transformer layers, `[B, N, D]` with mask `[B, N]` -> `[B, N, D]`.

  With `num_layers=0` it only zeroes masked tokens.

  Attributes:
    num_layers: the number of layers.
    num_heads: H, must divide D.
    hidden: the width of the feed-forward blocks.
    dropout: the dropout rate of the output of each block.
    dtype: the data type of activations.
  """

  num_layers: int = 6
  num_heads: int = 4
  hidden: int = 128
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, train: bool = False) -> jax.Array:
    check_sizes(at_least=0, num_layers=self.num_layers)
    x, mask = as_array("x", x), as_array("mask", mask)
    check_mask(mask)
    x = jnp.where(mask[..., None], x, 0)
    for _ in range(self.num_layers):
      x = TransformerLayer(self.num_heads, self.hidden, self.dropout, dtype=self.dtype)(
        x, mask, train
      )
    return x


class RelativeLayer(nn.Module):
  """Pre-norm cross attention of each query to its own nodes, and feed-forward.

  The key projection is applied to the query and the value projection to the attended
  nodes, so that no node is projected. This gives the same result for less work, because
  every query reads other nodes.

  Attributes:
    num_heads: H, must divide D.
    hidden: the width of the feed-forward block.
    dropout: the dropout rate of the output of each block.
    dtype: the data type of activations.
  """

  num_heads: int = 4
  hidden: int = 128
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    queries: jax.Array,
    nodes: jax.Array,
    bias: jax.Array,
    mask: jax.Array,
    train: bool = False,
  ) -> jax.Array:
    """`[..., D]`, `[..., S, D']`, `[..., H, S]`, `[..., S]` -> `[..., D]`.

    Args:
      queries: `[..., D]`.
      nodes: `[..., S, D']`, the nodes that each query reads.
      bias: `[..., H, S]`, added to the attention logits.
      mask: `[..., S]` bool, True at valid nodes.
      train: whether to use dropout.
    """
    width, num_heads = queries.shape[-1], self.num_heads
    head_width = width // num_heads
    drop = nn.Dropout(self.dropout, deterministic=not train)
    init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
    shape = (nodes.shape[-1], num_heads, head_width)
    key = self.param("key", init, shape, jnp.float32).astype(self.dtype)
    value = self.param("value", init, shape, jnp.float32).astype(self.dtype)

    x = nn.LayerNorm(dtype=self.dtype)(queries)
    x = nn.Dense(width, dtype=self.dtype, name="query")(x)
    x = x.reshape(*x.shape[:-1], num_heads, head_width) / math.sqrt(head_width)
    x = jnp.einsum("...hd,Dhd->...hD", x, key)
    logits = jnp.einsum("...hD,...sD->...hs", x, nodes).astype(jnp.float32) + bias
    weights = masked_softmax(logits, mask[..., None, :]).astype(self.dtype)
    x = jnp.einsum("...hs,...sD->...hD", weights, nodes)
    x = jnp.einsum("...hD,Dhd->...hd", x, value)
    x = nn.Dense(width, dtype=self.dtype, name="out")(x.reshape(queries.shape))
    queries = queries + drop(x)
    x = nn.LayerNorm(dtype=self.dtype)(queries)
    x = MLP([self.hidden, width], nn.gelu, self.dtype)(x)
    return queries + drop(x)


class BiasOfNodes(nn.Module):
  """A linear layer whose outputs come before the axis of nodes, as in logits.

  On a CPU, moving the axis of the result of `nn.Dense` takes longer than the layer.

  Attributes:
    num_outputs: the number of outputs of each node.
    dtype: the data type of activations.
  """

  num_outputs: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, features: jax.Array) -> jax.Array:
    """`[..., S, F]` -> `[..., num_outputs, S]`."""
    shape = (features.shape[-1], self.num_outputs)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
    features, kernel, bias = (x.astype(self.dtype) for x in (features, kernel, bias))
    bias = jnp.expand_dims(bias[:, None], range(features.ndim - 2))
    return jnp.einsum("...sf,fk->...ks", features, kernel) + bias


class DistanceBias(nn.Module):
  """Adds a bias for each head to the logits of dot-product attention: distances.

  The bias of a node with centroid c, sides s and n tokens, for a query at q, is

    u log(n) + v |s|^2 - w |q - c|^2

  with learned numbers u, v and w of each head, where w is positive. As -w |q|^2 is the
  same for all nodes, it is left out, and the rest is a dot product: keys get the
  columns (c, |c|^2, |s|^2, log(n)), and queries the columns (2 w q, -w, v, u). So a walk
  down a tree gathers as often as without the bias. Locations should be of order 1 and
  centred around 0, and matrix products precise, as they are on a CPU: on an accelerator,
  set JAX's option `jax_default_matmul_precision` to "float32".

  Attributes:
    num_heads: H.
  """

  num_heads: int

  def setup(self) -> None:
    self.log_weight = self.param("log_weight", self._spread_weights)
    self.other = self.param("other", nn.initializers.zeros, (self.num_heads, 2))

  def _spread_weights(self, rng: jax.Array) -> jax.Array:
    """From 1/4 to 16 in equal ratios, one weight for each head, as logarithms."""
    del rng
    return jnp.linspace(-math.log(4), math.log(16), self.num_heads, dtype=jnp.float32)

  def keys(
    self, keys: jax.Array, centroid: jax.Array, sides: jax.Array, count: jax.Array
  ) -> jax.Array:
    """Appends columns to keys, in float32.

    Args:
      keys: `[..., H, Dh]`.
      centroid: `[..., C]`, the mean locations of the nodes' tokens.
      sides: `[..., C]`, the sides of the nodes' boxes.
      count: `[...]`, the numbers of tokens.

    Returns:
      `[..., H, Dh + C + 3]`.
    """
    centroid, sides, count = (x.astype(jnp.float32) for x in (centroid, sides, count))
    columns = [
      centroid,
      jnp.sum(centroid**2, axis=-1, keepdims=True),
      jnp.sum(sides**2, axis=-1, keepdims=True),
      jnp.log(jnp.maximum(count, 1))[..., None],
    ]
    columns = jnp.concatenate(columns, axis=-1)[..., None, :]
    shape = (*keys.shape[:-1], columns.shape[-1])
    columns = jnp.broadcast_to(columns, shape)
    return jnp.concatenate([keys.astype(jnp.float32), columns], axis=-1)

  def queries(self, queries: jax.Array, coords: jax.Array) -> jax.Array:
    """Appends columns to queries, in float32.

    Args:
      queries: `[..., H, Dh]`.
      coords: `[..., C]`, the locations of the queries.

    Returns:
      `[..., H, Dh + C + 3]`, scaled so that attention, which divides by the root of its
      width, divides the first columns by the root of Dh and the others by 1.
    """
    weight = jnp.exp(self.log_weight)[:, None]
    weight = jnp.expand_dims(weight, range(coords.ndim - 1))
    other = jnp.expand_dims(self.other, range(coords.ndim - 1))
    near = 2 * weight * coords.astype(jnp.float32)[..., None, :]
    constant = jnp.concatenate([-weight, other], axis=-1)
    constant = jnp.broadcast_to(constant, (*near.shape[:-1], constant.shape[-1]))
    content = queries.astype(jnp.float32) / math.sqrt(queries.shape[-1])
    columns = jnp.concatenate([content, near, constant], axis=-1)
    return columns * math.sqrt(columns.shape[-1])


class Aggregator(nn.Module):
  """One transformer layer over the children, then their masked mean (Sec. 3.1).

  A bound aggregator is a `tree.AggregateFn`: it maps children `[..., b, D]` and mask
  `[..., b]` to `[..., D]`. Where every child is masked, the result is 0 and has no
  gradient.

  Attributes:
    num_heads: H, must divide D.
    hidden: the width of the feed-forward block.
    dropout: the dropout rate of the output of each block.
    dtype: the data type of activations.
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
    return masked_mean(x, mask[..., None], axis=-2)
