"""Contexts that grow: placing, renewal against builds from scratch, nothing lost."""

import dataclasses
import doctest
import functools
import pathlib

import chex
from flax import serialization
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tca_jax
from tca_jax import grown_tree
from tca_jax import growth
from tca_jax import memory as memory_lib
from tca_jax import node_memory
from tca_jax import relative
from tca_jax import retrieval
from tca_jax import tree as tree_lib
from tca_jax.masking import masked_mean
from tests import cases
from tests import models
from tests import reference

KINDS = ("tree", "node")
WIDTH, HEADS, STEP = 4, 2, 3  # STEP: the tokens in one call


def _aggregate(children, mask, *features):
  """Differs for each order of the children, and for their features."""
  weight = jnp.arange(1, children.shape[-2] + 1, dtype=children.dtype)
  x = jnp.tanh(children * jnp.expand_dims(weight[:, None], range(children.ndim - 2)))
  for feature in features:
    x += 0.1 * jnp.mean(feature, axis=-1, keepdims=True)
  return masked_mean(x, mask[..., None], axis=-2)


def _heads(x):
  x = x.reshape(*x.shape[:-1], HEADS, -1)
  return x, 2 * x + 1, None


def _functions(kind):
  project = _heads if kind == "tree" else (lambda x: x[..., :2] + 1)
  return growth.NodeFunctions(_aggregate, project, keep_border=kind == "node")


@functools.cache
def _jit(name, kind, **options):
  function = functools.partial(getattr(growth, name), _functions(kind), **options)
  return jax.jit(function)


def _start(kind, data, capacity, b=2, mask=None):
  tokens, coords, values = data
  if kind == "tree":
    values = None
  call = _jit("start", kind, capacity=capacity, branch_factor=b)
  return call(tokens, coords, mask, values=values)


def _insert(kind, growing, data, mask=None, reach=growth.REACH):
  tokens, coords, values = data
  if kind == "tree":
    values = None
  return _jit("insert", kind, reach=reach)(growing, tokens, coords, mask, values=values)


def _data(rng, n, scale=1.0):
  """Tokens, coordinates and values of n tokens."""
  widths = (WIDTH, 2, 1)
  return tuple(scale * rng.normal(size=(n, w)).astype(np.float32) for w in widths)


@jax.jit
def _from_scratch(growing):
  """The memory and the nodes of the same tokens in the same leaf slots."""
  tree, tokens = growing.tree, growing.tokens
  if isinstance(growing.memory, tca_jax.TreeMemory):
    levels = tree_lib.aggregate(_aggregate, tree, tokens)
    memory = memory_lib.pack(tree, *zip(*map(_two_heads, levels), strict=True))
  else:
    domain = growing.memory.domain
    found = tca_jax.node_statistics(
      tree, growing.coords, growing.values, domain, keep_border=True
    )
    families = zip(found.levels[:-1], found.levels[1:], strict=True)
    features = [relative.child_features(*family) for family in families]
    levels = tree_lib.aggregate(_aggregate, tree, tokens, node_features=features)
    project = _functions("node").project
    memory = node_memory.pack_nodes(tree, found, [project(level) for level in levels])
  nodes = memory_lib.join_levels(levels, tree.branch_factor)
  return memory, nodes.reshape(growing.nodes.shape)


def _two_heads(level):
  return _heads(level)[:2]


def _check(growing, known):
  """Compares with a build from scratch, and with the known tokens by number."""
  tree = growing.tree
  numbers = np.asarray(tree.leaf_index)[np.asarray(tree.leaf_mask)]
  assert sorted(numbers.tolist()) == sorted(known)
  assert np.flatnonzero(growing.mask).tolist() == sorted(known)
  assert int(tree.num_valid) == len(known)
  np.testing.assert_array_equal(tree.node_count(tree.depth), tree.leaf_mask)
  free = np.asarray(growing.free)[: growing.capacity - len(known)]
  assert sorted(free.tolist()) == sorted(set(range(growing.capacity)) - set(known))
  for number, (token, coord, value) in known.items():
    np.testing.assert_array_equal(growing.coords[number], coord)
    np.testing.assert_array_equal(growing.tokens[number], token)
    if growing.values.shape[-1]:
      np.testing.assert_array_equal(growing.values[number], value)
    assert tree.leaf_index[growing.leaf[number]] == number
  memory, nodes = _from_scratch(growing)
  chex.assert_trees_all_close(growing.memory, memory, rtol=1e-5, atol=1e-5)
  chex.assert_trees_all_close(growing.nodes, nodes, rtol=1e-5, atol=1e-5)


