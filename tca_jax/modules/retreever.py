"""ReTreever: embedder, encoder, read-out and head as one model (Sec. 3.3)."""

from collections.abc import Iterator
import contextlib
import functools
import typing

import chex
from flax import errors
from flax import linen as nn
import jax
import jax.numpy as jnp

from tca_jax import checks
from tca_jax import growth
from tca_jax.growth import GrowingMemory
from tca_jax.memory import FlatMemory
from tca_jax.memory import TreeMemory
from tca_jax.modules.growing import GrowingReadOut
from tca_jax.modules.heads import Regression
from tca_jax.modules.interface import Reading
from tca_jax.modules.interface import ReadOut
from tca_jax.modules.interface import TrainingReading
from tca_jax.node_memory import NodeMemory
from tca_jax.sharded_building import build_sharded_tree
from tca_jax.tree import Tree

__all__ = ["Prediction", "ReTreever", "TrainingPrediction"]


@chex.dataclass(frozen=True)
class Prediction:
  """The result of `ReTreever`.

  Attributes:
    output: the output of the head, `[B, M, ...]`.
    reading: the `Reading` that the head received.
  """

  output: typing.Any
  reading: Reading


@chex.dataclass(frozen=True)
class TrainingPrediction(Prediction):
  """The result of `ReTreever` with `TreeCrossAttention` and train=True.

  Attributes:
    reading: the `TrainingReading` that the head received.
    leaf_output: the output of the head for all leaves, `[B, M, ...]`.
  """

  reading: TrainingReading
  leaf_output: typing.Any


