"""The walk and its attention against the recursive twin, and their properties."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tca_jax import attention
from tca_jax import retrieval
from tca_jax import tree as tree_lib
from tests import cases
from tests import reference

HEADS, WIDTH = 2, 3

_build = jax.jit(tree_lib.build_tree, static_argnames=("branch_factor", "order"))
_walk = jax.jit(retrieval.tree_attention)
_read = jax.jit(retrieval.read, static_argnames="num_paths")


def _problem(n, b, kind, rng, sharpness=2.0):
  """A tree, its reference twin, a query, keys and values of every node."""
  coords, mask = cases.coords("random", n, rng), cases.mask(kind, n, rng)
  tree = _build(coords, mask, branch_factor=b)
  root = reference.build(coords, mask, b)
  sizes = [b**l for l in range(tree.depth + 1)]
  query = (sharpness * rng.normal(size=(HEADS, WIDTH))).astype(np.float32)
  keys = cases.levels(sizes, HEADS, WIDTH, rng)
  values = cases.levels(sizes, HEADS, WIDTH, rng)
  return tree, root, query, keys, values


def _read_set(out):
  """The nodes read as a sorted list of (level, index)."""
  kept = np.asarray(out.mask)
  level, index = np.asarray(out.level)[kept], np.asarray(out.index)[kept]
  return sorted(zip(level.tolist(), index.tolist(), strict=True))


def _assert_equals(out, walk):
  assert _read_set(out) == sorted(walk.read)
  assert np.asarray(out.path).tolist() == walk.path
  np.testing.assert_allclose(out.output, walk.output, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(out.log_prob, walk.log_prob, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(out.entropy, walk.entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("b", cases.BRANCH_FACTORS)
@pytest.mark.parametrize("n", cases.SIZES)
def test_greedy_walk_equals_reference(n, b, rng):
  for kind in cases.MASKS:
    tree, root, query, keys, values = _problem(n, b, kind, rng)
    out = _walk(query, keys, values, tree)
    _assert_equals(out, reference.walk(query, keys, values, root))
    assert out.mask.shape == ((b - 1) * tree.depth + 1,)
    reading = _read(query, retrieval.pack(tree, keys, values))
    for name, field in reading.items():
      np.testing.assert_allclose(field, out[name], rtol=1e-5, atol=1e-6)
    assert out.num_read <= tree_lib.num_read_slots(n, b)


@pytest.mark.parametrize("b", [2, 3])
@pytest.mark.parametrize("n", [1, 2, 5, 8, 33])
def test_several_paths_equal_reference_and_cover_every_token_once(n, b, rng):
  for kind in cases.MASKS:
    tree, root, query, keys, values = _problem(n, b, kind, rng)
    memory = retrieval.pack(tree, keys, values)
    nodes = reference.nodes_by_level(root)
    for num_paths in (2, 3, 8):
      out = _read(query, memory, num_paths=num_paths)
      read, output = reference.read_paths(query, keys, values, root, num_paths)
      assert _read_set(out) == sorted(read)
      np.testing.assert_allclose(out.output, output, rtol=1e-5, atol=1e-5)
      covered = [t for l, i in _read_set(out) for t in nodes[l][i].tokens]
      assert sorted(covered) == sorted(root.tokens)
      assert len(out.mask) == tree_lib.num_read_slots(n, b, num_paths)


@pytest.mark.parametrize("b", [2, 3])
@pytest.mark.parametrize("n", [1, 2, 9, 33])
def test_one_path_is_the_greedy_walk_and_all_paths_are_full_attention(n, b, rng):
  for kind in cases.MASKS:
    tree, _, query, keys, values = _problem(n, b, kind, rng)
    memory = retrieval.pack(tree, keys, values)
    one = jax.jit(retrieval._read_paths, static_argnums=3)(query, memory, None, 1)
    for name, field in _read(query, memory).items():
      np.testing.assert_allclose(one[name], field, rtol=1e-5, atol=1e-6)
    every = _read(query, memory, num_paths=tree.num_leaves)
    full = attention.cross_attention(query, keys[-1], values[-1], tree.leaf_mask)
    np.testing.assert_allclose(every.output, full.output, rtol=1e-5, atol=1e-5)
    assert every.num_read == tree.num_valid


@pytest.mark.parametrize("b", cases.BRANCH_FACTORS)
@pytest.mark.parametrize("n", [1, 5, 33])
def test_sampled_walk_equals_reference_and_covers_every_token_once(n, b, rng):
  for kind, seed in itertools.product(cases.MASKS, range(4)):
    tree, root, query, keys, values = _problem(n, b, kind, rng)
    out = _walk(query, keys, values, tree, rng=jax.random.key(seed))
    path = np.asarray(out.path).tolist()
    _assert_equals(out, reference.walk(query, keys, values, root, path))
    nodes = reference.nodes_by_level(root)
    covered = [t for l, i in _read_set(out) for t in nodes[l][i].tokens]
    assert sorted(covered) == sorted(root.tokens)


def test_the_policy_may_have_its_own_query_and_keys(rng):
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
  memory = retrieval.pack(tree, keys, values, other_keys)
  reading = _read(query, memory, policy_query=other_query)
  for name, field in reading.items():
    np.testing.assert_allclose(field, out[name], rtol=1e-5, atol=1e-6)
  several = _read(query, memory, policy_query=other_query, num_paths=3)
  read, _ = reference.read_paths(other_query, other_keys, values, root, 3)
  assert _read_set(several) == sorted(read)
  kept = [[level[i] for l, i in read for level in [x[l]]] for x in (keys, values)]
  np.testing.assert_allclose(
    several.output, reference.attend(query, *kept), rtol=1e-5, atol=1e-5
  )


def test_a_number_of_paths_below_one_is_refused(rng):
  tree, _, query, keys, values = _problem(5, 2, "all", rng)
  with pytest.raises(ValueError, match="num_paths must be at least 1, got 0"):
    retrieval.read(query, retrieval.pack(tree, keys, values), num_paths=0)


@pytest.mark.parametrize("b", [2, 3])
def test_sampled_paths_have_the_policys_frequencies(b, rng):
  tree, root, query, keys, values = _problem(9, b, "all", rng, sharpness=1.0)
  draws = 20_000
  walk = functools.partial(retrieval.tree_attention, query, keys, values, tree)
  sample = jax.jit(jax.vmap(lambda rng: walk(rng=rng).path))
  paths = sample(jax.random.split(jax.random.key(0), draws))
  seen, counts = np.unique(np.asarray(paths), axis=0, return_counts=True)
  frequency = dict(zip(map(tuple, seen.tolist()), counts / draws, strict=True))
  total = 0.0
  for path in reference.all_paths(root):
    # The exact probability of the path, vacuous decisions included.
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


def test_ties_take_the_lowest_index(rng):
  tree, _, query, _, values = _problem(32, 2, "all", rng)
  keys = tuple(np.ones_like(level) for level in values)
  assert not np.any(_walk(query, keys, values, tree).path)


def test_vacuous_decisions_do_not_count(rng):
  for n, expected in ((1, []), (2, [False]), (3, [True, False])):
    tree, _, query, keys, values = _problem(n, 2, "all", rng)
    greedy = _walk(query, keys, values, tree)
    assert np.asarray(greedy.counted).tolist() == expected
    if not any(expected):
      assert greedy.log_prob == 0 and greedy.entropy == 0


def test_masked_equals_truncated(rng):
  """With node values from a real aggregation, as masks change a tree's depth."""
  coords = cases.coords("random", 40, rng)
  tokens = rng.normal(size=(40, HEADS * WIDTH)).astype(np.float32)
  query = rng.normal(size=(HEADS, WIDTH)).astype(np.float32)

  def mean(children, mask):
    return children.sum(-2) / jnp.maximum(mask.sum(-1), 1)[..., None]

  def read(coords, tokens, mask):
    tree = tree_lib.build_tree(coords, mask)
    levels = tree_lib.aggregate(mean, tree, tokens)
    levels = [attention.split_heads(x, HEADS) for x in levels]
    return retrieval.tree_attention(query, levels, levels, tree)

  for n in (1, 2, 11, 32):
    mask = np.arange(40) < n
    masked = jax.jit(read)(coords, tokens, mask)
    truncated = jax.jit(read)(coords[:n], tokens[:n], mask[:n])
    for name in ("output", "log_prob", "entropy", "num_read"):
      np.testing.assert_allclose(
        getattr(masked, name), getattr(truncated, name), rtol=1e-5, atol=1e-6
      )
    junk = np.where(mask[:, None], tokens, np.nan).astype(np.float32)
    chex.assert_trees_all_equal(jax.jit(read)(coords, junk, mask), masked)


