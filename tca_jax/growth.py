"""Contexts that grow: tokens join and leave a memory without a new build.

A `GrowingMemory` has leaf slots for more tokens than it contains, and they are spread
over the tree. `insert` puts a token into a free slot and renews the nodes above it:
O(log N) work. `remove` frees slots. Afterwards the memory is the one that a build with
the same tokens in the same slots would give. `rebuild` balances the tree anew.

The functions take one context; batch them with `jax.vmap`. They are pure, and their
shapes do not change with the number of tokens, so `jax.jit` compiles each of them once.
Donate the memory (`donate_argnums`), because otherwise every call copies it.

Learned parts enter as `NodeFunctions`. The layers have the same functions as methods,
see `modules.GrowingReadOut`.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from tca_jax import memory as memory_lib
from tca_jax import node_memory
from tca_jax import relative
from tca_jax import tree as tree_lib
from tca_jax.checks import as_array
from tca_jax.checks import check_finite
from tca_jax.checks import check_floating
from tca_jax.checks import check_mask
from tca_jax.checks import check_sizes
from tca_jax.checks import clean_context
from tca_jax.grown_tree import as_grown
from tca_jax.grown_tree import find_cuts
from tca_jax.grown_tree import find_slots
from tca_jax.node_memory import NodeMemory
from tca_jax.renewal import GrowingMemory
from tca_jax.renewal import NodeFunctions
from tca_jax.renewal import set_leaves
from tca_jax.renewal import set_rows
from tca_jax.sharded_building import log_likelihoods
from tca_jax.statistics import node_statistics

__all__ = [
  "ORDERS",
  "REACH",
  "GrowingMemory",
  "NodeFunctions",
  "insert",
  "rebuild",
  "remove",
  "start",
]

# The orders of `build_tree` that depend on the coordinates only, so that there are cuts.
ORDERS = ("kd", "axis")
REACH = 6  # the default depth of the subtrees in which a token may leave its cuts


def start(
  functions: NodeFunctions,
  tokens: jax.Array,
  coords: jax.Array,
  mask: jax.Array | None = None,
  *,
  values: jax.Array | None = None,
  capacity: int | None = None,
  branch_factor: int = 2,
  order: tree_lib.Order = "kd",
  axis: int = 0,
) -> GrowingMemory:
  """Builds a memory with free leaf slots.

  Every node splits its tokens evenly, so that the free slots are spread over the tree.

  Args:
    functions: the `NodeFunctions`.
    tokens: `[N, D]` floating point.
    coords: `[N, C]` floating point, the location of each token.
    mask: `[N]` bool, True at valid tokens; None means that all are valid.
    values: `[N, E]` floating point, the observed values, for a `NodeMemory`; None
      means a `TreeMemory`.
    capacity: the smallest allowed L; L is the next power of b. None means 2 N.
    branch_factor: b.
    order: "kd" or "axis", see `build_tree`.
    axis: the coordinate that order "axis" sorts by.

  Returns:
    A `GrowingMemory`. The numbers of the tokens are their positions in the arguments.

  Raises:
    ValueError: if a shape, a dtype or an option is wrong, or if the capacity is below
      N; outside a transformation also if no token is valid, or if an entry of a valid
      token is not finite.

  >>> from tca_jax.masking import masked_mean
  >>> mean = lambda x, mask: masked_mean(x, mask[..., None], axis=-2)
  >>> heads = lambda x: (x[..., None, :], x[..., None, :], None)
  >>> x = jnp.array([[0.0], [2.0], [4.0]])
  >>> growing = start(NodeFunctions(mean, heads), x, x, capacity=8)
  >>> growing.capacity, growing.tree.num_valid.item(), growing.mask.tolist()[:4]
  (8, 3, [True, True, True, False])
  """
  arrays = _check_context(tokens, coords, mask, values)
  num_tokens = len(arrays["coords"])
  capacity = 2 * num_tokens if capacity is None else capacity
  check_sizes(capacity=capacity)
  if capacity < num_tokens:
    raise ValueError(
      f"capacity must be at least the number of tokens, {num_tokens}, got {capacity}"
    )
  return _build(functions, _fill(arrays, capacity, branch_factor), branch_factor,
                order, axis)  # fmt: skip


def rebuild(
  functions: NodeFunctions,
  growing: GrowingMemory,
  *,
  capacity: int | None = None,
  order: tree_lib.Order = "kd",
  axis: int = 0,
) -> GrowingMemory:
  """Balances the tree again, by default with b times as many leaf slots.

  Tokens keep their numbers.

  Args:
    functions: the `NodeFunctions`.
    growing: the `GrowingMemory` of one context.
    capacity: the smallest allowed L of the result, at least the present one; L is the
      next power of b. None means b times the present one.
    order: "kd" or "axis", as in `start`.
    axis: the coordinate that order "axis" sorts by.

  Raises:
    ValueError: if an option is wrong, or if the capacity is below the present one;
      outside a transformation also if there is no token.
  """
  b, present = growing.tree.branch_factor, growing.capacity
  capacity = b * present if capacity is None else capacity
  check_sizes(capacity=capacity)
  if capacity < present:
    raise ValueError(
      f"capacity must be at least the present one, {present}, because tokens keep their"
      f" numbers, got {capacity}"
    )
  arrays = {"coords": growing.coords, "tokens": growing.tokens, "mask": growing.mask}
  if isinstance(growing.memory, NodeMemory):
    arrays["values"] = growing.values
  return _build(functions, _fill(arrays, capacity, b), b, order, axis)


def insert(
  functions: NodeFunctions,
  growing: GrowingMemory,
  tokens: jax.Array,
  coords: jax.Array,
  mask: jax.Array | None = None,
  *,
  values: jax.Array | None = None,
  reach: int = REACH,
) -> tuple[GrowingMemory, jax.Array]:
  """Inserts tokens, and renews the nodes above them.

  A token goes down the cuts of the tree. If its leaf is taken, it takes a free one
  nearby, in the subtree of b**reach leaf slots that the cuts lead to. If this subtree
  is full, the token is refused: its number is -1. `rebuild` makes room.

  Args:
    functions: the `NodeFunctions` with which the memory was built.
    growing: the `GrowingMemory` of one context.
    tokens: `[K, D]` floating point.
    coords: `[K, C]` floating point, the locations of the new tokens.
    mask: `[K]` bool, True at valid tokens; the others are refused. None means that all
      are valid.
    values: `[K, E]` floating point, the observed values, for a `NodeMemory`.
    reach: the depth of the subtrees in which a token may leave its cuts, at least 1. A
      large one refuses fewer tokens. A small one keeps neighbours together.

  Returns:
    The memory, and the numbers of the tokens, `[K]` int32; -1 where refused.

  Raises:
    ValueError: if a shape or dtype does not fit the memory, or if reach is below 1;
      outside a transformation also if an entry of a valid token is not finite.

  >>> from tca_jax.masking import masked_mean
  >>> mean = lambda x, mask: masked_mean(x, mask[..., None], axis=-2)
  >>> heads = lambda x: (x[..., None, :], x[..., None, :], None)
  >>> functions = NodeFunctions(mean, heads)
  >>> x = jnp.array([[0.0], [2.0], [4.0]])
  >>> growing = start(functions, x, x, capacity=4)
  >>> growing, numbers = insert(functions, growing, x + 1, x + 1)
  >>> numbers.tolist(), growing.coords.tolist()
  ([3, -1, -1], [[0.0], [2.0], [4.0], [1.0]])
  """
  check_sizes(reach=reach)
  arrays = _check_new(growing, tokens, coords, mask, values)
  tree, num_free = growing.tree, growing.capacity - growing.tree.num_valid
  leaf, found = find_slots(tree, growing.cuts, arrays["coords"], arrays["mask"], reach)
  rank = jnp.cumsum(found, dtype=jnp.int32)
  number = jnp.asarray(growing.free)[jnp.maximum(num_free - rank, 0)]
  number = jnp.where(found, number, -1)

  def put(x: jax.Array, at: jax.Array, new: typing.Any) -> jax.Array:
    return set_rows(x, at, found, new)

  growing = dataclasses.replace(
    growing,
    coords=put(growing.coords, number, arrays["coords"]),
    values=put(growing.values, number, arrays["values"]),
    leaf=put(growing.leaf, number, leaf),
  )
  growing = set_leaves(
    functions, growing, leaf, found, number, arrays["tokens"], arrays
  )
  return growing, number


def remove(
  functions: NodeFunctions, growing: GrowingMemory, numbers: jax.Array
) -> tuple[GrowingMemory, jax.Array]:
  """Removes tokens, and renews the nodes above them.

  Args:
    functions: the `NodeFunctions` with which the memory was built.
    growing: the `GrowingMemory` of one context.
    numbers: `[K]` integers, the numbers of tokens. A number without token, such as -1,
      has no effect, and neither has the repetition of a number.

  Returns:
    The memory, and `[K]` bool, True where a token was removed.

  Raises:
    ValueError: if numbers is not `[K]` integers.
  """
  numbers = as_array("numbers", numbers)
  if numbers.ndim != 1 or not jnp.issubdtype(numbers.dtype, jnp.integer):
    raise ValueError(
      f"numbers must be [K] integers, got {numbers.dtype} of shape {numbers.shape}"
    )
  numbers = numbers.astype(jnp.int32)
  size, capacity = len(numbers), growing.capacity
  inside = (numbers >= 0) & (numbers < capacity)
  leaf = jnp.asarray(growing.leaf)[jnp.where(inside, numbers, 0)]
  # The first of each number; the others are set to the end by a stable sort.
  order = jnp.argsort(numbers, stable=True)
  ordered = numbers[order]
  first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])[:size]
  first = jnp.zeros(size, bool).at[order].set(first, unique_indices=True)
  found = inside & (leaf >= 0) & first
  rank = jnp.cumsum(found, dtype=jnp.int32) - 1
  num_free = capacity - growing.tree.num_valid

  def put(x: jax.Array, at: jax.Array, new: typing.Any) -> jax.Array:
    return set_rows(x, at, found, new)

  growing = dataclasses.replace(
    growing,
    coords=put(growing.coords, numbers, 0),
    values=put(growing.values, numbers, 0),
    leaf=put(growing.leaf, numbers, -1),
    free=put(growing.free, num_free + rank, numbers),
  )
  tokens = jnp.zeros((size, growing.nodes.shape[-1]), growing.nodes.dtype)
  return set_leaves(functions, growing, leaf, found, None, tokens, None), found


# --- Building.


def _fill(
  arrays: dict[str, jax.Array], capacity: int, branch_factor: int
) -> dict[str, jax.Array]:
  """Appends masked tokens, up to a power of b of at least b tokens."""
  depth = max(tree_lib.tree_depth(capacity, branch_factor), 1)
  more = branch_factor**depth - len(arrays["coords"])
  return {
    name: jnp.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1))
    for name, x in arrays.items()
  }


def _build(
  functions: NodeFunctions,
  arrays: dict[str, jax.Array],
  branch_factor: int,
  order: tree_lib.Order,
  axis: int,
) -> GrowingMemory:
  """Builds the memory of L tokens, some of which are masked."""
  if order not in ORDERS:
    raise ValueError(
      f"order must be one of {ORDERS} for a memory that grows, got {order!r}"
    )
  coords, tokens, mask = (arrays[name] for name in ("coords", "tokens", "mask"))
  capacity = len(coords)
  tree = as_grown(
    tree_lib.build_tree(
      coords, mask, branch_factor=branch_factor, order=order, axis=axis
    )
  )
  if "values" in arrays:
    statistics = node_statistics(
      tree, coords, arrays["values"], keep_border=functions.keep_border
    )
    families = zip(statistics.levels[:-1], statistics.levels[1:], strict=True)
    features = [relative.child_features(*family) for family in families]
    if tokens.shape[1]:
      levels = tree_lib.aggregate(
        functions.aggregate, tree, tokens, node_features=features
      )
    else:  # no summaries
      levels = tuple(x.centroid[:, :0] for x in statistics.levels)
    summaries = [functions.project(level) for level in levels]
    evidence = log_likelihoods(tree, statistics, functions.noise)
    memory: typing.Any = node_memory.pack_nodes(tree, statistics, summaries, evidence)
    nodes = memory_lib.join_levels(levels, branch_factor)
  else:
    levels = tree_lib.aggregate(functions.aggregate, tree, tokens)
    nodes = memory_lib.join_levels(levels, branch_factor)
    memory = memory_lib.from_slots(tree, *functions.project(nodes))
  index = jnp.arange(capacity, dtype=jnp.int32)
  leaf = set_rows(jnp.full(capacity, -1, jnp.int32), tree.leaf_index,
                   tree.leaf_mask, index)  # fmt: skip
  backwards = index[::-1]
  return GrowingMemory(
    memory=memory,
    cuts=find_cuts(tree, coords, axis if order == "axis" else None),
    nodes=nodes.reshape(len(nodes) // branch_factor, branch_factor, nodes.shape[-1]),
    coords=coords,
    values=arrays.get("values", jnp.zeros((capacity, 0), coords.dtype)),
    leaf=leaf,
    free=backwards[jnp.argsort(mask[::-1], stable=True)],
  )


# --- Checks.


def _check_context(
  tokens: jax.Array,
  coords: jax.Array,
  mask: jax.Array | None,
  values: jax.Array | None,
) -> dict[str, jax.Array]:
  """Checks the tokens of one context; returns them by name, 0 where masked."""
  coords = as_array("coords", coords)
  if coords.ndim != 2:
    raise ValueError(
      f"coords must be [N, C], got shape {coords.shape}; batch with jax.vmap"
    )
  features = {"tokens": tokens} | ({} if values is None else {"values": values})
  coords, mask, *cleaned = clean_context(coords, mask, **features)
  if jnp.finfo(coords.dtype).bits < 32:
    coords = coords.astype(jnp.float32)
  arrays = {"coords": coords, "mask": mask}
  return arrays | dict(zip(features, cleaned, strict=True))


def _check_new(
  growing: GrowingMemory,
  tokens: jax.Array,
  coords: jax.Array,
  mask: jax.Array | None,
  values: jax.Array | None,
) -> dict[str, jax.Array]:
  """Checks new tokens; returns them by name, 0 where masked, in the memory's types."""
  if growing.leaf.ndim != 1:
    raise ValueError(
      f"growing must be the memory of one context, got a batch of shape"
      f" {growing.leaf.shape[:-1]}; batch with jax.vmap"
    )
  relative_memory = isinstance(growing.memory, NodeMemory)
  if relative_memory != (values is not None):
    raise ValueError(
      f"values must be {'given' if relative_memory else 'None'} for a"
      f" {type(growing.memory).__name__}, got {'None' if values is None else 'values'}"
    )
  arrays = {"coords": as_array("coords", coords), "tokens": as_array("tokens", tokens)}
  like = {"coords": growing.coords, "tokens": growing.nodes, "values": growing.values}
  if values is not None:
    arrays["values"] = as_array("values", values)
  size = arrays["coords"].shape[0] if arrays["coords"].ndim else 0
  for name, x in arrays.items():
    if x.ndim != 2 or x.shape != (size, like[name].shape[-1]):
      raise ValueError(
        f"{name} must be [K, {like[name].shape[-1]}] with one K, got shape {x.shape}"
      )
  check_floating(**arrays)
  mask = jnp.ones(size, bool) if mask is None else as_array("mask", mask)
  check_mask(mask, (size,))
  arrays = {
    name: jnp.where(mask[:, None], x, 0).astype(like[name].dtype)
    for name, x in arrays.items()
  }
  check_finite(**arrays)
  arrays.setdefault("values", jnp.zeros((size, 0), growing.values.dtype))
  return arrays | {"mask": mask}
