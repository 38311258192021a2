"""Trees: construction against the recursive twin, properties, aggregation, errors."""

import itertools

import chex
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tca_jax import tree as tree_lib
from tests import cases
from tests import reference

# One compilation for all the cases of a shape.
_build = jax.jit(
  tree_lib.build_tree, static_argnames=("branch_factor", "order", "axis")
)


def _leaves(tree):
  """The tokens in leaf order, -1 at padding."""
  return np.where(tree.leaf_mask, tree.leaf_index, -1).tolist()


def _reference_leaves(root):
  leaves = reference.nodes_by_level(root)[-1]
  return [node.tokens[0] if node.tokens else -1 for node in leaves]


@pytest.mark.parametrize("order", ["kd", "given", "axis"])
@pytest.mark.parametrize("b", cases.BRANCH_FACTORS)
@pytest.mark.parametrize("n", cases.SIZES)
def test_build_tree_equals_reference(n, b, order, rng):
  for layout, kind in itertools.product(cases.LAYOUTS, cases.MASKS):
    coords, mask = cases.coords(layout, n, rng), cases.mask(kind, n, rng)
    tree = _build(coords, mask, branch_factor=b, order=order, axis=1)
    root = reference.build(coords, mask, b, order, axis=1)
    on_host = tree_lib.build_tree(coords, mask, branch_factor=b, order=order, axis=1)
    chex.assert_trees_all_equal(on_host, tree)
    assert _leaves(tree) == _reference_leaves(root), (layout, kind)
    levels = reference.nodes_by_level(root)
    for l, level in enumerate(levels):
      assert tree.node_count(l).tolist() == [len(node.tokens) for node in level]
    assert tree.depth == len(levels) - 1
    assert tree.branch_factor == b
    assert tree.num_leaves == b**tree.depth
    assert np.all((tree.leaf_index >= 0) & (tree.leaf_index < n))
    assert tree.leaf_index.dtype == jnp.int32 and tree.leaf_mask.dtype == bool


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tree_properties(data):
  n = data.draw(st.sampled_from([1, 2, 7, 16, 17]))
  b = data.draw(st.sampled_from([2, 3, 5]))
  order = data.draw(st.sampled_from(tree_lib.ORDERS))
  mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
  values = st.sampled_from([-1e30, -1.0, -0.0, 0.0, 1e-30, 2.0, 3e38])
  flat = data.draw(st.lists(values, min_size=2 * n, max_size=2 * n))
  coords = np.array(flat, np.float32).reshape(n, 2)
  tree = _build(coords, mask, branch_factor=b, order=order, rng=jax.random.key(1))
  if order == "kd" and mask.any():  # NumPy builds what XLA builds
    on_host = tree_lib.build_tree(coords, mask, branch_factor=b)
    chex.assert_trees_all_equal(on_host, tree)
  # A permutation: every valid token is in exactly one valid leaf.
  taken = np.asarray(tree.leaf_index)[np.asarray(tree.leaf_mask)]
  assert sorted(taken.tolist()) == np.flatnonzero(mask).tolist()
  assert tree.num_valid == mask.sum()
  for level in range(1, tree.depth + 1):
    counts = np.asarray(tree.node_count(level)).reshape(-1, b)
    assert np.all(counts.max(-1) - counts.min(-1) <= 1)
    assert np.all(np.diff(counts, axis=-1) <= 0), "larger parts first"


def test_random_projection_sorts_by_a_direction(rng):
  coords = cases.coords("random", 33, rng)
  first = tree_lib.build_tree(coords, order="random_projection", rng=jax.random.key(0))
  other = tree_lib.build_tree(coords, order="random_projection", rng=jax.random.key(1))
  direction = jax.random.normal(jax.random.key(0), (2,))
  expected = np.argsort(np.asarray(coords @ direction), kind="stable")
  np.testing.assert_array_equal(first.leaf_index[np.asarray(first.leaf_mask)], expected)
  assert _leaves(first) != _leaves(other)


def test_random_order_is_a_shuffle(rng):
  coords = cases.coords("random", 33, rng)
  first, other = (
    tree_lib.build_tree(coords, order="random", rng=jax.random.key(seed))
    for seed in (0, 1)
  )
  assert _leaves(first) != _leaves(other)
  given = tree_lib.build_tree(coords, order="given")
  assert sorted(_leaves(first)) == sorted(_leaves(given)) != _leaves(first)