def test_gradients_are_finite_under_any_mask(rng):
  for kind in (*cases.MASKS, "none"):
    tree, _, query, keys, values = _problem(
      19, 2, "all" if kind == "none" else kind, rng
    )
    if kind == "none":
      tree = _build(np.ones((19, 2), np.float32), np.zeros(19, bool))

    def loss(query, keys, values, tree=tree):
      out = retrieval.tree_attention(query, keys, values, tree, rng=jax.random.key(0))
      log_policy = jnp.where(out.log_policy > attention.MASKED, out.log_policy, 0)
      return out.output.sum() + out.log_prob + out.entropy + log_policy.sum()

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(
      query, keys, values
    )
    assert np.isfinite(value)
    chex.assert_tree_all_finite(grads)
    if kind == "none":
      assert value == 0, "nothing is read"


def test_jit_equals_eager_vmap_equals_loop_and_one_trace(rng, count_traces):
  tree, _, _, keys, values = _problem(33, 2, "random", rng)
  queries = rng.normal(size=(5, HEADS, WIDTH)).astype(np.float32)
  counter, walk = count_traces(
    lambda q: retrieval.tree_attention(q, keys, values, tree)
  )
  loop = [walk(q) for q in queries]
  assert counter.traces == 1
  eager = retrieval.tree_attention(queries[0], keys, values, tree)
  chex.assert_trees_all_close(loop[0], eager, rtol=1e-5, atol=1e-6)
  batch = jax.jit(jax.vmap(counter))(queries)
  stacked = jax.tree.map(lambda *x: np.stack(x), *loop)
  chex.assert_trees_all_close(batch, stacked, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(keys=lambda x: x[:-1]), "keys must hold depth"),
    (dict(values=lambda x: x[1:]), "values must hold depth"),
    (dict(keys=lambda x: x[::-1]), r"keys\[0\] must be \[1, 2, 3\]"),
    (dict(values=lambda x: [y[:, :1] for y in x]), r"values\[0\] must be \[1, 2, 3\]"),
    (dict(query=lambda x: x[0]), r"query must be \[H, Dh\] = \[2, 3\]"),
    (dict(query=lambda x: x[:, :2]), r"query must be \[H, Dh\] = \[2, 3\]"),
    (dict(query=np.int32), "query must be floating point, got dtype int32"),
    (dict(values=lambda x: [np.int32(y) for y in x]), r"values\[0\] must be floating"),
  ],
)
def test_bad_shapes_are_named(change, message, rng):
  tree, _, query, keys, values = _problem(5, 2, "all", rng)
  arguments = dict(query=query, keys=keys, values=values)
  for name, edit in change.items():
    arguments[name] = edit(arguments[name])
  with pytest.raises(ValueError, match=message):
    retrieval.tree_attention(**arguments, tree=tree)
