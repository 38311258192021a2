"""The objectives against NumPy, SciPy and the exact sum over all paths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tca_jax import objectives
from tca_jax import retrieval
from tca_jax import tree as tree_lib
from tests import cases
from tests import reference


def test_log_likelihoods_equal_scipy(rng):
  mean, targets = rng.normal(size=(2, 4, 3)).astype(np.float32)
  std = np.exp(rng.normal(size=(4, 3))).astype(np.float32)
  expected = scipy.stats.norm.logpdf(targets, mean, std).sum(-1)
  actual = objectives.gaussian_log_likelihood(mean, std, targets)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  labels = np.array([0, 2, 1, 1], np.int32)
  probabilities = reference.softmax(mean)
  actual = objectives.categorical_log_likelihood(mean, labels)
  np.testing.assert_allclose(actual, np.log(probabilities[range(4), labels]), rtol=1e-5)
  hits = objectives.accuracy(mean, labels)
  np.testing.assert_array_equal(hits, mean.argmax(-1) == labels)


def test_advantage_each_baseline_equals_its_definition(rng):
  reward, leaf = rng.normal(size=(2, 4, 3)).astype(np.float32)
  where = np.ones((4, 3), bool)
  where[0, 0] = False
  where[1:, 2] = False
  constant = objectives.advantage(reward, leaf, "constant", where)
  np.testing.assert_array_equal(constant, reward)
  chance = objectives.advantage(reward, leaf, "constant", where, -np.log(12).item())
  np.testing.assert_allclose(chance, reward + np.log(12), rtol=1e-6)
  by_leaf = objectives.advantage(reward, leaf, "leaf", where)
  np.testing.assert_allclose(by_leaf, reward - leaf, rtol=1e-6)
  batch = np.asarray(objectives.advantage(reward, leaf, "batch", where))
  assert batch[1, 0] == pytest.approx(reward[1, 0] - reward[2:, 0].mean(), rel=1e-4)
  assert batch[0, 2] == pytest.approx(reward[0, 2]), "there is no other example"


def test_advantage_is_clipped_unless_the_baseline_is_constant(rng):
  reward, leaf = rng.normal(size=(2, 4, 3)).astype(np.float32)
  for baseline in ("batch", "leaf"):
    clipped = objectives.advantage(100 * reward, leaf, baseline)
    assert np.abs(clipped).max() == 5
  constant = objectives.advantage(100 * reward, leaf, "constant")
  np.testing.assert_array_equal(constant, 100 * reward)


def test_advantage_unknown_baseline_raises():
  x = jnp.zeros((2, 2))
  with pytest.raises(ValueError, match=r"baseline must be one of .* got 'mean'"):
    objectives.advantage(x, x, "mean")


def test_reinforce_loss_padded_queries_are_ignored(rng):
  where = np.array([[True, False], [True, True], [True, True]])
  arrays = rng.normal(size=(3, 3, 2)).astype(np.float32)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=2)
  def loss(reward, leaf, log_prob):
    gain = objectives.advantage(reward, leaf, "batch", where)
    return objectives.reinforce_loss(log_prob, gain, where)

  expected, expected_grad = loss(*arrays)
  for junk in (1e9, np.nan):
    value, grad = loss(*(np.where(where, x, np.float32(junk)) for x in arrays))
    assert value == expected
    np.testing.assert_array_equal(grad, expected_grad)


def test_routing_loss_padded_queries_are_ignored():
  log_policy = jnp.log(jnp.full((2, 3, 2), 0.5))
  targets = np.full((2, 3, 2), 0.5, np.float32)
  targets[1] = np.nan
  counted, where = jnp.ones((2, 3), bool), jnp.array([True, False])
  loss = lambda x: objectives.routing_loss(x, targets, counted, where)  # noqa: E731
  value, grad = jax.jit(jax.value_and_grad(loss))(log_policy)
  np.testing.assert_allclose(value, 3 * np.log(2), rtol=1e-6)
  assert np.all(np.isfinite(grad)) and not np.any(grad[1])


def _problem(rng, n=5, b=2):
  """A tree, the reference tree, a query, and keys of every node."""
  coords = cases.coords("random", n, rng)
  tree = tree_lib.build_tree(coords, branch_factor=b)
  root = reference.build(coords, np.ones(n, bool), b)
  sizes = [b**l for l in range(tree.depth + 1)]
  query = rng.normal(size=(2, 3)).astype(np.float32)
  keys = cases.levels(sizes, 2, 3, rng)
  return tree, root, query, keys


def test_reinforce_gradient_equals_the_sum_over_all_paths(rng):
  """E[grad of the REINFORCE loss] = -grad of E[R], with or without baseline."""
  tree, root, query, keys = _problem(rng)
  paths = reference.all_paths(root)
  nodes = reference.nodes_by_level(root)

  def tokens_read(path):
    read = reference.walk(query, keys, keys, root, path).read
    return tuple(sorted(tuple(nodes[l][i].tokens) for l, i in read))

  # A reward is a function of the nodes read. Paths that differ only in decisions that
  # change nothing have the same reward.
  drawn = {tokens_read(path): rng.normal() for path in paths}
  table = np.zeros((2,) * tree.depth, np.float32)
  for path in paths:
    table[tuple(path)] = drawn[tokens_read(path)]

  def path_log_prob(query, path):
    """Log pi of a given path."""
    node, total = 0, jnp.float32(0)
    for level, step in enumerate(path):
      rows = jnp.asarray(keys[level + 1])[node * 2 : node * 2 + 2]
      valid = tree.node_count(level + 1)[node * 2 : node * 2 + 2] > 0
      logits = jnp.einsum("hd,nhd->hn", query, rows) / jnp.sqrt(jnp.float32(3))
      per_head = jax.nn.softmax(jnp.where(valid[None], logits, -1e30))
      pi = jnp.where(valid, jnp.mean(per_head, axis=0), 0)
      total += jnp.log(pi[step])
      node = node * 2 + step
    return total

  def expected_reward(query):
    return sum(
      jnp.exp(path_log_prob(query, path)) * table[tuple(path)] for path in paths
    )

  exact = -jax.jit(jax.grad(expected_reward))(jnp.asarray(query))

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0, None))
  @jax.grad
  def sampled_gradient(query, rng, baseline):
    out = retrieval.tree_attention(query, keys, keys, tree, rng=rng)
    reward = jnp.asarray(table)[tuple(out.path)]
    return objectives.reinforce_loss(out.log_prob, reward - baseline)

  draws = 40_000
  for baseline in (0.0, 0.7):
    rngs = jax.random.split(jax.random.key(0), draws)
    grads = np.asarray(sampled_gradient(query, rngs, baseline))
    error = grads.std(0) / np.sqrt(draws)
    np.testing.assert_array_less(np.abs(grads.mean(0) - exact), 5 * error + 1e-6)


def test_routing_targets_are_the_leaf_mass_of_the_children_visited(rng):
  weights = rng.random(8).astype(np.float32)
  mass = tree_lib.subtree_mass(weights, 2)
  targets = objectives.routing_targets(mass, jnp.array([1, 0, 1]))
  np.testing.assert_allclose(targets[0], [weights[:4].sum(), weights[4:].sum()])
  np.testing.assert_allclose(targets[1], [weights[4:6].sum(), weights[6:].sum()])
  np.testing.assert_allclose(targets[2], weights[4:6])


def test_routing_loss_of_all_nodes_is_the_cross_entropy_of_the_leaves(rng):
  depth, b = 3, 2
  weights = rng.dirichlet(np.ones(b**depth)).astype(np.float32)
  mass = tree_lib.subtree_mass(weights, b)
  policy = [rng.dirichlet(np.ones(b), b**l).astype(np.float32) for l in range(depth)]
  leaves = np.ones(1)
  for level in policy:
    leaves = (leaves[:, None] * level).ravel()
  total = 0.0
  for path in np.ndindex(*[b] * depth):
    visited = [
      sum(c * b ** (l - 1 - i) for i, c in enumerate(path[:l])) for l in range(depth)
    ]
    log_policy = np.log([policy[l][i] for l, i in enumerate(visited)])
    # A node of level l is on b**(depth - l) paths, so each path gets a part of it.
    part = np.array([b ** (l - depth) for l in range(depth)], np.float32)[:, None]
    targets = part * objectives.routing_targets(mass, jnp.array(path))
    total += objectives.routing_loss(log_policy, targets, np.ones(depth, bool))
  np.testing.assert_allclose(total, -np.sum(weights * np.log(leaves)), rtol=1e-5)


def test_routing_loss_is_least_where_the_policy_is_the_target(rng):
  tree, _, query, keys = _problem(rng)
  out = jax.jit(retrieval.tree_attention)(query, keys, keys, tree)
  pi = jnp.exp(out.log_policy)
  least = objectives.routing_loss(out.log_policy, pi, out.counted)
  counted = np.asarray(out.counted)[:, None] & (np.asarray(pi) > 0)
  entropy = -np.sum(np.where(counted, pi * np.log(np.maximum(pi, 1e-30)), 0))
  np.testing.assert_allclose(least, entropy, rtol=1e-5)
  other = objectives.routing_loss(jnp.log(jnp.full_like(pi, 0.5)), pi, out.counted)
  assert least < other


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.0, 2.0])
def test_sharpen_equals_reference(temperature, rng):
  weights = rng.dirichlet(np.ones(5), (2, 3)).astype(np.float32)
  weights[0, 0] = 0
  sharp = np.asarray(objectives.sharpen(weights, temperature))
  for i, j in np.ndindex(2, 3):
    expected = reference.sharpen(weights[i, j], temperature)
    np.testing.assert_allclose(sharp[i, j], expected, rtol=1e-4, atol=1e-7)


def test_sharpen_has_no_gradient():
  grad = jax.grad(lambda x: objectives.sharpen(x, 0.5)[0])(jnp.array([0.2, 0.8]))
  assert not np.any(grad)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_not_above_zero_raises(temperature):
  with pytest.raises(
    ValueError, match=f"temperature must be above 0, got {temperature}"
  ):
    objectives.sharpen(jnp.ones(2), temperature)
  with pytest.raises(ValueError, match="teacher_temperature must be above 0"):
    objectives.ObjectiveWeights(teacher_temperature=temperature)


def test_walk_diagnostics_equal_the_values_by_hand():
  """Three queries: the policy agrees; it is wrong at the root; it is padding."""
  sure, unsure = np.log([0.9, 0.1]), np.log([0.5, 0.5])
  walk = retrieval.TreeAttentionOutput(
    **dict.fromkeys(("output", "level", "index", "mask", "log_prob", "entropy")),
    path=np.zeros((3, 3), np.int32),
    counted=np.array([[1, 1, 0]] * 3, bool),
    log_policy=np.array([[sure, unsure, unsure]] * 3, np.float32),
  )
  targets = np.array(
    [
      [[0.8, 0.2], [0.8, 0], [0.8, 0]],
      [[0.1, 0.9], [0, 0.1], [0, 0]],
      [[0, 1], [0, 0], [0, 0]],
    ],
    np.float32,
  )
  found = objectives.walk_diagnostics(walk, targets, np.array([True, True, False]))
  entropy = [-np.sum(np.exp(x) * x) for x in (sure, unsure)]
  expected = {
    "policy_entropy/level_1": entropy[0],
    "policy_entropy/level_2": entropy[1],
    "policy_entropy/level_3": 0,
    "agreement/level_1": 1 / 2,
    "agreement/level_2": 0.8 / 0.9,
    "agreement/level_3": 0,
  }
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5)


def _batch(rng, n=9, b=2):
  """Sampled walks `[3, 2]` of one query, likelihoods and rewards, leaf weights."""
  tree, _, query, keys = _problem(rng, n, b)
  walk = _sample(query, keys, tree, jax.random.split(jax.random.key(0), (3, 2)))
  arrays = rng.normal(size=(4, 3, 2)).astype(np.float32)
  leaf_weights = rng.random((3, 2, tree.num_leaves)) * np.asarray(tree.leaf_mask)
  leaf_weights /= leaf_weights.sum(-1, keepdims=True)
  return walk, arrays, leaf_weights.astype(np.float32), tree


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, None, None, 0))
@functools.partial(jax.vmap, in_axes=(None, None, None, 0))
def _sample(query, keys, tree, rng):
  return retrieval.tree_attention(query, keys, keys, tree, rng=rng)


@functools.partial(jax.jit, static_argnames="weights")
def _objective(arrays, walk, leaf_weights, weights, where=None):
  return objectives.tree_objective(*arrays, walk, leaf_weights, weights, where)


def test_tree_objective_is_the_weighted_sum_of_its_parts(rng):
  walk, arrays, leaf_weights, _ = _batch(rng)

  none = dict(lambda_ca=0.0, lambda_rl=0.0, routing_weight=0.0)
  options = {
    "default": {},
    "none": none,
    "lambda_ca": none | dict(lambda_ca=2.0),
    "lambda_rl": none | dict(lambda_rl=2.0),
    "routing_weight": none | dict(routing_weight=2.0),
    "entropy_weight": none | dict(lambda_rl=1.0, entropy_weight=3.0),
  }

  @jax.jit
  def objective(walk, leaf_weights):
    results = {}
    for name, option in options.items():
      weights = objectives.ObjectiveWeights(**option)
      results[name] = objectives.tree_objective(*arrays, walk, leaf_weights, weights)
    return results

  results = objective(walk, leaf_weights)
  _, parts = results["default"]
  entropy_bonus = 0.01 * parts["entropy"]
  expected = {
    "default": (
      parts["loss_tca"]
      + parts["loss_ca"]
      + parts["loss_rl"]
      - entropy_bonus
      + parts["loss_routing"]
    ),
    "none": parts["loss_tca"],
    "lambda_ca": parts["loss_tca"] + 2 * parts["loss_ca"],
    "lambda_rl": parts["loss_tca"] + 2 * (parts["loss_rl"] - entropy_bonus),
    "routing_weight": parts["loss_tca"] + 2 * parts["loss_routing"],
    "entropy_weight": parts["loss_tca"] + parts["loss_rl"] - 3 * parts["entropy"],
  }
  assert results["none"][0] == expected["none"]
  for name, loss in expected.items():
    np.testing.assert_allclose(results[name][0], loss, rtol=1e-5)


@pytest.mark.parametrize(
  "n, b, temperature",
  [
    (1, 2, 1.0),
    pytest.param(9, 2, 1.0, marks=pytest.mark.slow),
    pytest.param(9, 2, 0.5, marks=pytest.mark.slow),
    (9, 3, 0.5),
  ],
)
def test_tree_objective_routing_loss_equals_reference(n, b, temperature, rng):
  walk, arrays, leaf_weights, tree = _batch(rng, n, b)
  where = np.array([[True, False], [True, True], [True, True]])
  weights = objectives.ObjectiveWeights(teacher_temperature=temperature)
  _, parts = _objective(arrays, walk, leaf_weights, weights, where)
  losses, best_read, targets = [], [], np.zeros((3, 2, tree.depth, b), np.float32)
  for i, j in zip(*np.nonzero(where), strict=True):
    teacher = reference.sharpen(leaf_weights[i, j], temperature)
    loss, targets[i, j] = reference.routing(
      teacher, walk.path[i, j], walk.log_policy[i, j], walk.counted[i, j], b
    )
    losses.append(loss)
    best = int(np.argmax(leaf_weights[i, j]))
    as_leaf = (walk.level[i, j] == tree.depth) & (walk.index[i, j] == best)
    best_read.append(np.any(as_leaf & walk.mask[i, j]))
  np.testing.assert_allclose(
    parts["loss_routing"], np.mean(losses), rtol=1e-4, atol=1e-7
  )
  np.testing.assert_allclose(parts["best_leaf_read"], np.mean(best_read), rtol=1e-6)
  if n > 1:
    assert 0 < parts["best_leaf_read"] < 1
  diagnostics = objectives.walk_diagnostics(walk, targets, where)
  assert set(diagnostics) <= set(parts)
  for name, value in diagnostics.items():
    np.testing.assert_allclose(parts[name], value, rtol=1e-4, atol=1e-7)


def test_tree_objective_unknown_baseline_raises(rng):
  walk, arrays, leaf_weights, _ = _batch(rng)
  weights = objectives.ObjectiveWeights(baseline="mean")
  with pytest.raises(ValueError, match="baseline must be one of"):
    _objective(arrays, walk, leaf_weights, weights)
