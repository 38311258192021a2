"""The packed layout of memories."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tca_jax import memory as memory_lib
from tca_jax import tree as tree_lib
from tests import cases

HEADS, WIDTH = 2, 3
SHAPES = ((1, 2), (2, 2), (3, 2), (7, 2), (8, 2), (9, 2), (9, 3), (10, 3), (5, 4))


def _tree_and_levels(n, b, rng, heads=HEADS, width=WIDTH):
  tree = tree_lib.build_tree(cases.coords("random", n, rng), branch_factor=b)
  sizes = [b**l for l in range(tree.depth + 1)]
  return tree, cases.levels(sizes, heads, width, rng)


@pytest.mark.parametrize("n, b", SHAPES)
def test_pack_stores_every_node_in_its_slot(n, b, rng):
  tree, keys = _tree_and_levels(n, b, rng)
  _, values = _tree_and_levels(n, b, rng)
  memory = memory_lib.pack(tree, keys, values)
  slots = memory_lib.num_slots(tree)
  assert memory.keys.shape == (slots // b, HEADS, b, WIDTH)
  assert memory.values.shape == (slots, HEADS, WIDTH)
  first_inner_node = 0
  for level in range(1, tree.depth + 1):
    level_slots = memory_lib.level_slots(tree, level)
    np.testing.assert_array_equal(memory.values[level_slots], values[level])
    for i in range(b**level):
      row = memory.keys[first_inner_node + i // b]
      np.testing.assert_array_equal(row[:, i % b], keys[level][i])
    first_inner_node += b ** (level - 1)
  if tree.depth:
    assert level_slots.stop == slots, "the leaves are the last slots"


@pytest.mark.parametrize("b", cases.BRANCH_FACTORS)
def test_pack_root_is_the_only_leaf_is_stored_in_slot_0(b, rng):
  tree, levels = _tree_and_levels(1, b, rng)
  memory = memory_lib.pack(tree, levels, levels)
  assert memory_lib.level_slots(tree, 0) == slice(0, 1)
  assert memory_lib.num_slots(tree) == b
  np.testing.assert_array_equal(memory.values[0], levels[0][0])
  np.testing.assert_array_equal(memory.keys[0, :, 0], levels[0][0])


def test_level_slots_root_of_a_deeper_tree_raises(rng):
  tree, _ = _tree_and_levels(5, 2, rng)
  with pytest.raises(ValueError, match="no slot for the root"):
    memory_lib.level_slots(tree, 0)


@pytest.mark.parametrize("n, b", [(1, 2), (5, 2), (9, 3)])
def test_from_slots_joined_levels_equals_pack(n, b, rng):
  tree, keys = _tree_and_levels(n, b, rng)
  _, policy_keys = _tree_and_levels(n, b, rng, 1, 5)
  packed = memory_lib.pack(tree, keys, keys, policy_keys)
  joined = memory_lib.join_levels(keys, b)
  own = memory_lib.join_levels(policy_keys, b)
  memory = memory_lib.from_slots(tree, joined, joined, own)
  chex.assert_trees_all_equal(memory, packed)


@pytest.mark.parametrize("n, b", [(1, 2), (5, 2), (9, 3)])
def test_from_slots_batch_equals_each(n, b, rng):
  tree, _ = _tree_and_levels(n, b, rng)
  trees = jax.tree.map(lambda x: jnp.stack([x, x]), tree)
  shape = (2, memory_lib.num_slots(tree), HEADS, WIDTH)
  keys, values = rng.normal(size=(2, *shape)).astype(np.float32)
  batch = memory_lib.from_slots(trees, keys, values)
  assert memory_lib.num_slots(trees) == memory_lib.num_slots(tree)
  for i in range(2):
    chex.assert_trees_all_equal(
      jax.tree.map(lambda x, i=i: x[i], batch),
      memory_lib.from_slots(tree, keys[i], values[i]),
    )


def test_from_slots_wrong_number_of_slots_raises(rng):
  tree, keys = _tree_and_levels(5, 2, rng)
  joined = memory_lib.join_levels(keys, 2)
  with pytest.raises(ValueError, match=r"values must be \(14,\) \+ \(H, width\)"):
    memory_lib.from_slots(tree, joined, joined[1:])
  with pytest.raises(ValueError, match="policy_keys must be"):
    memory_lib.from_slots(tree, joined, joined, joined[None])


@pytest.mark.parametrize("n, b", SHAPES)
def test_leaves_of_one_memory_and_of_a_batch_are_the_last_level(n, b, rng):
  tree, keys = _tree_and_levels(n, b, rng)
  _, values = _tree_and_levels(n, b, rng, HEADS, 5)
  memory = memory_lib.pack(tree, keys, values)
  leaves = memory_lib.leaves(memory)
  np.testing.assert_array_equal(leaves.keys, keys[-1])
  np.testing.assert_array_equal(leaves.values, values[-1])
  np.testing.assert_array_equal(leaves.mask, tree.leaf_mask)
  batch = memory_lib.leaves(jax.tree.map(lambda x: x[None], memory))
  chex.assert_trees_all_equal(batch, jax.tree.map(lambda x: x[None], leaves))


@pytest.mark.parametrize("n, b", SHAPES)
@pytest.mark.parametrize("all_valid", [True, False])
def test_for_training_keeps_every_leaf_that_can_have_a_token(n, b, all_valid, rng):
  _, keys = _tree_and_levels(n, b, rng)
  mask = np.arange(n) < (n if all_valid else max(n // 2, 1))
  coords = rng.normal(size=(n, 2)).astype(np.float32)
  tree = tree_lib.build_tree(coords, mask, branch_factor=b)
  joined = memory_lib.join_levels(keys, b)
  memory = memory_lib.from_slots(tree, joined, 2 * joined)
  found = memory_lib.for_training(memory, joined, n).tokens
  assert found.keys.shape == (n, *joined.shape[1:])
  leaves = memory_lib.leaves(memory)
  ones = memory_lib.spread_leaves(jnp.ones(n), tree.num_leaves, b).astype(bool)
  assert np.all(ones | ~np.asarray(tree.leaf_mask))
  chex.assert_trees_all_equal(found, jax.tree.map(lambda x: x[ones], leaves))
  weights = rng.random((3, n)).astype(np.float32)
  spread = np.asarray(memory_lib.spread_leaves(weights, tree.num_leaves, b))
  np.testing.assert_array_equal(spread[:, ones], weights)
  assert not np.any(spread[:, ~ones])


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(keys=lambda x: x[:-1]), r"keys must have depth \+ 1 = 4 levels, got 3"),
    (dict(values=lambda x: x[1:]), r"values must have depth \+ 1 = 4 levels, got 3"),
    (dict(keys=lambda x: x[::-1]), r"keys\[0\] must be \[1, 2, 3\]"),
    (dict(values=lambda x: [y[:, :1] for y in x]), r"values\[0\] must be \[1, 2, 3\]"),
    (dict(policy_keys=lambda x: x[::-1]), r"policy_keys\[0\] must be \[1, 2, 3\]"),
    (dict(values=lambda x: [np.int32(y) for y in x]), r"values\[0\] must be floating"),
  ],
)
def test_pack_bad_levels_raise(change, message, rng):
  tree, levels = _tree_and_levels(5, 2, rng)
  arguments = dict(keys=levels, values=levels)
  for name, edit in change.items():
    arguments[name] = edit(levels)
  with pytest.raises(ValueError, match=message):
    memory_lib.pack(tree, **arguments)