@pytest.mark.parametrize("order", tree_lib.ORDERS)
def test_masked_tree_equals_truncated_tree(order, rng):
  n, padding = 21, 30
  coords = cases.coords("random", n + padding, rng)
  # Truncation keeps the order of the valid tokens, wherever the padding stands.
  valid = np.zeros(n + padding, bool)
  valid[np.sort(rng.permutation(n + padding)[:n])] = True
  key = jax.random.key(0)
  masked = tree_lib.build_tree(coords, valid, order=order, rng=key)
  truncated = tree_lib.build_tree(coords[valid], order=order, rng=key)
  position = np.flatnonzero(valid)
  masked_leaves = [i for i in _leaves(masked) if i >= 0]
  truncated_leaves = [position[i] for i in _leaves(truncated) if i >= 0]
  assert masked_leaves == truncated_leaves
  np.testing.assert_array_equal(masked.root_count, truncated.root_count)


def test_large_levels_are_aggregated_in_chunks(rng, monkeypatch):
  coords, mask = cases.coords("random", 33, rng), cases.mask("random", 33, rng)
  tree, tokens = tree_lib.build_tree(coords, mask), rng.normal(size=(33, 3))
  mean = lambda x, m: x.sum(-2) / jnp.maximum(m.sum(-1), 1)[..., None]  # noqa: E731
  whole = tree_lib.aggregate(mean, tree, tokens)
  monkeypatch.setattr(tree_lib, "CHUNK", 5)
  chunked = tree_lib.aggregate(mean, tree, tokens)
  chex.assert_trees_all_close(chunked, whole, rtol=1e-6)


def test_counts_of_a_batch_of_trees_are_those_of_each(rng):
  masks = np.stack([cases.mask("random", 9, rng) for _ in range(4)])
  trees = jax.vmap(lambda mask: tree_lib.build_tree(jnp.ones((9, 1)), mask))(masks)
  for level in range(trees.depth + 1):
    each = jax.vmap(lambda tree, level=level: tree.node_count(level))(trees)
    np.testing.assert_array_equal(trees.node_count(level), each)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("order", tree_lib.ORDERS)
def test_what_is_not_finite_under_jit_still_has_its_leaf(order, bad):
  coords = np.arange(20, dtype=np.float32).reshape(10, 2)
  coords[1] = bad
  mask = np.arange(10) < 7
  key = jax.random.key(0)
  tree = jax.jit(lambda *x: tree_lib.build_tree(*x, order=order, rng=key))(coords, mask)
  assert sorted(i for i in _leaves(tree) if i >= 0) == list(range(7))


def test_masked_tokens_never_matter(rng):
  coords = cases.coords("random", 33, rng)
  mask = cases.mask("random", 33, rng)
  expected = _build(coords, mask)
  for junk in (np.nan, np.inf, -np.inf, 1e30):
    actual = _build(np.where(mask[:, None], coords, junk), mask)
    chex.assert_trees_all_equal(actual, expected)


def test_all_masked_tree_under_jit_is_empty():
  tree = _build(np.ones((5, 2), np.float32), np.zeros(5, bool))
  assert not np.any(tree.leaf_mask)
  assert not np.any(tree.root_count)


def test_jit_equals_eager_and_vmap_equals_loop(rng):
  coords = np.stack([cases.coords("random", 33, rng) for _ in range(4)])
  mask = np.stack([cases.mask("random", 33, rng) for _ in range(4)])
  batch = jax.jit(jax.vmap(tree_lib.build_tree))(coords, mask)
  assert (batch.depth, batch.branch_factor, batch.num_leaves) == (6, 2, 64)
  for i in range(4):
    one = jax.tree.map(lambda x, i=i: x[i], batch)
    chex.assert_trees_all_equal(one, tree_lib.build_tree(coords[i], mask[i]))


def test_one_trace_a_shape(count_traces, rng):
  counter, build = count_traces(tree_lib.build_tree)
  for kind in cases.MASKS:
    for _ in range(3):
      build(cases.coords("random", 20, rng), cases.mask(kind, 20, rng))
  assert counter.traces == 1


def _mean_and_max(children, mask):
  """Sensitive to every child: their mean plus half their maximum."""
  count = jnp.maximum(mask.sum(-1), 1)[..., None]
  peak = jnp.max(jnp.where(mask[..., None], children, -1e9), axis=-2)
  return children.sum(-2) / count + 0.5 * peak