def _check_read(growing, rng, num_paths):
  """Every token is below exactly one of the nodes read."""
  tree = growing.tree
  if isinstance(growing.memory, tca_jax.TreeMemory):
    query = rng.normal(size=(HEADS, WIDTH // HEADS)).astype(np.float32)
    found = _read(query, growing.memory, num_paths=num_paths)
  else:
    query = rng.normal(size=2).astype(np.float32)
    found, _ = _nearest(query, growing.memory, num_paths)
  root = reference.tree_of_leaves(tree.leaf_index, tree.leaf_mask, tree.branch_factor)
  levels = reference.nodes_by_level(root)
  valid = np.asarray(found.mask)
  read = [
    token
    for level, index in zip(
      np.asarray(found.level)[valid], np.asarray(found.index)[valid], strict=True
    )
    for token in levels[level][index].tokens
  ]
  assert sorted(read) == sorted(root.tokens)


_read = jax.jit(retrieval.read, static_argnames="num_paths")
_nearest = jax.jit(relative.nearest_nodes, static_argnums=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capacity", (8, pytest.param(16, marks=pytest.mark.slow)))
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_sequence_equals_a_build_from_scratch_and_loses_no_token(
  kind, capacity, data
):
  rng = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
  first = _data(rng, STEP)
  growing = _start(kind, first, capacity=8)
  known = {i: tuple(x[i] for x in first) for i in range(STEP)}
  steps = data.draw(
    st.lists(st.sampled_from(("insert", "far", "remove", "rebuild")), max_size=8)
  )
  for step in steps:
    if step == "remove":
      numbers = data.draw(
        st.lists(st.integers(-1, growing.capacity), min_size=STEP, max_size=STEP)
      )
      growing, removed = _jit("remove", kind)(growing, np.int32(numbers))
      for number, was_removed in zip(numbers, np.asarray(removed), strict=True):
        assert was_removed == (number in known)
        known.pop(number, None)
    elif step == "rebuild" and known:
      growing = _jit("rebuild", kind, capacity=capacity)(growing)
    else:
      new = _data(rng, STEP, scale=10.0 if step == "far" else 1.0)
      mask = rng.random(STEP) < 0.8
      room = growing.capacity - len(known)
      growing, numbers = _insert(kind, growing, new, mask)
      numbers = np.asarray(numbers)
      # All slots are within reach, so that only a full tree refuses a token.
      np.testing.assert_array_equal(numbers >= 0, mask & (np.cumsum(mask) <= room))
      for i in np.flatnonzero(numbers >= 0):
        assert int(numbers[i]) not in known
        known[int(numbers[i])] = tuple(x[i] for x in new)
  _check(growing, known)
  num_paths = data.draw(st.sampled_from((1, 3) if kind == "tree" else (3,)), "paths")
  _check_read(growing, rng, num_paths)


def _grown(kind, b, rng):
  """A memory after a removal and an insertion, at branch factor b."""
  growing = _start(kind, _data(rng, STEP), capacity=8, b=b)
  growing, _ = _insert(kind, growing, _data(rng, STEP))
  growing, _ = _jit("remove", kind)(growing, np.int32([0, 5, 3]))
  return _insert(kind, growing, _data(rng, STEP))[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("b", (2, pytest.param(3, marks=pytest.mark.slow)))
def test_grown_memory_and_its_reads_equal_the_reference(kind, b, rng):
  growing = _grown(kind, b, rng)
  tree, tokens = growing.tree, np.asarray(growing.tokens)
  root = reference.tree_of_leaves(tree.leaf_index, tree.leaf_mask, b)
  levels = reference.nodes_by_level(root)
  for level, nodes in enumerate(levels):
    assert tree.node_count(level).tolist() == [len(node.tokens) for node in nodes]
  if kind == "node":
    statistics = reference.node_statistics(root, growing.coords, growing.values)
    slots = node_memory.slot_nodes(growing.memory, slice(0, None))
    origin = growing.memory.domain.origin
    for slot, node in enumerate([node for level in levels[1:] for node in level]):
      count, centroid, low, high, _, variance, _ = statistics[node.level, node.index]
      assert slots.count[slot] == count
      if count:
        found = [x[slot] + origin for x in (slots.centroid, slots.low, slots.high)]
        np.testing.assert_allclose(found, [centroid, low, high], rtol=0, atol=1e-5)
        np.testing.assert_allclose(slots.variance[slot], variance, rtol=0, atol=1e-5)
    query = rng.normal(size=2).astype(np.float32)
    found, _ = _nearest(query - origin, growing.memory, 3)
    assert _nodes(found) == reference.nearest_nodes(query, root, statistics, 3)
    return

  for node in [node for level in levels[1:-1] for node in level]:
    below = _node_values(growing, node.children)
    mask = np.array([bool(child.tokens) for child in node.children])
    if mask.sum() > 1:
      expected = np.asarray(_aggregate(jnp.asarray(below), jnp.asarray(mask)))
    else:
      expected = below.sum(0)
    np.testing.assert_allclose(
      _node_values(growing, [node])[0], expected, rtol=1e-5, atol=1e-5
    )
  leaves = _node_values(growing, levels[-1])
  for leaf, node in zip(leaves, levels[-1], strict=True):
    np.testing.assert_array_equal(leaf, tokens[node.tokens[0]] if node.tokens else 0)
  keys = [np.asarray(_heads(_node_values(growing, level))[0]) for level in levels[1:]]
  values = [np.asarray(_heads(_node_values(growing, level))[1]) for level in levels[1:]]
  keys, values = [None, *keys], [np.zeros((1, HEADS, WIDTH // HEADS)), *values]
  for _ in range(5):
    query = 2 * rng.normal(size=(HEADS, WIDTH // HEADS)).astype(np.float32)
    walk = reference.walk(query, keys, values, root)
    for found in (_read(query, growing.memory), _attend(query, growing.memory)):
      assert _nodes(found) == set(walk.read)
      assert found.path.tolist() == walk.path
      np.testing.assert_allclose(found.output, walk.output, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.log_prob, walk.log_prob, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.entropy, walk.entropy, rtol=1e-5, atol=1e-5)
    read, output = reference.read_paths(query, keys, values, root, 3)
    found = _read(query, growing.memory, num_paths=3)
    assert _nodes(found) == set(read)
    np.testing.assert_allclose(found.output, output, rtol=1e-5, atol=1e-5)


_attend = jax.jit(retrieval.attend)


def _node_values(growing, nodes):
  """The stored values of nodes of one level below the root, `[n, D]`."""
  start = memory_lib.level_slots(growing.tree, nodes[0].level).start
  flat = np.asarray(growing.nodes).reshape(-1, growing.nodes.shape[-1])
  return flat[[start + node.index for node in nodes]]


def _nodes(found):
  """The set of (level, index) of the valid nodes read."""
  valid = np.asarray(found.mask)
  level, index = np.asarray(found.level)[valid], np.asarray(found.index)[valid]
  return set(zip(level.tolist(), index.tolist(), strict=True))


# --- Cuts and slots.

_cuts = jax.jit(grown_tree.find_cuts)
_slots = jax.jit(grown_tree.find_slots, static_argnums=4)


@pytest.mark.parametrize("b", (2, 3))
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_find_cuts_separate_the_tokens_of_the_children(layout, b, rng):
  coords = cases.coords(layout, 27, rng)
  tree = tree_lib.build_tree(coords, branch_factor=b)
  cuts = _cuts(tree, coords)
  axis, position = np.asarray(cuts.axis), np.asarray(cuts.position)
  assert np.all(np.isfinite(position)) and np.all(np.diff(position, axis=1) >= 0)
  root = reference.tree_of_leaves(tree.leaf_index, tree.leaf_mask, b)
  inner = [node for level in reference.nodes_by_level(root)[:-1] for node in level]
  for number, node in enumerate(inner):
    for child, part in enumerate(node.children):
      x = coords[part.tokens, axis[number]]
      assert np.all(x[:, None] >= position[number, :child])
      assert np.all(x[:, None] <= position[number, child:])


def test_start_order_axis_cuts_across_this_axis_only(rng):
  x = rng.normal(size=(16, 2)).astype(np.float32)
  for axis in (0, 1):
    growing = _jit("start", "tree", order="axis", axis=axis)(x, x)
    assert np.all(np.asarray(growing.cuts.axis) == axis)


@pytest.mark.parametrize("b, reach", [(2, 1), (2, 2), (2, 9), (3, 1), (3, 2)])
def test_find_slots_one_by_one_equal_the_reference(b, reach, rng):
  coords = rng.normal(size=(27, 2)).astype(np.float32)
  mask = np.arange(27) < 5
  tree = grown_tree.as_grown(tree_lib.build_tree(coords, mask, branch_factor=b))
  cuts = _cuts(tree, coords)
  taken = np.array(tree.leaf_mask)
  for coord in rng.normal(size=(30, 2)).astype(np.float32):
    counts = [
      taken.reshape(b**level, -1).sum(1, dtype=np.int32)
      for level in range(1, tree.depth + 1)
    ]
    counts = jnp.concatenate(counts).reshape(-1, b)
    tree = dataclasses.replace(tree, counts=counts, root_count=counts[0])
    leaf, found = _slots(tree, cuts, coord[None], np.ones(1, bool), reach)
    expected = reference.place_token(
      coord, taken, np.asarray(cuts.axis), np.asarray(cuts.position), b, reach
    )
    assert found[0] == (expected is not None)
    if expected is not None:
      assert leaf[0] == expected and not taken[expected]
      taken[expected] = True


def test_find_slots_many_equal_one_by_one_for_two_children(rng):
  growing = _start("tree", _data(rng, STEP), capacity=8)
  many = tuple(np.concatenate(x) for x in zip(*[_data(rng, STEP)] * 2, strict=True))
  both, numbers = _insert("tree", growing, many, reach=2)
  assert 0 < np.sum(numbers < 0) < 6
  for i, number in enumerate(numbers):
    one = tuple(x[i : i + 1] for x in many)
    growing, found = _insert("tree", growing, one, reach=2)
    assert found[0] == number
  chex.assert_trees_all_close(both, growing, rtol=1e-6, atol=1e-6)


def test_insert_full_subtree_refuses_and_changes_nothing(rng):
  first = _data(rng, STEP)
  growing = _start("tree", first, capacity=8)
  corner = tuple(np.full_like(x, 9) for x in first)
  accepted, numbers = _insert("tree", growing, corner, reach=1)
  count = int((numbers >= 0).sum())
  assert 0 < count < STEP
  assert numbers.tolist() == ([3, 4, 5][:count] + [-1] * STEP)[:STEP]
  again, refused = _insert("tree", accepted, corner, reach=1)
  assert refused.tolist() == [-1] * STEP
  chex.assert_trees_all_close(again, accepted, rtol=1e-6, atol=1e-6)
  larger = _jit("rebuild", "tree")(again)
  assert larger.capacity == 16
  tokens = [np.concatenate(x) for x in zip(first, corner, strict=True)]
  _check(larger, {i: tuple(x[i] for x in tokens) for i in range(STEP + count)})


# --- Transformations.


@pytest.mark.parametrize("kind", KINDS)
def test_remove_all_then_insert_reads_only_the_new_tokens(kind, rng):
  growing = _start(kind, _data(rng, STEP), capacity=8)
  growing, removed = _jit("remove", kind)(growing, np.arange(STEP))
  assert removed.all() and growing.tree.num_valid == 0
  assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(growing))
  _check_read(growing, rng, 3)
  growing, numbers = _insert(kind, growing, _data(rng, STEP))
  assert np.all(numbers >= 0)
  _check_read(growing, rng, 3)


@pytest.mark.slow
def test_insert_vmap_equals_each(rng):
  parts = [_start("node", _data(rng, STEP), capacity=8) for _ in range(2)]
  new = [_data(rng, STEP) for _ in range(2)]
  mask = np.array([[True, False, True], [True, True, True]])

  def insert(growing, tokens, coords, values, mask):
    return growth.insert(
      _functions("node"), growing, tokens, coords, mask, values=values
    )

  batch = jax.tree.map(lambda *x: jnp.stack(x), *parts)
  found = jax.jit(jax.vmap(insert))(batch, *map(np.stack, zip(*new, strict=True)), mask)
  for i, part in enumerate(parts):
    expected = _insert("node", part, new[i], mask[i])
    mine = jax.tree.map(lambda x, i=i: x[i], found)
    chex.assert_trees_all_close(mine, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_start_without_summaries_of_a_large_context(rng):
  _, coords, values = _data(rng, 2 * tree_lib.CHUNK + 1)
  functions = growth.NodeFunctions(lambda x, *_: x[..., 0, :], lambda x: x)
  start = jax.jit(functools.partial(growth.start, functions))
  growing = start(coords[:, :0], coords, values=values)
  expected = tca_jax.node_statistics(growing.tree, growing.coords, growing.values)
  slots = node_memory.slot_nodes(growing.memory, slice(0, 2))
  np.testing.assert_array_equal(slots.count, expected.levels[1].count)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_functions_eager_equal_jit(kind, rng):
  data, new = _data(rng, STEP), _data(rng, STEP)
  options = [dict(values=x[2]) if kind == "node" else {} for x in (data, new)]
  functions = _functions(kind)
  eager = growth.start(functions, *data[:2], capacity=8, **options[0])
  eager, _ = growth.insert(functions, eager, *new[:2], **options[1])
  eager, _ = growth.remove(functions, eager, np.int32([1, 4, 4]))
  eager = growth.rebuild(functions, eager)
  jitted = _insert(kind, _start(kind, data, capacity=8), new)[0]
  jitted, _ = _jit("remove", kind)(jitted, np.int32([1, 4, 4]))
  jitted = _jit("rebuild", kind, capacity=16)(jitted)
  chex.assert_trees_all_close(eager, jitted, rtol=1e-5, atol=1e-6)


def test_insert_traces_once(rng, count_traces):
  traced, call = count_traces(functools.partial(growth.insert, _functions("tree")))
  growing = _start("tree", _data(rng, STEP), capacity=8)
  for _ in range(2):
    growing, _ = call(growing, *_data(rng, STEP)[:2])
  assert traced.traces == 1


@pytest.mark.parametrize("kind", ("tree", pytest.param("node", marks=pytest.mark.slow)))
def test_insert_and_remove_of_a_donated_memory_copy_none_of_its_arrays(kind):
  if jax.config.jax_debug_nans:
    pytest.skip("JAX donates nothing in this mode")
  functions, n = _functions(kind), 4096
  tokens, coords, values = (
    jax.ShapeDtypeStruct((n, width), jnp.float32) for width in (WIDTH, 2, 1)
  )
  given = {} if kind == "tree" else {"values": values}
  start = functools.partial(growth.start, functions)
  growing = jax.eval_shape(start, tokens, coords, **given)
  one = [jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in (tokens, coords)]
  given = {name: jax.ShapeDtypeStruct((1, 1), x.dtype) for name, x in given.items()}
  numbers = jax.ShapeDtypeStruct((1,), jnp.int32)
  for function, inputs, options in (
    (growth.insert, one, given),
    (growth.remove, [numbers], {}),
  ):
    call = jax.jit(functools.partial(function, functions), donate_argnums=0)
    memory = call.lower(growing, *inputs, **options).compile().memory_analysis()
    smallest = growing.capacity  # bytes of `leaf_mask`
    assert memory.temp_size_in_bytes < smallest
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < smallest


def test_insert_gradients_equal_those_of_a_build_from_scratch(rng):
  growing = _start("tree", _data(rng, STEP), capacity=8)
  tokens, coords, _ = _data(rng, STEP)
  weight = rng.normal(size=growing.memory.values.shape).astype(np.float32)

  def grown(tokens):
    found, numbers = growth.insert(_functions("tree"), growing, tokens, coords)
    return jnp.sum(weight * found.memory.values), (found, numbers)

  gradient, (found, numbers) = jax.jit(jax.grad(grown, has_aux=True))(tokens)

  def scratch(tokens):
    levels = tree_lib.aggregate(_aggregate, found.tree, tokens)
    values = memory_lib.join_levels([_heads(level)[1] for level in levels], 2)
    return jnp.sum(weight * values)

  expected = jax.jit(jax.grad(scratch))(found.tokens)[numbers]
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_growing_memory_stored_and_restored_goes_on_alike(rng):
  growing = _grown("node", 2, rng)
  stored = serialization.to_bytes(growing)
  empty = jax.tree.map(jnp.zeros_like, growing)
  restored = serialization.from_bytes(empty, stored)
  new = _data(rng, STEP)
  chex.assert_trees_all_equal(
    _insert("node", restored, new), _insert("node", growing, new)
  )


# --- Models.

MODELS = (
  ("tca", dict(share_policy=False, order="axis", axis=1)),
  ("relative_tca", dict()),
  ("relative_tca", dict(border_tokens=2)),
  ("relative_tca", models.FITTED),
)


def _index_and_insert(model, rng):
  """Inserts three tokens into five; also the arrays of all tokens, by number."""
  params = models.params(model)
  coords, values, _, _ = models.inputs(rng)
  coords, values = coords[:, :8], values[:, :8]
  mask = np.ones((models.BATCH, 8), bool)
  mask[0, 7] = False
  index = models.compiled(model, "index_growing", capacity=8)
  growing = index(params, coords[:, :5], values[:, :5])
  insert = models.compiled(model, "insert")
  growing, numbers = insert(params, growing, coords[:, 5:], values[:, 5:], mask[:, 5:])
  np.testing.assert_array_equal(numbers, np.where(mask, np.arange(8), -1)[:, 5:])
  return params, growing, coords, values, mask


@pytest.mark.slow
@pytest.mark.parametrize("name, options", MODELS)
def test_retreever_insert_equals_index_with_the_same_leaf_slots(name, options, rng):
  model = models.model(name, **options)
  params, growing, coords, values, mask = _index_and_insert(model, rng)
  np.testing.assert_array_equal(growing.mask, mask)
  index = models.compiled(model, "index")
  expected = index(params, coords, values, mask, tree=growing.tree)
  if name == "relative_tca":
    # The memory that grows keeps its origins, and the fit of its covariance.
    expected = _move_origin(expected, growing.memory.domain)
    assert (expected.evidence is None) != ("fits_covariance" in options)
    expected = dataclasses.replace(expected, evidence=growing.memory.evidence)
  chex.assert_trees_all_close(growing.memory, expected, rtol=1e-5, atol=1e-5)


def _move_origin(memory, domain):
  """The same batch of `NodeMemory`, relative to the origins of another domain."""
  away = memory.domain.origin - domain.origin
  up = memory.domain.value_origin - domain.value_origin
  zeros = jnp.zeros_like(memory.rows[:, 0, 0])
  axes, channels = away.shape[-1], up.shape[-1]
  shift = jnp.concatenate([zeros[:, :1], away, away, away, up], axis=1)
  shift = jnp.pad(shift, [(0, 0), (0, memory.rows.shape[-1] - shift.shape[1])])
  assert shift.shape[1] >= 1 + 3 * axes + 2 * channels
  valid = memory.rows[..., :1] > 0
  rows = memory.rows + jnp.where(valid, shift[:, None, None], 0)
  borders = memory.borders
  if borders is not None:
    shift = jnp.concatenate([away, up], axis=1)[:, None, None, None]
    borders += jnp.where(valid[..., None], shift, 0)
  domain = dataclasses.replace(
    memory.domain, origin=domain.origin, value_origin=domain.value_origin
  )
  return dataclasses.replace(memory, rows=rows, domain=domain, borders=borders)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, options",
  [
    *MODELS,
    ("relative_tca", dict(summary_width=0)),
    ("tca", dict(branch_factor=3)),
  ],
)
def test_retreever_insert_remove_rebuild_predict_as_a_new_index(name, options, rng):
  model = models.model(name, **options)
  params, growing, coords, values, mask = _index_and_insert(model, rng)
  query_coords = models.inputs(rng)[2]
  remove, rebuild = models.compiled(model, "remove"), models.compiled(model, "rebuild")
  growing, removed = remove(params, growing, np.tile(np.int32([[2, 5]]), (3, 1)))
  assert removed.all()
  mask[:, [2, 5]] = False
  rebuilt = rebuild(params, growing)
  assert rebuilt.capacity == growing.capacity * growing.tree.branch_factor
  fresh = models.compiled(model, "index")(params, coords, values, mask)
  read = models.compiled(model, "read")
  found = read(params, rebuilt.memory, query_coords)
  expected = read(params, fresh, query_coords)
  exact = models.ROUNDED if name in models.RELATIVE else dict(rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found.output.mean, expected.output.mean, **exact)
  np.testing.assert_array_equal(found.reading.num_read, expected.reading.num_read)


def test_retreever_with_encoder_or_without_tree_is_refused(rng):
  coords, values, _, _ = models.inputs(rng)
  for model, message in (
    (
      models.model("tca", num_layers=1),
      "encoder must be None in a model whose .* grow",
    ),
    (models.model("ca"), "read_out must have a tree, .* got CrossAttention"),
    (models.model("tca", order="random"), "order must be one of .*, got 'random'"),
  ):
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(
        functools.partial(model.apply, method="index_growing"),
        jax.eval_shape(model.init, jax.random.key(0), coords, values, coords),
        coords,
        values,
      )


@pytest.mark.slow
def test_example_of_the_documentation_runs():
  page = pathlib.Path(__file__).parent.parent / "docs" / "concepts" / "growth.md"
  result = doctest.testfile(str(page), module_relative=False)
  assert result.attempted > 10 and result.failed == 0


# --- Bad input.

_X = np.zeros((3, 2), np.float32)


def _tree_memory():
  return _start("tree", (np.zeros((3, WIDTH), np.float32), _X, None), capacity=8)


def _insert_bad(coords=_X, tokens=_X[:, [0] * WIDTH], mask=None, **options):
  growth.insert(_functions("tree"), _tree_memory(), tokens, coords, mask, **options)


def _start_bad(coords=_X, tokens=_X, **options):
  growth.start(_functions("tree"), tokens, coords, **options)


RAISE = [
  ("batch", lambda: _start_bad(_X[None], _X[None]), r"coords must be \[N, C\], got .* batch with jax.vmap"),
  ("no token", lambda: _start_bad(mask=np.zeros(3, bool)), "at least one valid token"),
  ("capacity", lambda: _start_bad(capacity=2), "capacity must be at least the number of tokens, 3, got 2"),
  ("capacity type", lambda: _start_bad(capacity=2.5), "capacity must be an integer"),
  ("order", lambda: _start_bad(order="given"), "order must be one of .*, got 'given'"),
  ("width", lambda: _insert_bad(tokens=_X), r"tokens must be \[K, 4\] with one K, got shape \(3, 2\)"),
  ("axes", lambda: _insert_bad(coords=_X[:, :1]), r"coords must be \[K, 2\]"),
  ("integers", lambda: _insert_bad(coords=_X.astype(int)), "coords must be floating point"),
  ("mask", lambda: _insert_bad(mask=np.ones(3)), "mask must be bool"),
  ("nan", lambda: _insert_bad(coords=_X + np.nan), "coords must be finite"),
  ("reach", lambda: _insert_bad(reach=0), "reach must be an integer of at least 1, got 0"),
  ("values", lambda: _insert_bad(values=_X), "values must be None for a TreeMemory"),
  ("numbers", lambda: growth.remove(_functions("tree"), _tree_memory(), np.ones(2)), r"numbers must be \[K\] integers"),
  ("smaller", lambda: growth.rebuild(_functions("tree"), _tree_memory(), capacity=4), "capacity must be at least the present one, 8"),
]  # fmt: skip


@pytest.mark.parametrize("name, function, message", RAISE, ids=[x[0] for x in RAISE])
def test_bad_input_raises_and_is_named(name, function, message):
  del name
  with pytest.raises(ValueError, match=message):
    function()
