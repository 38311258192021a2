"""Trees of batches of contexts: built or checked, and aggregated by a module."""

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tca_jax import checks
from tca_jax import sharded_building
from tca_jax import tree as tree_lib
from tca_jax.modules.layers import Aggregator

__all__ = ["aggregate", "build_or_check"]


def build_or_check(
  tree: tree_lib.Tree | None,
  coords: jax.Array,
  mask: jax.Array,
  branch_factor: int,
  *,
  order: tree_lib.Order = "kd",
  axis: int = 0,
  order_seed: int = 0,
) -> tree_lib.Tree:
  """Builds a batch of trees, or checks the trees given.

  Args:
    tree: a batch of B trees; None means that they are built.
    coords: `[B, N, C]`.
    mask: `[B, N]` bool, True at valid tokens.
    branch_factor: b.
    order: how tokens are ordered into leaves, see `build_tree`.
    axis: the coordinate that order "axis" sorts by.
    order_seed: the random seed of the random orders, the same for all contexts.

  Raises:
    ValueError: if an option is wrong, or if the given trees do not fit the contexts.
  """
  if tree is not None:
    _check_trees(tree, mask, branch_factor)
    return tree

  def build(coords: jax.Array, mask: jax.Array) -> tree_lib.Tree:
    draws = order in ("random", "random_projection")
    rng = jax.random.key(order_seed) if draws else None
    return tree_lib.build_tree(
      coords, mask, branch_factor=branch_factor, order=order, axis=axis, rng=rng
    )

  return jax.vmap(build)(coords, mask)


def aggregate(
  aggregator: Aggregator,
  tree: tree_lib.Tree,
  tokens: jax.Array,
  node_features: Sequence[jax.Array] | None = None,
  *,
  train: bool,
  gradient: bool,
) -> tuple[jax.Array, ...]:
  """Aggregates a batch of trees with a bound module; see `tree.aggregate`.

  Args:
    aggregator: the module, bound to a parent.
    tree: a batch of B trees.
    tokens: `[B, N, D]`.
    node_features: depth levels of `[B, b**l, D]`, from the children of the root to the
      leaves, that are added to the values of children.
    train: whether to use dropout.
    gradient: whether gradients flow through the inner nodes.

  Returns:
    depth + 1 levels of `[B, b**l, D]`.
  """
  if aggregator.is_initializing():
    # Large levels are aggregated in a loop, where parameters cannot be created.
    children = jnp.zeros((1, tree.branch_factor, tokens.shape[-1]), tokens.dtype)
    aggregator(children, jnp.ones(children.shape[:2], bool))

  def aggregate_one(aggregator, tree, tokens, node_features):
    def aggregate_fn(children, mask, *features):
      if not gradient:
        children = jax.lax.stop_gradient(children)
      return aggregator(sum(features, children), mask, train)

    return sharded_building.aggregate(
      aggregate_fn,
      tree,
      tokens,
      node_features=node_features,
      in_chunks=not (train and aggregator.dropout > 0),
    )

  batched = nn.vmap(
    aggregate_one,
    variable_axes={"params": None},
    split_rngs={"params": False, "dropout": True},
  )
  return batched(aggregator, tree, tokens, node_features)


def _check_trees(tree: tree_lib.Tree, mask: jax.Array, branch_factor: int) -> None:
  """Raises ValueError unless `[B]` trees fit contexts with a mask `[B, N]`."""
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
  if checks.is_traced(tree.leaf_index, tree.leaf_mask, mask):
    return
  count = np.zeros((batch, num_tokens + 1), int)  # the last column: out of range
  leaf = np.where(tree.leaf_mask, np.minimum(tree.leaf_index, num_tokens), num_tokens)
  np.add.at(count, (np.arange(batch)[:, None], leaf), np.asarray(tree.leaf_mask))
  if not np.array_equal(count, np.pad(mask, ((0, 0), (0, 1)))):
    raise ValueError(
      "tree must contain every valid token of its context exactly once and no other;"
      " build it from the same coordinates and mask"
    )
