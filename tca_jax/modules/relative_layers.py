"""The layers of relative read-outs: attention over nodes as they are seen from the query.

They replace the absolute coordinates of the published model by offsets from the query,
see `tca_jax.relative`. Every node that a query reads becomes a token made of its
location, extent, count and values relative to the query, and of a learned summary.
The values of the nearest nodes are interpolated by kriging, see `tca_jax.node_kriging`,
and the head corrects the result. What the query has read decides by which covariance
function, or it is one that fits the whole context, see `tca_jax.covariance_fit`.
"""

from collections.abc import Sequence
import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from tca_jax import covariance_fit
from tca_jax import node_kriging
from tca_jax import relative
from tca_jax import sharded_building
from tca_jax import tree as tree_lib
from tca_jax.covariance import Covariance
from tca_jax.covariance import LENGTHS
from tca_jax.covariance import limited_exp
from tca_jax.modules.interface import Reading
from tca_jax.modules.interface import ReadOut
from tca_jax.modules.interface import Units
from tca_jax.modules.layers import BiasOfNodes
from tca_jax.modules.layers import MLP
from tca_jax.modules.layers import RelativeLayer
from tca_jax.modules.layers import TransformerLayer
from tca_jax.node_memory import NodeMemory
from tca_jax.node_memory import Nodes
from tca_jax.node_memory import PointMemory
from tca_jax.statistics import Domain
from tca_jax.statistics import NodeStatistics

__all__ = ["RelativeReadOut"]

_NUM_NEAR = 32  # nodes that the local plane is fitted to
_LOG_NOISE = -6.0  # of the variance of the noise, before training
_MAX_TOKENS = 2**20  # tokens of all queries that are read together from all leaves