class ReTreever(nn.Module):
  """Embeds, encodes, indexes, reads and predicts (Sec. 3.3), with any read-out.

  Attributes:
    embedder: `PointEmbedder` or `SequenceEmbedder`, or any module with their
      methods `tokens` and `queries`.
    read_out: any `ReadOut`.
    head: `ClassificationHead` or `GaussianHead`, or any module.
    encoder: an `Encoder`, or None.
  """

  embedder: nn.Module
  read_out: ReadOut
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
    """Predicts at query coordinates from contexts.

    Args:
      coords: `[B, N, C]`, the locations of the context's tokens.
      values: `[B, N, E]`, the observed values there.
      query_coords: `[B, M, C]`.
      mask: `[B, N]` bool, True at valid tokens; None means that all are valid.
      train: whether to sample walks, to also read all leaves, and to use dropout.

    Returns:
      A `Prediction`; with `TreeCrossAttention` and train=True a `TrainingPrediction`.

    Raises:
      ValueError: if a shape or dtype is wrong; outside a transformation also if a
        context has no valid token, or if a valid input is not finite.
    """
    coords = checks.as_array("coords", coords)
    query_coords = checks.as_array("query_coords", query_coords)
    memory = self.index(coords, values, mask, train)
    if query_coords.ndim != 3 or query_coords.shape[::2] != coords.shape[::2]:
      raise ValueError(
        f"query_coords must be [{len(coords)}, M, {coords.shape[-1]}] to match coords"
        f" {coords.shape}, got shape {query_coords.shape}"
      )
    return self.read(memory, query_coords, train)

  def index(
    self,
    coords: jax.Array,
    values: jax.Array,
    mask: jax.Array | None = None,
    train: bool = False,
    tree: Tree | None = None,
  ) -> FlatMemory | TreeMemory:
    """Computes the memory of each context.

    Args:
      coords: `[B, N, C]`, the locations of the context's tokens.
      values: `[B, N, E]`, the observed values there.
      mask: `[B, N]` bool, True at valid tokens; None means that all are valid.
      train: whether to use dropout, and to make memories for training.
      tree: a batch of trees over the same coordinates and mask, for
        `TreeCrossAttention`; None means that the trees are built here. On a CPU,
        `build_tree` is faster for large contexts outside `jax.jit`.

    Returns:
      A `TreeMemory` or a `FlatMemory` with leading axis B.

    Raises:
      ValueError: see `__call__`; also if a given tree does not fit the context, or if
        the read-out has no tree.
    """
    tokens, coords, values, mask = self._embed_context(coords, values, mask)
    if self.encoder is not None:
      tokens = self.encoder(tokens, mask, train)
    tokens = jnp.where(mask[..., None], tokens, 0)  # embeddings of zeros are not 0
    return self.read_out.store(tokens, coords, values, mask, train, tree)

  def read(
    self,
    memory: FlatMemory | TreeMemory,
    query_coords: jax.Array,
    train: bool = False,
    num_paths: int | None = None,
  ) -> Prediction:
    """Predicts at query coordinates from memories.

    Args:
      memory: the result of `index` for B contexts.
      query_coords: `[B, M, C]`.
      train: see `__call__`.
      num_paths: the number of paths that each query follows in a tree; see
        `ReadOut.read`.

    Returns:
      A `Prediction`; with `TreeCrossAttention` and train=True a `TrainingPrediction`.

    Raises:
      ValueError: if a shape or dtype is wrong, or if num_paths is not allowed; outside
        a transformation also if a coordinate is not finite.
    """
    query_coords, queries = self._embed_queries(query_coords)
    reading = self.read_out.retrieve(memory, queries, query_coords, train, num_paths)
    output = self._predict(reading)
    if isinstance(reading, TrainingReading):
      leaf_output = self.head(reading.leaf_output)
      return TrainingPrediction(output=output, reading=reading, leaf_output=leaf_output)
    return Prediction(output=output, reading=reading)

  def index_sharded(
    self,
    coords: jax.Array,
    values: jax.Array,
    mask: jax.Array | None = None,
    *,
    axis_name: str,
  ) -> TreeMemory | NodeMemory:
    """Computes memories that are split over devices; see `tca_jax.sharding`.

    It is called inside `jax.shard_map`. There, `read` takes the memories.

    Args:
      coords: `[B, N / P, C]`, the locations of this device's tokens of each context.
      values: `[B, N / P, E]`, the observed values there.
      mask: `[B, N / P]` bool, True at valid tokens; None means that all are valid.
      axis_name: the mesh axis over whose P devices the contexts are split.

    Returns:
      This device's part of the memories, whose tree is a `ShardedTree`.

    Raises:
      ValueError: see `sharded_building.build_sharded_tree`; also if the model has an
        encoder, or if the read-out has no tree.
    """
    read_out = self._tree_read_out("are split over devices")
    coords, mask, values = _clean_context(coords, mask, values)
    build = functools.partial(
      build_sharded_tree,
      axis_name=axis_name,
      branch_factor=read_out.branch_factor,
      **read_out.order_options(),
    )
    tree, (coords, values) = jax.vmap(build)(coords, mask, [values])
    tokens = self._embed_tokens(coords, values)
    return read_out.store(tokens, coords, values, tree.leaf_mask, False, tree)

  def read_leaves(self, memory: TreeMemory, query_coords: jax.Array) -> Prediction:
    """Predicts from all leaves of a tree's memory (ReTreever-Full).

    Args:
      memory: the result of `index` for B contexts, with `TreeCrossAttention`.
      query_coords: `[B, M, C]`.

    Returns:
      A `Prediction`.

    Raises:
      ValueError: if a shape or dtype is wrong, or if the read-out has no tree; outside
        a transformation also if a coordinate is not finite.
    """
    query_coords, queries = self._embed_queries(query_coords)
    reading = self.read_out.retrieve_leaves(memory, queries, query_coords)
    return Prediction(output=self._predict(reading), reading=reading)

  def index_growing(
    self,
    coords: jax.Array,
    values: jax.Array,
    mask: jax.Array | None = None,
    *,
    capacity: int | None = None,
  ) -> GrowingMemory:
    """Computes a memory with free leaf slots for each context; see `tca_jax.growth`.

    Args:
      coords: `[B, N, C]`, the locations of the context's tokens.
      values: `[B, N, E]`, the observed values there.
      mask: `[B, N]` bool, True at valid tokens; None means that all are valid.
      capacity: the smallest allowed number of leaf slots, a static int; the next power
        of the branch factor is taken. None means 2 N.

    Returns:
      A `GrowingMemory` with leading axis B; `read` takes its `memory`.

    Raises:
      ValueError: see `index` and `growth.start`; also if the model has an encoder, or
        if the read-out has no tree.
    """
    read_out = self._tree_read_out("grow")
    tokens, coords, values, mask = self._embed_context(coords, values, mask)
    return read_out.index_growing(
      tokens, coords, mask, values=values, capacity=capacity
    )

  def insert(
    self,
    growing: GrowingMemory,
    coords: jax.Array,
    values: jax.Array,
    mask: jax.Array | None = None,
    *,
    reach: int = growth.REACH,
  ) -> tuple[GrowingMemory, jax.Array]:
    """Inserts observations into memories, O(log N) work each.

    Afterwards, the memory is that of all tokens in the same leaf slots. A model with an
    encoder is refused, because there every token depends on all others.

    Args:
      growing: the memories of B contexts, see `index_growing`.
      coords: `[B, K, C]`, the locations of new tokens.
      values: `[B, K, E]`, the observed values there.
      mask: `[B, K]` bool, True at valid tokens; None means that all are valid.
      reach: see `growth.insert`.

    Returns:
      The memories, and the numbers of the tokens, `[B, K]` int32. A token is refused,
      and its number is -1, if it is masked or if there is no free slot near its place;
      `rebuild` makes room.

    Raises:
      ValueError: if a shape, a dtype or an option does not fit, if the model has an
        encoder, or if the read-out has no tree; outside a transformation also if a
        valid input is not finite.
    """
    read_out = self._tree_read_out("grow")
    coords = checks.as_array("coords", coords)
    values = checks.as_array("values", values)
    if coords.ndim != 3 or values.ndim != 3 or coords.shape[:2] != values.shape[:2]:
      raise ValueError(
        "coords and values must be [B, K, C] and [B, K, E], got shapes"
        f" {coords.shape} and {values.shape}"
      )
    if mask is not None:
      mask = checks.as_array("mask", mask)
      checks.check_mask(mask, coords.shape[:2])
      coords, values = (jnp.where(mask[..., None], x, 0) for x in (coords, values))
    tokens = self._embed_tokens(coords, values)
    return read_out.insert(growing, tokens, coords, mask, values=values, reach=reach)

  def remove(
    self, growing: GrowingMemory, numbers: jax.Array
  ) -> tuple[GrowingMemory, jax.Array]:
    """Removes tokens from memories; see `GrowingReadOut.remove`.

    Args:
      growing: the memories of B contexts.
      numbers: `[B, K]` integers: positions in the arguments of `index_growing`, or
        numbers that `insert` returned. A number without token has no effect.

    Returns:
      The memories, and `[B, K]` bool, True where a token was removed.

    Raises:
      ValueError: if numbers is not `[B, K]` integers, if the model has an encoder, or
        if the read-out has no tree.
    """
    return self._tree_read_out("grow").remove(growing, numbers)

  def rebuild(
    self, growing: GrowingMemory, *, capacity: int | None = None
  ) -> GrowingMemory:
    """Balances the trees again, by default with b times as many leaf slots.

    Tokens keep their numbers.

    Args:
      growing: the memories of B contexts.
      capacity: see `GrowingReadOut.rebuild`; None means b times the present one.

    Raises:
      ValueError: see `growth.rebuild`; also if the model has an encoder, or if the
        read-out has no tree.
    """
    return self._tree_read_out("grow").rebuild(growing, capacity=capacity)

  def _tree_read_out(self, contexts: str) -> GrowingReadOut:
    """The read-out; raises ValueError unless it has a tree of independent tokens.

    Args:
      contexts: a verb for the error, what contexts do that need such a read-out.
    """
    if self.encoder is not None and getattr(self.encoder, "num_layers", 1):
      raise ValueError(
        f"encoder must be None in a model whose contexts {contexts}, because what it"
        " computes of a token depends on all others; use index for the whole context,"
        f" got {type(self.encoder).__name__}"
      )
    if not isinstance(self.read_out, GrowingReadOut):
      raise ValueError(
        "read_out must have a tree, such as TreeCrossAttention, got"
        f" {type(self.read_out).__name__}"
      )
    return self.read_out

  def _embed_context(
    self, coords: jax.Array, values: jax.Array, mask: jax.Array | None
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Checks a context and embeds it; tokens, and the cleaned coords, values and mask."""
    coords, mask, values = _clean_context(coords, mask, values)
    return self._embed_tokens(coords, values), coords, values, mask

  def _embed_tokens(self, coords: jax.Array, values: jax.Array) -> jax.Array:
    """Embeds observations, `[B, N, C]` and `[B, N, E]`, as `[B, N, D]`."""
    with _names_arguments(coords=coords, values=values):
      return self.embedder.tokens(coords, values)

  def _embed_queries(self, query_coords: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Checks query coordinates `[B, M, C]`, and embeds them as `[B, M, D]`."""
    query_coords = checks.as_array("query_coords", query_coords)
    checks.check_finite(query_coords=query_coords)
    if query_coords.ndim != 3:
      raise ValueError(f"query_coords must be [B, M, C], got {query_coords.shape}")
    with _names_arguments(query_coords=query_coords):
      return query_coords, self.embedder.queries(query_coords)

  def _predict(self, reading: Reading) -> typing.Any:
    """The output of the head, in the units of a relative read-out."""
    output = self.head(reading.output)
    if reading.units is not None and isinstance(output, Regression):
      return output.in_units(reading.units)
    return output


def _clean_context(
  coords: jax.Array, mask: jax.Array | None, values: jax.Array
) -> tuple[jax.Array, ...]:
  """Checks contexts, and returns the cleaned coords, mask and values."""
  coords = checks.as_array("coords", coords)
  if coords.ndim != 3:
    raise ValueError(f"coords must be [B, N, C], got shape {coords.shape}")
  return checks.clean_context(coords, mask, values=values)


@contextlib.contextmanager
def _names_arguments(**arrays: jax.Array) -> Iterator[None]:
  """Turns Flax's error about a parameter's shape into one about the arguments."""
  try:
    yield
  except errors.ScopeParamShapeError as error:
    shapes = " and ".join(f"{name} {x.shape}" for name, x in arrays.items())
    raise ValueError(
      f"{shapes} must have the numbers of axes and channels for which the parameters"
      f" were made: {str(error).split(' (https')[0]}"
    ) from error
