"""The walk and its attention against the recursive reference, and their properties."""

import functools
import itertools

import chex
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from tca_jax import attention
from tca_jax import masking
from tca_jax import memory as memory_lib
from tca_jax import retrieval
from tca_jax import tree as tree_lib
from tca_jax import walk
from tests import cases
from tests import reference

HEADS, WIDTH = 2, 3

_walk = jax.jit(retrieval.tree_attention)
_read = jax.jit(retrieval.read, static_argnames="num_paths")


@functools.partial(jax.jit, static_argnames="num_paths")
def _read_many(queries, memory, num_paths):
  read = functools.partial(retrieval.read, num_paths=num_paths)
  return jax.vmap(read, in_axes=(0, None))(queries, memory)


def _problem(n, b, kind, rng, sharpness=2.0):
  """A tree, the reference tree, a query, and keys and values of every node."""
  coords, mask = cases.coords("random", n, rng), cases.mask(kind, n, rng)
  tree = tree_lib.build_tree(coords, mask, branch_factor=b)
  root = reference.build(coords, mask, b)
  sizes = [b**l for l in range(tree.depth + 1)]
  query = (sharpness * rng.normal(size=(HEADS, WIDTH))).astype(np.float32)
  keys = cases.levels(sizes, HEADS, WIDTH, rng)
  values = cases.levels(sizes, HEADS, WIDTH, rng)
  return tree, root, query, keys, values


def _nodes_read(out):
  """The nodes read as a sorted list of (level, index)."""
  kept = np.asarray(out.mask)
  level, index = np.asarray(out.level)[kept], np.asarray(out.index)[kept]
  return sorted(zip(level.tolist(), index.tolist(), strict=True))


def _parts_read(out, root):
  """The tokens under each node read, sorted."""
  nodes = reference.nodes_by_level(root)
  return sorted(sorted(nodes[l][i].tokens) for l, i in _nodes_read(out))


def _tokens_read(out, root):
  """The tokens under all nodes read, sorted, with repetitions."""
  return sorted(token for part in _parts_read(out, root) for token in part)


