"""Trees against the recursive reference: construction, aggregation and errors."""

import itertools

import chex
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tca_jax
from tca_jax import tree as tree_lib
from tests import cases
from tests import reference

# One compilation serves all contexts of a shape.
_build = jax.jit(
  tree_lib.build_tree, static_argnames=("branch_factor", "order", "axis")
)

# Each order along a line is one stable sort, so that few shapes cover it.
_BUILDS = [(n, b, "kd") for n, b in cases.SHAPES] + [
  (n, b, order)
  for order in ("given", "axis")
  for n, b in ((1, 2), (2, 3), (3, 2), (7, 2), (8, 2), (9, 2), (10, 3), (17, 4))
]


def _leaves(tree):
  """The tokens in leaf order, -1 at padding."""
  return np.where(tree.leaf_mask, tree.leaf_index, -1).tolist()


def _reference_leaves(root):
  leaves = reference.nodes_by_level(root)[-1]
  return [node.tokens[0] if node.tokens else -1 for node in leaves]


@pytest.mark.parametrize("n, b, order", _BUILDS)
def test_build_tree_any_layout_and_mask_equals_reference(n, b, order, rng):
  for layout, kind in itertools.product(cases.LAYOUTS, cases.MASKS):
    coords, mask = cases.coords(layout, n, rng), cases.mask(kind, n, rng)
    tree = _build(coords, mask, branch_factor=b, order=order, axis=1)
    root = reference.build(coords, mask, b, order, axis=1)
    if order == "kd":
      on_host = tree_lib.build_tree(coords, mask, branch_factor=b)
      chex.assert_trees_all_equal(on_host, tree)
    assert _leaves(tree) == _reference_leaves(root), (layout, kind)
    levels = reference.nodes_by_level(root)
    if tree.depth:
      root_count = [len(node.tokens) for node in levels[1]]
      assert np.asarray(tree.root_count).tolist() == root_count
    assert tree.depth == len(levels) - 1
    assert tree.branch_factor == b
    assert tree.num_leaves == b**tree.depth
    assert np.all((tree.leaf_index >= 0) & (tree.leaf_index < n))
    assert tree.leaf_index.dtype == jnp.int32 and tree.leaf_mask.dtype == bool


@pytest.mark.skipif(
  jax.config.jax_check_tracer_leaks or jax.config.jax_debug_key_reuse,
  reason="with these checks, JAX traces in every call",
)
def test_build_tree_outside_jit_compiles_once_per_shape(monkeypatch, rng):
  monkeypatch.setattr(tree_lib, "_on_host", lambda *_: False)  # as on a GPU
  first, second = (rng.random((11, 2), np.float32) for _ in range(2))
  tree_lib.build_tree(first)
  events = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: events.append(event)
  )
  try:
    tree = tree_lib.build_tree(second)
  finally:
    jax.monitoring.clear_event_listeners()
  assert not [event for event in events if "compile" in event]
  chex.assert_trees_all_equal(tree, _build(second))


@pytest.mark.parametrize("order", ["given", "axis"])
def test_build_tree_eager_equals_jit(order, rng):
  coords, mask = cases.coords("duplicates", 9, rng), cases.mask("random", 9, rng)
  eager = tree_lib.build_tree(coords, mask, order=order, axis=1)
  chex.assert_trees_all_equal(eager, _build(coords, mask, order=order, axis=1))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_build_tree_any_input_is_a_balanced_permutation(data):
  n, b = data.draw(st.sampled_from([(2, 2), (9, 2), (17, 5)]))
  order = data.draw(st.sampled_from(tree_lib.ORDERS))
  mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
  values = st.sampled_from([-1e30, -1.0, -0.0, 0.0, 1e-30, 2.0, 3e38])
  flat = data.draw(st.lists(values, min_size=2 * n, max_size=2 * n))
  coords = np.array(flat, np.float32).reshape(n, 2)
  tree = _build(coords, mask, branch_factor=b, order=order, rng=jax.random.key(1))
  if order == "kd" and mask.any():  # NumPy builds the same tree as XLA
    on_host = tree_lib.build_tree(coords, mask, branch_factor=b)
    chex.assert_trees_all_equal(on_host, tree)
  # A permutation: every valid token is in exactly one valid leaf.
  taken = np.asarray(tree.leaf_index)[np.asarray(tree.leaf_mask)]
  assert sorted(taken.tolist()) == np.flatnonzero(mask).tolist()
  assert tree.num_valid == mask.sum()
  for level in range(1, tree.depth + 1):
    counts = np.asarray(tree.node_count(level)).reshape(-1, b)
    assert np.all(counts.max(-1) - counts.min(-1) <= 1)
    assert np.all(np.diff(counts, axis=-1) <= 0), "larger parts come first"


@pytest.mark.parametrize("n, b", cases.SHAPES)
def test_node_count_every_level_equals_reference(n, b, rng):
  for kind in cases.MASKS:
    coords, mask = cases.coords("random", n, rng), cases.mask(kind, n, rng)
    tree = tree_lib.build_tree(coords, mask, branch_factor=b)
    levels = reference.nodes_by_level(reference.build(coords, mask, b))
    for l, level in enumerate(levels):
      assert tree.node_count(l).tolist() == [len(node.tokens) for node in level]
  if tree.depth:
    np.testing.assert_array_equal(tree.root_count, tree.node_count(1))


