"""Contexts that are split over devices, because one device cannot hold them.

  mesh = jax.make_mesh((8,), ("context",))
  context = sharding.place_context(coords, values, mesh=mesh)
  memory = sharding.index(model, params, *context, mesh=mesh)
  prediction = sharding.read(model, params, memory, query_coords, mesh=mesh)

The number of devices is a power of the branch factor. Each device gets a subtree: it
builds, aggregates and packs it alone. Predictions equal those from one device, up to
rounding. Nothing here is jitted: compose `index` and `read` with `jax.jit`.

The mesh may have a second axis, over which queries are split; the memory is then copied
along it.
"""

import functools
import typing

import jax
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from tca_jax import checks
from tca_jax.memory import TreeMemory
from tca_jax.modules.relative import RelativeTreeCrossAttention
from tca_jax.modules.retreever import Prediction
from tca_jax.modules.retreever import ReTreever
from tca_jax.node_memory import NodeMemory
from tca_jax.sharded_tree import ShardedTree

__all__ = ["CONTEXT", "index", "place_context", "read"]

CONTEXT = "context"
_WHOLE: typing.Any = PartitionSpec()


def place_context(
  coords: jax.typing.ArrayLike,
  values: jax.typing.ArrayLike,
  mask: jax.typing.ArrayLike | None = None,
  *,
  mesh: Mesh,
  axis_name: str = CONTEXT,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Splits contexts evenly over devices.

  NumPy arrays, such as memory-mapped files, go to the devices in parts. They are padded,
  if the number of tokens is not a multiple of the number of devices.

  Args:
    coords: `[B, N, C]` floating point, the locations of the tokens.
    values: `[B, N, E]` floating point, the observed values there.
    mask: `[B, N]` bool, True at valid tokens; None means that all are valid.
    mesh: the devices.
    axis_name: the mesh axis over which contexts are split.

  Returns:
    coords, values and mask with N' >= N tokens, the arguments of `index`.

  Raises:
    ValueError: if a shape or dtype is wrong, if a context has no valid token, if a
      coordinate or a value of a valid token is not finite, or if the mesh has no such
      axis.
  """
  num_devices = _axis_size(mesh, axis_name)
  # Of the shapes and dtypes only, so that no array goes to a device as a whole.
  jax.eval_shape(checks.check_context, coords, mask, values=values)
  shape = np.shape(coords)[:2]
  mask = np.ones(shape, bool) if mask is None else mask
  sharding = NamedSharding(mesh, PartitionSpec(None, axis_name))

  def place(x: typing.Any) -> jax.Array:
    padding = [(0, 0), (0, -shape[1] % num_devices), *[(0, 0)] * (np.ndim(x) - 2)]
    return jax.device_put(np.pad(x, padding) if padding[1][1] else x, sharding)

  coords, values, mask = place(coords), place(values), place(mask)
  checks.check_context(coords, mask, values=values)
  return coords, values, mask


def index(
  model: ReTreever,
  params: typing.Any,
  coords: jax.Array,
  values: jax.Array,
  mask: jax.Array | None = None,
  *,
  mesh: Mesh,
  axis_name: str = CONTEXT,
) -> TreeMemory | NodeMemory:
  """Computes the memory of each context, split over devices.

  The tokens need not be ordered in any way. They are sent to the devices that have their
  subtrees. No device ever has more than three times its share of the tokens.

  Args:
    model: a model with `TreeCrossAttention` or `RelativeTreeCrossAttention`, without an
      encoder.
    params: its parameters.
    coords: `[B, N, C]`, the locations of the tokens, best from `place_context`.
    values: `[B, N, E]`, the observed values there.
    mask: `[B, N]` bool, True at valid tokens; None means that all are valid.
    mesh: the devices.
    axis_name: the mesh axis over which contexts are split.

  Returns:
    A memory for `read`. Its `tree.leaf_index` and `tree.leaf_mask` are those of the tree
    that one device would build.

  Raises:
    ValueError: if the axis does not have a power of the branch factor devices, if N is
      not a multiple of their number, if the model has an encoder or no tree, or if its
      order is random.
  """
  num_devices = _axis_size(mesh, axis_name)
  arrays = {"coords": coords, "values": values}
  if mask is not None:
    arrays["mask"] = mask
  for name, x in arrays.items():
    if x.ndim < 2 or x.shape[1] % num_devices:
      raise ValueError(
        f"{name} must be [B, N, ...] with N a multiple of the {num_devices} devices of"
        f" mesh axis {axis_name!r}, got shape {x.shape}; see place_context"
      )

  def index(params: typing.Any, arrays: dict[str, typing.Any]) -> typing.Any:
    return model.apply(params, **arrays, axis_name=axis_name, method="index_sharded")

  relative = isinstance(model.read_out, RelativeTreeCrossAttention)
  kind = NodeMemory if relative else TreeMemory
  return jax.shard_map(
    index,
    mesh=mesh,
    in_specs=(_WHOLE, PartitionSpec(None, axis_name)),
    out_specs=_memory_specs(kind, axis_name),
  )(params, arrays)


def read(
  model: ReTreever,
  params: typing.Any,
  memory: TreeMemory | NodeMemory,
  query_coords: jax.Array,
  *,
  mesh: Mesh,
  num_paths: int | None = None,
  query_axis: str | None = None,
) -> Prediction:
  """Predicts at query coordinates from memories that are split over devices.

  Args:
    model: the model of `index`.
    params: its parameters.
    memory: the result of `index` for B contexts.
    query_coords: `[B, M, C]`.
    mesh: the devices.
    num_paths: the number of paths that each query follows, see `ReadOut.read`.
    query_axis: the mesh axis over which queries are split; None means that all devices
      have all queries.

  Returns:
    A `Prediction`; its walk has the node indices of the whole tree.

  Raises:
    ValueError: if M is not a multiple of the devices of the query axis; see also
      `ReTreever.read`.
  """
  query_coords = checks.as_array("query_coords", query_coords)
  if query_axis is not None:
    num_devices = _axis_size(mesh, query_axis)
    if query_coords.ndim < 2 or query_coords.shape[1] % num_devices:
      raise ValueError(
        f"query_coords must be [B, M, C] with M a multiple of the {num_devices} devices"
        f" of mesh axis {query_axis!r}, got shape {query_coords.shape}"
      )
  axis_name = typing.cast(ShardedTree, memory.tree).axis_name
  queries = PartitionSpec(None, query_axis)
  call: typing.Any = jax.shard_map(
    functools.partial(model.apply, num_paths=num_paths, method="read"),
    mesh=mesh,
    in_specs=(_WHOLE, _memory_specs(type(memory), axis_name), queries),
    out_specs=queries,
  )
  return call(params, memory, query_coords)


def _axis_size(mesh: Mesh, axis_name: str) -> int:
  if axis_name not in mesh.shape:
    raise ValueError(
      f"axis_name must be an axis of the mesh, {mesh.axis_names}, got {axis_name!r}"
    )
  return mesh.shape[axis_name]


def _memory_specs(kind: type, axis_name: str) -> typing.Any:
  """Which arrays of a memory, with leading axis B, are split over devices."""
  split: typing.Any = PartitionSpec(None, axis_name)
  tree = ShardedTree(
    leaf_index=split, leaf_mask=split, root_count=_WHOLE, axis_name=axis_name
  )
  if kind is NodeMemory:
    return NodeMemory(
      tree=tree, rows=split, domain=_WHOLE, borders=split, evidence=_WHOLE
    )
  return TreeMemory(tree=tree, keys=split, values=split, policy_keys=split)