class RelativeReadOut(ReadOut):
  """The layers of the relative read-outs.

  Attributes:
    num_layers: the number of cross-attention layers over the nodes read.
    node_width: D', the width of the tokens of nodes; a multiple of num_heads.
    num_self_layers: the number of transformer layers among the nodes read, before.
    summary_width: W, the width of the learned summary of a node; 0 means that a node
      is described by its statistics only.
    local_units: whether values are seen, and predicted, in units of a local spread.
      Without, locations and values should be of order 1, and the channels alike.
    sees_scale: whether the query is told the local length, reference and spread in
      absolute units. Without, and with local_units, predictions do not change with the
      scale of the locations, and follow affine maps of the values.
    values_in_tokens: whether the tokens of nodes contain the mean and the spread of
      their values.
    geometry_in_tokens: whether they contain the relative locations.
    geometry_in_logits: whether a bias per head of the attention logits does.
    num_kriged: the largest number of nodes, the nearest ones, whose values are
      interpolated by kriging; 0 means no kriging, and predictions relative to a plane.
    fits_covariance: whether the kriging uses the covariance function that fits the
      values of the whole context; otherwise each query chooses one. Needs num_kriged of
      at least 1, and local_units=False.
    periods: the period of each axis, see `tca_jax.relative`.
  """

  num_layers: int = 3
  node_width: int = 32
  num_self_layers: int = 0
  summary_width: int = 16
  local_units: bool = True
  sees_scale: bool = True
  values_in_tokens: bool = True
  geometry_in_tokens: bool = True
  geometry_in_logits: bool = True
  num_kriged: int = 32
  fits_covariance: bool = False
  periods: Sequence[float] | None = None

  def setup(self) -> None:
    self._check_heads(width=self.width, node_width=self.node_width)
    if self.num_layers < 1:
      raise ValueError(f"num_layers must be at least 1, got {self.num_layers}")
    if not (self.summary_width or self.values_in_tokens or self.geometry_in_tokens):
      raise ValueError(
        "summary_width must be at least 1 without values_in_tokens and"
        f" geometry_in_tokens, got {self.summary_width}"
      )
    if self.fits_covariance and (self.local_units or not self.num_kriged):
      raise ValueError(
        "fits_covariance needs num_kriged of at least 1, and local_units=False; got"
        f" num_kriged={self.num_kriged}, local_units={self.local_units}"
      )
    self.summarise = nn.Dense(self.summary_width, dtype=self.dtype)
    self.node = MLP([self.width, self.node_width], nn.silu, self.dtype)
    self.node_norm = nn.LayerNorm(dtype=self.dtype)
    self.frame = MLP([self.width, self.width], nn.gelu, self.dtype)
    self.bias = BiasOfNodes(self.num_layers * self.num_heads, self.dtype)
    if self.fits_covariance:
      noise = nn.initializers.constant(_LOG_NOISE)
      self.log_noise = self.param("log_noise", noise, (), jnp.float32)
      self.posterior = nn.Dense(self.width, dtype=self.dtype)
    elif self.num_kriged:
      small = nn.initializers.normal(0.01)
      self.covariance = nn.Dense(len(LENGTHS) + 2, kernel_init=small)
      if not self.local_units:
        self.length = nn.Dense(1, kernel_init=small)
    if self.num_kriged:
      self.kriged = nn.Dense(self.width, dtype=self.dtype)
      self.correction = MLP([self.hidden, self.width], nn.gelu, self.dtype)
    options = dict(dropout=self.dropout, dtype=self.dtype)
    self.self_layers = [
      TransformerLayer(self.num_heads, self.hidden, **options)
      for _ in range(self.num_self_layers)
    ]
    self.layers = [
      RelativeLayer(self.num_heads, self.hidden, **options)
      for _ in range(self.num_layers)
    ]

  def _num_parts(self) -> int:
    """P, the number of parts of a node, whose features are concatenated in its token."""
    return 1

  def _summaries(self, tokens: jax.Array) -> jax.Array:
    """Learned summaries, `[..., D] -> [..., W]`."""
    if not self.summary_width:
      return jnp.zeros((*tokens.shape[:-1], 0), jnp.float32)
    return self.summarise(tokens)

  def _attend(
    self,
    queries: jax.Array,
    query_coords: jax.Array,
    nodes: Nodes,
    memory: NodeMemory | PointMemory,
    train: bool,
    num_parts: int = 1,
  ) -> tuple[jax.Array, Units]:
    """Attention of each query to its nodes.

    Args:
      queries: `[B, M, D]`.
      query_coords: `[B, M, C]`, relative to the domain's origin.
      nodes: `Nodes` with axes `[B, M, n * S]`: the first parts of S nodes, then the
        second parts, and so on; or `[B, 1, n * S]` if all queries read the same.
      memory: the memories of the B contexts.
      train: whether to use dropout.
      num_parts: n, 1 or `_num_parts`.

    Returns:
      `[B, M, D]`, and the units of predictions.
    """
    offset = relative.offset_between(
      query_coords[:, :, None], nodes.centroid, self.periods
    )
    domain = jax.tree.map(lambda x: x[:, None], memory.domain)
    # Far nodes have no weight in the fit of the local plane.
    near = node_kriging.nearest_of(offset, nodes, max(_NUM_NEAR, self.num_kriged))
    frame = relative.local_frame(*near, domain)
    origin = frame.reference + domain.value_origin
    units = frame
    if not self.local_units:
      units = dataclasses.replace(frame, spread=jnp.ones_like(frame.spread))
    where, what = (
      _join_parts(x, num_parts, self._num_parts())
      for x in relative.node_features(offset, nodes, units)
    )
    shape = (*what.shape[:-1], self.summary_width)
    features = [jnp.broadcast_to(nodes.summary[..., : shape[-2], :], shape)]
    if self.values_in_tokens:
      features.append(what)
    if self.geometry_in_tokens:
      features.append(where)
    tokens = self.node(jnp.concatenate(features, axis=-1).astype(self.dtype))
    # The first part of a node has a token if the node has one.
    mask = jnp.broadcast_to(nodes.count[..., : shape[-2]] > 0, tokens.shape[:-1])
    for layer in self.self_layers:
      flat = tokens.reshape(-1, *tokens.shape[-2:])
      flat = layer(flat, mask.reshape(flat.shape[:-1]), train)
      tokens = flat.reshape(tokens.shape)
    tokens = self.node_norm(tokens)
    shape = (*mask.shape[:-1], self.num_layers, self.num_heads, mask.shape[-1])
    bias = jnp.zeros(shape, jnp.float32)
    if self.geometry_in_logits:
      bias = self.bias(where).astype(jnp.float32).reshape(shape)

    x = queries
    if self.sees_scale:
      length = jnp.log(frame.length)[..., None]
      scale = jnp.concatenate([length, jnp.log(frame.spread), origin], axis=-1)
      x = x + self.frame(scale.astype(self.dtype))
    fitted, noise = None, self._noise()
    if noise is not None:
      if memory.evidence is None:
        raise ValueError(
          "memory must have the evidence for a covariance function: index the context by"
          " a model with fits_covariance"
        )
      posterior = jax.nn.softmax(memory.evidence)[:, None]
      fitted = covariance_fit.average(posterior, noise)
      x = x + self.posterior(posterior.astype(self.dtype))
    for i, layer in enumerate(self.layers):
      x = layer(x, tokens, bias[..., i, :, :], mask, train)
    if not self.num_kriged:
      return x, Units(origin=origin, scale=units.spread, std_scale=units.spread)
    nearest = node_kriging.nearest_of(*near, self.num_kriged)
    if fitted is not None:
      covariance = fitted
      length = jnp.ones(x.shape[:-1], jnp.float32)
      frame = relative.absolute_frame(length, domain)
    else:
      covariance = Covariance.default().changed(self.covariance(x))
      if not self.local_units:
        length = limited_exp(self.length(x)[..., 0])
        frame = relative.absolute_frame(length, domain)
    mean, std = node_kriging.krige(*nearest, frame, covariance)
    std = std[..., None]
    seen = jnp.concatenate([mean, jnp.log(std)], axis=-1)
    x = x + self.kriged(seen.astype(self.dtype))
    x = x + self.correction(x)
    origin = frame.reference + domain.value_origin + frame.spread * mean
    # Far from all nodes the spread, which is 1 in absolute units, is the better unit.
    scale = frame.spread * std / jnp.sqrt(1 + std**2)
    # In absolute units the head's lower bound of the standard deviation holds.
    std_scale = scale if self.local_units else jnp.ones_like(scale)
    return x, Units(origin=origin, scale=scale, std_scale=std_scale)

  def _noise(self) -> jax.Array | None:
    """`[]`, the variance of the noise in a context, if a covariance is fitted to it."""
    return jnp.exp(self.log_noise) if self.fits_covariance else None

  def _evidence(
    self, tree: tree_lib.Tree, statistics: NodeStatistics
  ) -> jax.Array | None:
    """`[B, K]`, how well covariance functions fit each context."""
    measure = functools.partial(sharded_building.log_likelihoods, noise=self._noise())
    return jax.vmap(measure)(tree, statistics)

  def _retrieve_points(
    self,
    memory: PointMemory,
    queries: jax.Array,
    query_coords: jax.Array | None,
    train: bool,
  ) -> Reading:
    """Reads all tokens of each context."""
    query_coords = self._relative_coords(memory.domain, query_coords)
    nodes = jax.tree.map(lambda x: x[:, None], memory.nodes)

    def attend(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Units]:
      return self._attend(*chunk, nodes, memory, train)

    # In chunks of queries, because all pairs of query and token may not fit in memory.
    batch, num_queries = queries.shape[:2]
    chunk = max(_MAX_TOKENS // memory.nodes.count.size, 1)
    inputs = (queries, query_coords)
    if train or num_queries <= chunk or self.is_initializing():
      output, units = attend(inputs)
    else:

      def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, -num_queries % chunk), (0, 0)], mode="edge")
        return jnp.moveaxis(x.reshape(batch, -1, chunk, x.shape[-1]), 1, 0)

      def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 1).reshape(batch, -1, x.shape[-1])
        return x[:, :num_queries]

      chunks = jax.lax.map(attend, jax.tree.map(split, inputs))
      output, units = jax.tree.map(join, chunks)
    num_read = jnp.sum(memory.nodes.count > 0, axis=-1, keepdims=True, dtype=jnp.int32)
    return Reading(
      output=output,
      num_read=jnp.broadcast_to(num_read, queries.shape[:2]),
      units=units,
    )

  def _relative_coords(
    self, domain: Domain, query_coords: jax.Array | None
  ) -> jax.Array:
    """Locations relative to the origin of their context."""
    if query_coords is None:
      raise ValueError("query_coords must be given to a relative read-out")
    batch, axes = domain.origin.shape
    if query_coords.ndim != 3 or query_coords.shape[::2] != (batch, axes):
      raise ValueError(
        f"query_coords must be [{batch}, M, {axes}], got shape {query_coords.shape}"
      )
    return query_coords.astype(jnp.float32) - domain.origin[:, None]

  def _check_values(self, values: jax.Array | None) -> jax.Array:
    if values is None:
      raise ValueError("values must be given to a relative read-out")
    return values


def _join_parts(x: jax.Array, num_parts: int, total: int) -> jax.Array:
  """Concatenates the features of parts, `[..., n * S, F] -> [..., S, P * F]`.

  Args:
    x: the features of n parts of S nodes; 0 at a part without token.
    num_parts: n.
    total: P, at least n. The features of other parts are 0.
  """
  lead, (rows, width) = x.shape[:-2], x.shape[-2:]
  x = x.reshape(*lead, num_parts, rows // num_parts, width)
  x = jnp.swapaxes(x, -3, -2).reshape(*lead, rows // num_parts, num_parts * width)
  missing = (total - num_parts) * width
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
