"""Embedders: from coordinates and values to tokens and queries."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from tca_jax.checks import check_sizes
from tca_jax.modules.layers import Dtype
from tca_jax.modules.layers import MLP

__all__ = [
  "PlacelessEmbedder",
  "PointEmbedder",
  "SequenceEmbedder",
  "fourier_features",
  "sinusoids",
]


class PointEmbedder(nn.Module):
  """Embeds points of a function: tokens from (x, y), queries from x only.

  With `position_skip`, one linear projection of the Fourier features, shared by tokens
  and queries, is added to both embeddings. Proximity is then bilinear in these
  features, so that dot-product attention can represent it directly.

  Attributes:
    width: D.
    depth: the number of layers of each MLP.
    num_frequencies: the number of Fourier frequencies that are appended to the
      coordinates; they help where neighbours matter, as in images. 0, as published,
      appends none.
    position_skip: whether to add the skip connection around the MLPs. The paper has
      none.
    dtype: the data type of activations.
  """

  width: int = 64
  depth: int = 4
  num_frequencies: int = 0
  position_skip: bool = False
  dtype: Dtype = jnp.float32

  def setup(self) -> None:
    check_sizes(width=self.width, depth=self.depth)
    check_sizes(at_least=0, num_frequencies=self.num_frequencies)
    features = [self.width] * self.depth
    self.token = MLP(features, nn.elu, self.dtype)
    self.query = MLP(features, nn.elu, self.dtype)
    if self.position_skip:
      # The attribute's name is the name of a parameter in checkpoints.
      self.place = nn.Dense(self.width, use_bias=False, dtype=self.dtype)

  def tokens(self, coords: jax.Array, values: jax.Array) -> jax.Array:
    """Embeds observations, `[B, N, C]` and `[B, N, E]` -> `[B, N, D]`."""
    positions = fourier_features(coords, self.num_frequencies)
    x = self.token(jnp.concatenate([positions, values], axis=-1))
    return x + self.place(positions) if self.position_skip else x

  def queries(self, coords: jax.Array) -> jax.Array:
    """Embeds query coordinates, `[B, M, C] -> [B, M, D]`."""
    positions = fourier_features(coords, self.num_frequencies)
    x = self.query(positions)
    return x + self.place(positions) if self.position_skip else x


class PlacelessEmbedder(nn.Module):
  """Embeds points without their locations, which relative read-outs see themselves.

  Attributes:
    width: D.
    sees_values: whether tokens are a projection of the observed values; otherwise all
      tokens are equal, so that predictions do not depend on the values' origin and
      scale.
    dtype: the data type of activations.
  """

  width: int = 64
  sees_values: bool = False
  dtype: Dtype = jnp.float32

  def setup(self) -> None:
    check_sizes(width=self.width)
    init = nn.initializers.normal(1.0)
    self.token = self.param("token", init, (self.width,), jnp.float32)
    self.query = self.param("query", init, (self.width,), jnp.float32)
    if self.sees_values:
      self.value = nn.Dense(self.width, use_bias=False, dtype=self.dtype)

  def tokens(self, coords: jax.Array, values: jax.Array) -> jax.Array:
    """Embeds observations, `[B, N, C]` and `[B, N, E]` -> `[B, N, D]`."""
    token = self.token.astype(self.dtype)
    if self.sees_values:
      return token[None, None] + self.value(values)
    return jnp.broadcast_to(token, (*coords.shape[:2], self.width))

  def queries(self, coords: jax.Array) -> jax.Array:
    """Embeds queries, `[B, M, C] -> [B, M, D]`; all are equal."""
    query = self.query.astype(self.dtype)
    return jnp.broadcast_to(query, (*coords.shape[:2], self.width))


class SequenceEmbedder(nn.Module):
  """Embeds symbols and their positions.

  A first MLP embeds the symbol, sinusoids of the position are added, and a second
  MLP with ReLU mixes both. With `position_skip`, the input of the second MLP is added
  to its output. Whether two positions are equal, mirrored or at a fixed distance is
  then bilinear in the sinusoids, so that dot-product attention can represent it
  directly.

  Coordinates are positions `[..., 1]`. A query is the embedding of an all-zero
  symbol at its position.

  Attributes:
    width: D.
    num_features: E, the width of a one-hot symbol.
    depth: the number of layers of the first MLP.
    position_skip: whether to add the skip connection around the second MLP. The paper
      has none.
    dtype: the data type of activations.
  """

  width: int = 64
  num_features: int = 12
  depth: int = 4
  position_skip: bool = True
  dtype: Dtype = jnp.float32

  def setup(self) -> None:
    check_sizes(width=self.width, num_features=self.num_features, depth=self.depth)
    if self.width % 2:
      raise ValueError(f"width must be even, got {self.width}")
    self.symbol = MLP([self.width] * self.depth, nn.elu, self.dtype)
    hidden = 2 * self.width
    self.mix = MLP([hidden, hidden, self.width], nn.relu, self.dtype)

  def tokens(self, coords: jax.Array, values: jax.Array) -> jax.Array:
    """Embeds symbols, `[B, N, 1]` and `[B, N, E]` -> `[B, N, D]`."""
    positions = sinusoids(coords[..., 0], self.width).astype(self.dtype)
    x = self.symbol(values) + positions
    return x + self.mix(x) if self.position_skip else self.mix(x)

  def queries(self, coords: jax.Array) -> jax.Array:
    """Embeds query positions, `[B, M, 1] -> [B, M, D]`."""
    return self.tokens(coords, jnp.zeros((*coords.shape[:2], self.num_features)))


def fourier_features(coords: jax.Array, num_frequencies: int) -> jax.Array:
  """Appends sines and cosines of 2**k * pi * coords, k < K, to the coordinates.

  Args:
    coords: `[..., C]`; their range should be at most 2, the longest wavelength.
    num_frequencies: K.

  Returns:
    `[..., C * (1 + 2 * K)]`.

  >>> fourier_features(jnp.array([0.0]), 1).tolist()
  [0.0, 0.0, 1.0]
  """
  angles = [jnp.pi * 2**k * coords for k in range(num_frequencies)]
  waves = [wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)]
  return jnp.concatenate([coords, *waves], axis=-1)


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
  """Computes sines and cosines of positions at `width / 2` wavelengths.

  The wavelengths form a geometric sequence from 2 pi to 2e4 pi.

  Args:
    positions: `[...]`.
    width: the number of features, even.

  Returns:
    `[..., width]`, sines before cosines.

  >>> sinusoids(jnp.zeros(1), 4).tolist()
  [[0.0, 0.0, 1.0, 1.0]]
  """
  frequencies = 1e4 ** -(jnp.arange(width // 2) / (width // 2))
  frequencies = jnp.expand_dims(frequencies, range(positions.ndim))
  frequencies = frequencies.astype(jnp.float32)
  angles = positions[..., None] * frequencies
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