@pytest.mark.parametrize("b", cases.BRANCH_FACTORS)
@pytest.mark.parametrize("n", cases.SIZES)
def test_aggregate_equals_reference(n, b, rng):
  for kind in cases.MASKS:
    coords, mask = cases.coords("random", n, rng), cases.mask(kind, n, rng)
    tokens = rng.normal(size=(n, 4)).astype(np.float32)
    tree = _build(coords, mask, branch_factor=b)
    levels = tree_lib.aggregate(_mean_and_max, tree, tokens)
    expected = reference.aggregate(
      lambda own: own.mean(0) + 0.5 * own.max(0),
      reference.build(coords, mask, b),
      tokens,
    )
    assert [level.shape for level in levels] == [
      (b**l, 4) for l in range(tree.depth + 1)
    ]
    for (level, index), value in expected.items():
      np.testing.assert_allclose(levels[level][index], value, rtol=1e-5, atol=1e-5)


def test_aggregate_ignores_masked_tokens_and_has_finite_gradients(rng):
  coords = cases.coords("random", 19, rng)
  tokens = rng.normal(size=(19, 4)).astype(np.float32)

  def root(tokens, mask):
    tree = tree_lib.build_tree(coords, mask)
    return tree_lib.aggregate(_mean_and_max, tree, tokens)[0].sum()

  value_and_grad = jax.jit(jax.value_and_grad(root))
  for kind in (*cases.MASKS, "none"):
    mask = np.zeros(19, bool) if kind == "none" else cases.mask(kind, 19, rng)
    value, grad = value_and_grad(tokens, mask)
    junk = np.where(mask[:, None], tokens, np.nan).astype(np.float32)
    value_junk, grad_junk = value_and_grad(junk, mask)
    assert value == value_junk and np.isfinite(value)
    np.testing.assert_array_equal(grad, grad_junk)
    assert np.all(np.isfinite(grad)) and not np.any(np.asarray(grad)[~mask])


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(coords=np.ones((3,), np.float32)), r"coords must be \[N, C\]"),
    (dict(coords=np.ones((2, 3, 2), np.float32)), "batch with jax.vmap"),
    (dict(coords=np.ones((0, 2), np.float32)), "N >= 1"),
    (dict(coords=np.ones((3, 0), np.float32)), "C >= 1"),
    (dict(coords=np.ones((3, 2), int)), "floating point, got dtype int32"),
    (dict(coords=np.full((3, 2), np.nan, np.float32)), "must be finite"),
    (dict(mask=np.ones(4, bool)), r"mask must be \(3,\)"),
    (dict(mask=np.ones(3, int)), "mask must be bool"),
    (dict(mask=np.zeros(3, bool)), "at least one valid token"),
    (dict(branch_factor=1), "branch_factor must be an int >= 2, got 1"),
    (dict(branch_factor=2.5), "branch_factor must be an int >= 2, got 2.5"),
    (dict(order="octree"), "order must be one of .* got 'octree'"),
    (dict(order="axis", axis=2), r"axis must be in \[-2, 2\), got 2"),
    (dict(order="random_projection"), "needs rng"),
    (dict(order="random"), "needs rng"),
  ],
)
def test_bad_input_is_named(change, message):
  arguments = dict(coords=np.ones((3, 2), np.float32)) | change
  with pytest.raises(ValueError, match=message):
    tree_lib.build_tree(**arguments)


def test_aggregate_rejects_tokens_of_another_size():
  tree = tree_lib.build_tree(np.ones((5, 1), np.float32))
  with pytest.raises(ValueError, match=r"tokens must be \[N, D\]"):
    tree_lib.aggregate(_mean_and_max, tree, np.ones((9, 4), np.float32))


def test_aggregate_rejects_integers():
  tree = tree_lib.build_tree(jnp.ones((3, 1)))
  with pytest.raises(
    ValueError, match="tokens must be floating point, got dtype int32"
  ):
    tree_lib.aggregate(lambda x, m: x[..., 0, :], tree, jnp.ones((3, 1), int))


def test_branch_factors_and_paths_below_their_least_are_refused():
  for call in (
    lambda: tree_lib.tree_depth(4, 1),
    lambda: tree_lib.num_read_slots(8, 1),
    lambda: tree_lib.subtree_mass(jnp.ones(4), 1),
  ):
    with pytest.raises(ValueError, match="branch_factor must be at least 2, got 1"):
      call()
  with pytest.raises(ValueError, match="num_paths must be at least 1, got 0"):
    tree_lib.num_read_slots(8, 2, 0)


def test_subtree_mass_rejects_a_wrong_size():
  with pytest.raises(ValueError, match="a power of 2"):
    tree_lib.subtree_mass(jnp.ones(6), 2)