def test_node_count_batch_of_trees_equals_each(rng):
  masks = np.stack([cases.mask("random", 9, rng) for _ in range(4)])
  each = [tree_lib.build_tree(np.ones((9, 2), np.float32), mask) for mask in masks]
  trees = jax.tree.map(lambda *x: np.stack(x), *each)
  for level in range(trees.depth + 1):
    counts = np.stack([tree.node_count(level) for tree in each])
    np.testing.assert_array_equal(trees.node_count(level), counts)


def test_build_tree_random_projection_sorts_by_a_direction(rng):
  coords = cases.coords("random", 33, rng)
  first, other = (
    _build(coords, order="random_projection", rng=jax.random.key(seed))
    for seed in (0, 1)
  )
  direction = jax.random.normal(jax.random.key(0), (2,), jnp.float32)
  expected = np.argsort(np.asarray(coords @ direction), kind="stable")
  np.testing.assert_array_equal(first.leaf_index[np.asarray(first.leaf_mask)], expected)
  assert _leaves(first) != _leaves(other)


def test_build_tree_random_order_is_a_shuffle(rng):
  coords = cases.coords("random", 33, rng)
  first, other = (
    _build(coords, order="random", rng=jax.random.key(seed)) for seed in (0, 1)
  )
  assert _leaves(first) != _leaves(other)
  given = _build(coords, order="given")
  assert sorted(_leaves(first)) == sorted(_leaves(given)) != _leaves(first)


@pytest.mark.parametrize("order", tree_lib.ORDERS)
def test_build_tree_masked_context_equals_truncated_context(order, rng):
  n, padding = 21, 30
  coords = cases.coords("random", n + padding, rng)
  # Truncation keeps the order of the valid tokens, wherever the padding is.
  valid = np.zeros(n + padding, bool)
  valid[np.sort(rng.permutation(n + padding)[:n])] = True
  masked = _build(coords, valid, order=order, rng=jax.random.key(0))
  truncated = _build(coords[valid], order=order, rng=jax.random.key(0))
  position = np.flatnonzero(valid)
  masked_leaves = [i for i in _leaves(masked) if i >= 0]
  truncated_leaves = [position[i] for i in _leaves(truncated) if i >= 0]
  assert masked_leaves == truncated_leaves
  np.testing.assert_array_equal(masked.root_count, truncated.root_count)


@pytest.mark.parametrize("order", tree_lib.ORDERS)
def test_build_tree_not_finite_under_jit_keeps_every_token(order):
  mask = np.arange(10) < 7
  for bad in (np.nan, np.inf, -np.inf):
    coords = np.arange(20, dtype=np.float32).reshape(10, 2)
    coords[1] = bad
    tree = _build(coords, mask, order=order, rng=jax.random.key(0))
    assert sorted(i for i in _leaves(tree) if i >= 0) == list(range(7))


def test_build_tree_masked_coordinates_are_ignored(rng):
  coords = cases.coords("random", 33, rng)
  mask = cases.mask("random", 33, rng)
  expected = _build(coords, mask)
  for junk in (np.nan, np.inf, -np.inf, 1e30):
    actual = _build(np.where(mask[:, None], coords, np.float32(junk)), mask)
    chex.assert_trees_all_equal(actual, expected)


def test_build_tree_all_masked_under_jit_is_empty():
  tree = _build(np.ones((5, 2), np.float32), np.zeros(5, bool))
  assert not np.any(tree.leaf_mask)
  assert not np.any(tree.root_count)


def test_build_tree_vmap_equals_loop(rng):
  coords = np.stack([cases.coords("random", 33, rng) for _ in range(4)])
  mask = np.stack([cases.mask("random", 33, rng) for _ in range(4)])
  batch = jax.jit(jax.vmap(tree_lib.build_tree))(coords, mask)
  assert (batch.depth, batch.branch_factor, batch.num_leaves) == (6, 2, 64)
  for i in range(4):
    one = jax.tree.map(lambda x, i=i: x[i], batch)
    chex.assert_trees_all_equal(one, tree_lib.build_tree(coords[i], mask[i]))