def _assert_equals(out, walk):
  assert _nodes_read(out) == sorted(walk.read)
  assert np.asarray(out.path).tolist() == walk.path
  np.testing.assert_allclose(out.output, walk.output, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(out.log_prob, walk.log_prob, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(out.entropy, walk.entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n, b", cases.SHAPES)
def test_tree_attention_and_read_greedy_equal_reference(n, b, rng):
  for kind in cases.MASKS:
    tree, root, query, keys, values = _problem(n, b, kind, rng)
    out = _walk(query, keys, values, tree)
    _assert_equals(out, reference.walk(query, keys, values, root))
    assert out.mask.shape == ((b - 1) * tree.depth + 1,)
    reading = _read(query, memory_lib.pack(tree, keys, values))
    for name, field in reading.items():
      np.testing.assert_allclose(field, out[name], rtol=1e-5, atol=1e-6)
    assert out.num_read <= walk.num_read_slots(n, b)


@pytest.mark.parametrize("n, b", [(1, 2), (2, 2), (8, 2), (17, 2), (9, 3)])
def test_read_several_paths_equals_reference(n, b, rng):
  for kind in cases.MASKS:
    tree, root, query, keys, values = _problem(n, b, kind, rng)
    memory = memory_lib.pack(tree, keys, values)
    for num_paths in (2, 3, 8):
      out = _read(query, memory, num_paths=num_paths)
      read, output = reference.read_paths(query, keys, values, root, num_paths)
      assert _nodes_read(out) == sorted(read)
      np.testing.assert_allclose(out.output, output, rtol=1e-5, atol=1e-5)
      assert _tokens_read(out, root) == sorted(root.tokens)
      assert len(out.mask) == walk.num_read_slots(n, b, num_paths)


@pytest.mark.parametrize("n, b", [(1, 2), (9, 2), (9, 3)])
def test_read_beam_one_path_is_greedy_and_all_paths_are_full_attention(n, b, rng):
  beam = jax.jit(functools.partial(retrieval.read_beam, num_paths=1))
  for kind in cases.MASKS:
    tree, _, query, keys, values = _problem(n, b, kind, rng)
    memory = memory_lib.pack(tree, keys, values)
    one = beam(query, memory)
    for name, field in _read(query, memory).items():
      np.testing.assert_allclose(one[name], field, rtol=1e-5, atol=1e-6)
    every = _read(query, memory, num_paths=tree.num_leaves)
    full = attention.cross_attention(query, keys[-1], values[-1], tree.leaf_mask)
    np.testing.assert_allclose(every.output, full.output, rtol=1e-5, atol=1e-5)
    assert every.num_read == tree.num_valid


@pytest.mark.parametrize("function", [retrieval.read, retrieval.read_beam])
def test_read_no_path_raises(function, rng):
  tree, _, query, keys, values = _problem(5, 2, "all", rng)
  with pytest.raises(ValueError, match="num_paths must be at least 1, got 0"):
    function(query, memory_lib.pack(tree, keys, values), num_paths=0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_read_any_mask_covers_every_token_once_and_equals_truncated(data):
  sizes = (1, 2, 3, 8, 9)
  n = data.draw(st.sampled_from(sizes), "n")
  num_valid = data.draw(st.sampled_from([m for m in sizes if m <= n]), "num_valid")
  num_paths = data.draw(st.sampled_from((1, 3)), "num_paths")
  valid = data.draw(st.permutations(range(n)), "order of tokens")[:num_valid]
  rng = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
  coords = cases.coords("random", n, rng)
  tokens = rng.normal(size=(n, HEADS * WIDTH)).astype(np.float32)
  queries = (2 * rng.normal(size=(2, HEADS, WIDTH))).astype(np.float32)
  mask = np.zeros(n, bool)
  mask[valid] = True

  def problem(coords, tokens, mask):
    """The reference tree, and a memory whose keys and values are subtree means."""
    tree = tree_lib.build_tree(coords, mask)
    root = reference.build(coords, mask, 2)
    found = reference.aggregate(lambda x: x.mean(0), root, tokens)
    levels = [
      np.stack([found[l, i] for i in range(2**l)])
      .reshape(-1, HEADS, WIDTH)
      .astype(np.float32)
      for l in range(tree.depth + 1)
    ]
    return root, memory_lib.pack(tree, levels, levels)

  root, memory = problem(coords, tokens, mask)
  read = functools.partial(_read, num_paths=num_paths)
  loop = [read(query, memory) for query in queries]
  for out in loop:
    assert _tokens_read(out, root) == sorted(valid)
    assert len(out.mask) == walk.num_read_slots(n, 2, num_paths)
  batch = _read_many(queries, memory, num_paths=num_paths)
  stacked = jax.tree.map(lambda *x: np.stack(x), *loop)
  chex.assert_trees_all_close(batch, stacked, rtol=1e-5, atol=1e-6)

  keep = np.flatnonzero(mask)
  short_root, memory = problem(coords[keep], tokens[keep], mask[keep])
  for query, masked in zip(queries, loop, strict=True):
    truncated = read(query, memory)
    np.testing.assert_allclose(masked.output, truncated.output, rtol=1e-5, atol=1e-5)
    parts = [keep[part].tolist() for part in _parts_read(truncated, short_root)]
    assert _parts_read(masked, root) == parts


@pytest.mark.parametrize("b", cases.BRANCH_FACTORS)
@pytest.mark.parametrize("n", [1, 5, 17])
def test_tree_attention_sampled_equals_reference_and_covers_every_token_once(n, b, rng):
  for kind, seed in itertools.product(cases.MASKS, range(4)):
    tree, root, query, keys, values = _problem(n, b, kind, rng)
    out = _walk(query, keys, values, tree, rng=jax.random.key(seed))
    path = np.asarray(out.path).tolist()
    _assert_equals(out, reference.walk(query, keys, values, root, path))
    assert _tokens_read(out, root) == sorted(root.tokens)


def test_tree_attention_policy_with_own_query_and_keys_equals_reference(rng):
  tree, root, query, keys, values = _problem(33, 2, "random", rng)
  other_query = rng.normal(size=(1, 5)).astype(np.float32)
  other_keys = cases.levels([len(k) for k in keys], 1, 5, rng)
  out = _walk(
    query, keys, values, tree, policy_query=other_query, policy_keys=other_keys
  )
  walk = reference.walk(other_query, other_keys, values, root)
  assert np.asarray(out.path).tolist() == walk.path
  np.testing.assert_allclose(out.log_prob, walk.log_prob, rtol=1e-5)
  expected = reference.walk(query, keys, values, root, walk.path).output
  np.testing.assert_allclose(out.output, expected, rtol=1e-5, atol=1e-5)
  memory = memory_lib.pack(tree, keys, values, other_keys)
  reading = _read(query, memory, policy_query=other_query)
  for name, field in reading.items():
    np.testing.assert_allclose(field, out[name], rtol=1e-5, atol=1e-6)
  several = _read(query, memory, policy_query=other_query, num_paths=3)
  read, _ = reference.read_paths(other_query, other_keys, values, root, 3)
  assert _nodes_read(several) == sorted(read)
  kept = [[level[i] for l, i in read for level in [x[l]]] for x in (keys, values)]
  np.testing.assert_allclose(
    several.output, reference.attend(query, *kept), rtol=1e-5, atol=1e-5
  )


@pytest.mark.parametrize("b", [2, 3])
def test_tree_attention_sampled_paths_have_the_frequencies_of_the_policy(b, rng):
  tree, root, query, keys, values = _problem(9, b, "all", rng, sharpness=1.0)
  draws = 20_000
  walk = functools.partial(retrieval.tree_attention, query, keys, values, tree)
  sample = jax.jit(jax.vmap(lambda rng: walk(rng=rng).path))
  paths = sample(jax.random.split(jax.random.key(0), draws))
  seen, counts = np.unique(np.asarray(paths), axis=0, return_counts=True)
  frequency = dict(zip(map(tuple, seen.tolist()), counts / draws, strict=True))
  total = 0.0
  for path in reference.all_paths(root):
    # The exact probability of the path, including decisions that change nothing.
    node, probability = root, 1.0
    for step in path:
      full = [c for c in node.children if c.tokens]
      pi, _ = reference.policy(query, [keys[c.level][c.index] for c in full])
      probability *= pi[full.index(node.children[step])]
      node = node.children[step]
    total += probability
    sd = np.sqrt(probability * (1 - probability) / draws)
    assert abs(frequency.get(tuple(path), 0) - probability) < 5 * sd + 1e-9
  assert total == pytest.approx(1)


def test_tree_attention_ties_take_the_lowest_index(rng):
  for b in (2, 3):
    tree, _, query, _, values = _problem(16, b, "all", rng)
    keys = tuple(np.ones_like(level) for level in values)
    assert not np.any(_walk(query, keys, values, tree).path)


def test_tree_attention_decisions_that_change_nothing_are_not_counted(rng):
  for n, expected in ((1, []), (2, [False]), (3, [True, False])):
    tree, _, query, keys, values = _problem(n, 2, "all", rng)
    greedy = _walk(query, keys, values, tree)
    assert np.asarray(greedy.counted).tolist() == expected
    if not any(expected):
      assert greedy.log_prob == 0 and greedy.entropy == 0


def test_tree_attention_masked_context_equals_truncated_context(rng):
  """With node values from a real aggregation, as masks change a tree's depth."""
  coords = cases.coords("random", 40, rng)
  tokens = rng.normal(size=(40, HEADS * WIDTH)).astype(np.float32)
  query = rng.normal(size=(HEADS, WIDTH)).astype(np.float32)

  def mean(children, mask):
    count = jnp.maximum(mask.sum(-1), 1)[..., None]
    return children.sum(-2) / count.astype(children.dtype)

  @jax.jit
  def read(coords, tokens, mask):
    tree = tree_lib.build_tree(coords, mask)
    levels = tree_lib.aggregate(mean, tree, tokens)
    levels = [attention.split_heads(x, HEADS) for x in levels]
    return retrieval.tree_attention(query, levels, levels, tree)

  for n in (1, 2, 11, 32):
    mask = np.arange(40) < n
    masked = read(coords, tokens, mask)
    truncated = read(coords[:n], tokens[:n], mask[:n])
    for name in ("output", "log_prob", "entropy", "num_read"):
      np.testing.assert_allclose(
        getattr(masked, name), getattr(truncated, name), rtol=1e-5, atol=1e-6
      )
    junk = np.where(mask[:, None], tokens, np.nan).astype(np.float32)
    chex.assert_trees_all_equal(read(coords, junk, mask), masked)


_build_in_jit = jax.jit(tree_lib.build_tree)


@jax.jit
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
def _loss_and_grads(query, keys, values, tree):
  out = retrieval.tree_attention(query, keys, values, tree, rng=jax.random.key(0))
  log_policy = jnp.where(out.log_policy > masking.MASKED, out.log_policy, 0)
  return out.output.sum() + out.log_prob + out.entropy + log_policy.sum()


@pytest.mark.parametrize("kind", [*cases.MASKS, "none"])
def test_tree_attention_any_mask_has_finite_gradients(kind, rng):
  tree, _, query, keys, values = _problem(19, 2, "all", rng)
  mask = np.zeros(19, bool) if kind == "none" else cases.mask(kind, 19, rng)
  coords = cases.coords("random", 19, rng)
  tree = _build_in_jit(coords, mask)
  value, grads = _loss_and_grads(query, keys, values, tree)
  assert np.isfinite(value)
  chex.assert_tree_all_finite(grads)
  if kind == "none":
    assert value == 0, "nothing is read"


@pytest.mark.parametrize(
  "n, b, own_policy", [(1, 2, False), (9, 2, False), (9, 2, True), (9, 3, False)]
)
def test_attend_fixed_path_has_the_gradients_of_finite_differences(
  n, b, own_policy, rng
):
  """A fixed rng samples the path, so that it does not depend on small changes."""
  tree, _, query, keys, values = _problem(n, b, "random", rng, sharpness=1.0)

  @jax.jit
  def attend(query, keys, values):
    memory = memory_lib.pack(tree, keys, values, keys if own_policy else None)
    out = retrieval.attend(query, memory, rng=jax.random.key(3))
    log_policy = jnp.where(out.log_policy > masking.MASKED, out.log_policy, 0)
    return out.output, out.log_prob, out.entropy, log_policy

  arguments = (query, keys, values)
  check_grads(attend, arguments, 1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-2)


def test_attend_gradient_stops_at_the_choice_of_the_path(rng):
  """The output's gradient reaches keys of the nodes read only."""
  tree, _, query, keys, values = _problem(9, 2, "all", rng)

  @jax.jit
  def output_and_grad(keys):
    def total(keys):
      out = retrieval.tree_attention(query, keys, values, tree)
      return jnp.sum(out.output**2), out

    return jax.grad(total, has_aux=True)(keys)

  grads, out = output_and_grad(keys)
  nonzero = {
    (l, i)
    for l, level in enumerate(grads)
    for i in range(len(level))
    if np.any(np.asarray(level[i]))
  }
  assert nonzero == set(_nodes_read(out))


@pytest.mark.parametrize("num_paths", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_read_jit_equals_eager(num_paths, rng):
  tree, _, query, keys, values = _problem(3, 2, "all", rng)
  memory = memory_lib.pack(tree, keys, values)
  with jax.disable_jit():
    eager = retrieval.read(query, memory, num_paths=num_paths)
  jitted = _read(query, memory, num_paths=num_paths)
  chex.assert_trees_all_close(jitted, eager, rtol=1e-5, atol=1e-6)


def test_tree_attention_jit_equals_eager_vmap_equals_loop_with_one_trace(
  rng, count_traces
):
  tree, _, _, keys, values = _problem(3, 2, "all", rng)
  queries = rng.normal(size=(5, HEADS, WIDTH)).astype(np.float32)
  counter, walk = count_traces(
    lambda q: retrieval.tree_attention(q, keys, values, tree)
  )
  loop = [walk(q) for q in queries]
  assert counter.traces == 1
  with jax.disable_jit():
    eager = retrieval.tree_attention(queries[0], keys, values, tree)
  chex.assert_trees_all_close(loop[0], eager, rtol=1e-5, atol=1e-6)
  batch = jax.jit(jax.vmap(counter))(queries)
  stacked = jax.tree.map(lambda *x: np.stack(x), *loop)
  chex.assert_trees_all_close(batch, stacked, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(query=lambda x: x[0]), r"query must be \[H, Dh\] = \[2, 3\]"),
    (dict(query=lambda x: x[:, :2]), r"query must be \[H, Dh\] = \[2, 3\]"),
    (dict(query=np.int32), "query must be floating point, got dtype int32"),
    (dict(policy_query=lambda x: x[:1]), r"policy_query must be \[H, Dh\] = \[2, 3\]"),
  ],
)
@pytest.mark.parametrize(
  "function", [retrieval.attend, retrieval.read, retrieval.read_beam]
)
def test_attend_and_read_bad_query_raises(function, change, message, rng):
  tree, _, query, keys, values = _problem(5, 2, "all", rng)
  arguments = dict(query=query)
  for name, edit in change.items():
    arguments[name] = edit(query)
  with pytest.raises(ValueError, match=message):
    function(memory=memory_lib.pack(tree, keys, values), **arguments)


def test_tree_attention_wrong_number_of_levels_raises(rng):
  tree, _, query, keys, values = _problem(5, 2, "all", rng)
  with pytest.raises(ValueError, match=r"keys must have depth \+ 1"):
    retrieval.tree_attention(query, keys[:-1], values, tree)