def test_build_tree_same_shape_is_traced_once(count_traces, rng):
  counter, build = count_traces(tree_lib.build_tree)
  for kind in cases.MASKS:
    for _ in range(3):
      build(cases.coords("random", 20, rng), cases.mask(kind, 20, rng))
  assert counter.traces == 1


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(coords=np.ones((3,), np.float32)), r"coords must be \[N, C\]"),
    (dict(coords=np.ones((2, 3, 2), np.float32)), "batch with jax.vmap"),
    (dict(coords=np.ones((0, 2), np.float32)), "N >= 1"),
    (dict(coords=np.ones((3, 0), np.float32)), "C >= 1"),
    (dict(coords=np.ones((3, 2), np.int32)), "floating point, got dtype int32"),
    (dict(coords=np.full((3, 2), np.nan, np.float32)), "must be finite"),
    (dict(mask=np.ones(4, bool)), r"mask must be \(3,\)"),
    (dict(mask=np.ones(3, np.int32)), "mask must be bool"),
    (dict(mask=np.zeros(3, bool)), "at least one valid token"),
    (dict(branch_factor=1), "branch_factor must be an int >= 2, got 1"),
    (dict(branch_factor=2.5), "branch_factor must be an int >= 2, got 2.5"),
    (dict(order="octree"), "order must be one of .* got 'octree'"),
    (dict(order="axis", axis=2), r"axis must be in \[-2, 2\), got 2"),
    (dict(order="random_projection"), "needs rng"),
    (dict(order="random"), "needs rng"),
  ],
)
def test_build_tree_bad_input_raises(change, message):
  arguments = dict(coords=np.ones((3, 2), np.float32)) | change
  with pytest.raises(ValueError, match=message):
    tree_lib.build_tree(**arguments)


def _mean_and_max(children, mask):
  """Sensitive to every child: their mean plus half their maximum."""
  count = jnp.maximum(mask.sum(-1), 1)[..., None].astype(children.dtype)
  peak = jnp.max(jnp.where(mask[..., None], children, -1e9), axis=-2)
  return children.sum(-2) / count + 0.5 * peak


_aggregate = jax.jit(tree_lib.aggregate, static_argnums=0)


@pytest.mark.parametrize("n, b", cases.SHAPES)
def test_aggregate_any_mask_equals_reference(n, b, rng):
  for kind in cases.MASKS:
    coords, mask = cases.coords("random", n, rng), cases.mask(kind, n, rng)
    tokens = rng.normal(size=(n, 4)).astype(np.float32)
    tree = tree_lib.build_tree(coords, mask, branch_factor=b)
    levels = _aggregate(_mean_and_max, tree, tokens)
    expected = reference.aggregate(
      lambda inputs: inputs.mean(0) + 0.5 * inputs.max(0),
      reference.build(coords, mask, b),
      tokens,
    )
    assert [level.shape for level in levels] == [
      (b**l, 4) for l in range(tree.depth + 1)
    ]
    levels = [np.asarray(level) for level in levels]
    for (level, index), value in expected.items():
      np.testing.assert_allclose(levels[level][index], value, rtol=1e-5, atol=1e-5)


def test_aggregate_masked_tokens_are_ignored_with_finite_gradients(rng):
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


def test_aggregate_large_levels_in_chunks_equals_whole_levels(rng, monkeypatch):
  coords, mask = cases.coords("random", 33, rng), cases.mask("random", 33, rng)
  tree = tree_lib.build_tree(coords, mask)
  tokens = rng.normal(size=(33, 3)).astype(np.float32)

  def aggregate(**options):
    run = lambda *x: tree_lib.aggregate(_mean_and_max, *x, **options)  # noqa: E731
    return jax.jit(run)(tree, tokens)  # traced anew, because CHUNK is patched

  whole = aggregate()
  monkeypatch.setattr(tree_lib, "CHUNK", 5)
  chex.assert_trees_all_close(aggregate(), whole, rtol=1e-6)
  chex.assert_trees_all_equal(aggregate(in_chunks=False), whole)


@pytest.mark.parametrize(
  "tokens, message",
  [
    (np.ones((9, 4), np.float32), r"tokens must be \[N, D\] with N of depth 3"),
    (np.ones(5, np.float32), r"tokens must be \[N, D\]"),
    (np.ones((5, 4), np.int32), "tokens must be floating point, got dtype int32"),
  ],
)
def test_aggregate_bad_tokens_raise(tokens, message):
  tree = tree_lib.build_tree(np.ones((5, 1), np.float32))
  with pytest.raises(ValueError, match=message):
    tree_lib.aggregate(_mean_and_max, tree, tokens)


@pytest.mark.parametrize(
  "call",
  [
    lambda: tree_lib.tree_depth(4, 1),
    lambda: tca_jax.num_read_slots(8, 1),
    lambda: tree_lib.subtree_mass(jnp.ones(4), 1),
  ],
)
def test_branch_factor_below_two_raises(call):
  with pytest.raises(ValueError, match="branch_factor must be at least 2, got 1"):
    call()


def test_num_read_slots_no_path_raises():
  with pytest.raises(ValueError, match="num_paths must be at least 1, got 0"):
    tca_jax.num_read_slots(8, 2, 0)


@pytest.mark.parametrize("b", cases.BRANCH_FACTORS)
def test_subtree_mass_equals_sums_over_slices(b, rng):
  weights = rng.random((2, b**2)).astype(np.float32)
  mass = tree_lib.subtree_mass(weights, b)
  assert [level.shape for level in mass] == [(2, b**l) for l in range(3)]
  for l, level in enumerate(mass):
    expected = weights.reshape(2, b**l, -1).sum(-1)
    np.testing.assert_allclose(level, expected, rtol=1e-6)


def test_subtree_mass_size_is_no_power_raises():
  with pytest.raises(ValueError, match="a power of 2"):
    tree_lib.subtree_mass(jnp.ones(6), 2)
