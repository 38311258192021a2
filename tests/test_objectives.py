"""The objectives: against NumPy, SciPy and the exact sum over all paths."""

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
  labels = np.array([0, 2, 1, 1])
  probs = reference.softmax(mean)
  actual = objectives.categorical_log_likelihood(mean, labels)
  np.testing.assert_allclose(actual, np.log(probs[range(4), labels]), rtol=1e-5)
  hits = objectives.accuracy(mean, labels)
  np.testing.assert_array_equal(hits, mean.argmax(-1) == labels)


def test_masked_mean_of_nothing_is_zero():
  x = jnp.full(3, jnp.nan)
  assert objectives.masked_mean(x, jnp.zeros(3, bool)) == 0


def test_advantages(rng):
  reward, leaf = rng.normal(size=(2, 4, 3)).astype(np.float32)
  where = np.ones((4, 3), bool)
  where[0, 0] = False
  where[1:, 2] = False
  none = objectives.advantage(reward, leaf, "constant", where)
  np.testing.assert_array_equal(none, reward)
  chance = objectives.advantage(reward, leaf, "constant", where, -np.log(12))
  np.testing.assert_allclose(chance, reward + np.log(12), rtol=1e-6)
  own = objectives.advantage(reward, leaf, "leaf", where)
  np.testing.assert_allclose(own, reward - leaf, rtol=1e-6)
  batch = np.asarray(objectives.advantage(reward, leaf, "batch", where))
  assert batch[1, 0] == pytest.approx(reward[1, 0] - reward[2:, 0].mean(), rel=1e-4)
  assert batch[0, 2] == pytest.approx(reward[0, 2]), "there is no other example"
  clipped = objectives.advantage(100 * reward, leaf, "leaf", where)
  assert np.abs(clipped).max() == 5
  with pytest.raises(ValueError, match=r"baseline must be one of .* got 'mean'"):
    objectives.advantage(reward, leaf, "mean", where)


def test_padded_queries_change_nothing(rng):
  where = np.array([[True, False], [True, True], [True, True]])
  reward, leaf, log_prob = rng.normal(size=(3, 3, 2)).astype(np.float32)

  def losses(reward, leaf, log_prob):
    gain = objectives.advantage(reward, leaf, "batch", where)
    return objectives.reinforce_loss(log_prob, gain, where)

  own = jax.value_and_grad(losses, argnums=2)(reward, leaf, log_prob)
  for junk in (1e9, np.nan):
    other = [np.where(where, x, junk).astype("f") for x in (reward, leaf, log_prob)]
    value, grad = jax.value_and_grad(losses, argnums=2)(*other)
    assert value == own[0]
    np.testing.assert_array_equal(grad, own[1])


def test_padded_queries_do_not_reach_the_routing_loss():
  log_policy = jnp.log(jnp.full((2, 3, 2), 0.5))
  targets = jnp.full((2, 3, 2), 0.5).at[1].set(jnp.nan)
  counted, where = jnp.ones((2, 3), bool), jnp.array([True, False])
  loss = lambda x: objectives.routing_loss(x, targets, counted, where)  # noqa: E731
  value, grad = jax.value_and_grad(loss)(log_policy)
  np.testing.assert_allclose(value, 3 * np.log(2), rtol=1e-6)
  assert np.all(np.isfinite(grad)) and not np.any(grad[1])


def _small_problem(rng, n=5, b=2):
  coords = cases.coords("random", n, rng)
  tree = tree_lib.build_tree(coords, branch_factor=b)
  root = reference.build(coords, np.ones(n, bool), b)
  sizes = [b**l for l in range(tree.depth + 1)]
  query = rng.normal(size=(2, 3)).astype(np.float32)
  keys = cases.levels(sizes, 2, 3, rng)
  return tree, root, query, keys


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_reinforce_gradient_equals_the_sum_over_all_paths(baseline, rng):
  """E[grad of the REINFORCE loss] = -grad of E[R], with or without baseline."""
  tree, root, query, keys = _small_problem(rng)
  paths = reference.all_paths(root)
  nodes = reference.nodes_by_level(root)

  def tokens_read(path):
    read = reference.walk(query, keys, keys, root, path).read
    return tuple(sorted(tuple(nodes[l][i].tokens) for l, i in read))

  # A reward is a function of what was read: paths that differ in vacuous
  # decisions alone share it.
  drawn = {tokens_read(path): rng.normal() for path in paths}
  table = np.zeros((2,) * tree.depth, np.float32)
  for path in paths:
    table[tuple(path)] = drawn[tokens_read(path)]

  def path_log_prob(query, path):
    """Log pi of a given path, by steering the walk with a policy query."""
    node, total = 0, jnp.float32(0)
    for level, step in enumerate(path):
      rows = jnp.asarray(keys[level + 1])[node * 2 : node * 2 + 2]
      valid = tree.node_count(level + 1)[node * 2 : node * 2 + 2] > 0
      logits = jnp.einsum("hd,nhd->hn", query, rows) / np.sqrt(3)
      pi = jnp.where(
        valid, jnp.mean(jax.nn.softmax(jnp.where(valid, logits, -1e30)), axis=0), 0
      )
      total += jnp.log(pi[step])
      node = node * 2 + step
    return total

  def expected_reward(query):
    return sum(
      jnp.exp(path_log_prob(query, path)) * table[tuple(path)] for path in paths
    )

  exact = -jax.grad(expected_reward)(jnp.asarray(query))

  def sampled_loss(query, rng):
    out = retrieval.tree_attention(query, keys, keys, tree, rng=rng)
    reward = jnp.asarray(table)[tuple(out.path)]
    return objectives.reinforce_loss(out.log_prob, reward - baseline)

  draws = 40_000
  grads = jax.jit(jax.vmap(jax.grad(sampled_loss), in_axes=(None, 0)))(
    query, jax.random.split(jax.random.key(0), draws)
  )
  grads = np.asarray(grads)
  error = grads.std(0) / np.sqrt(draws)
  np.testing.assert_array_less(np.abs(grads.mean(0) - exact), 5 * error + 1e-6)


def test_routing_targets_are_the_leaf_mass_of_the_children_visited(rng):
  weights = rng.random(8).astype(np.float32)
  mass = tree_lib.subtree_mass(weights, 2)
  targets = objectives.routing_targets(mass, jnp.array([1, 0, 1]))
  np.testing.assert_allclose(targets[0], [weights[:4].sum(), weights[4:].sum()])
  np.testing.assert_allclose(targets[1], [weights[4:6].sum(), weights[6:].sum()])
  np.testing.assert_allclose(targets[2], weights[4:6])


def test_routing_losses_of_all_nodes_are_the_cross_entropy_of_the_leaves(rng):
  depth, b = 3, 2
  weights = rng.dirichlet(np.ones(b**depth)).astype(np.float32)
  mass = tree_lib.subtree_mass(weights, b)
  policy = [rng.dirichlet(np.ones(b), b**l) for l in range(depth)]
  leaves = np.ones(1)
  for level in policy:
    leaves = (leaves[:, None] * level).ravel()
  total = 0.0
  for path in np.ndindex(*[b] * depth):
    visited = [
      sum(c * b ** (l - 1 - i) for i, c in enumerate(path[:l])) for l in range(depth)
    ]
    log_policy = np.log([policy[l][i] for l, i in enumerate(visited)])
    # A node of level l is on b**(depth - l) paths: each brings its part.
    part = np.array([b ** (l - depth) for l in range(depth)])[:, None]
    targets = part * objectives.routing_targets(mass, jnp.array(path))
    total += objectives.routing_loss(log_policy, targets, np.ones(depth, bool))
  np.testing.assert_allclose(total, -np.sum(weights * np.log(leaves)), rtol=1e-5)


def test_routing_loss_is_least_where_policy_is_the_target(rng):
  tree, _, query, keys = _small_problem(rng)
  out = retrieval.tree_attention(query, keys, keys, tree)
  pi = jnp.exp(out.log_policy)
  own = objectives.routing_loss(out.log_policy, pi, out.counted)
  expected = -np.sum(
    np.where(out.counted[:, None] & (pi > 0), pi * np.log(np.maximum(pi, 1e-30)), 0)
  )
  np.testing.assert_allclose(own, expected, rtol=1e-5)
  other = objectives.routing_loss(jnp.log(jnp.full_like(pi, 0.5)), pi, out.counted)
  assert own < other


def test_diagnostics_of_walks(rng):
  """Three queries: the policy agrees; it is wrong at the root; it is padding."""
  sure, unsure = np.log([0.9, 0.1]), np.log([0.5, 0.5])
  walk = retrieval.TreeAttentionOutput(
    **dict.fromkeys(("output", "level", "index", "mask", "log_prob", "entropy")),
    path=np.zeros((3, 3), int),
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


def test_tree_objective_weighs_its_parts(rng):
  tree, _, query, keys = _small_problem(rng, n=9)
  rngs = jax.random.split(jax.random.key(0), (3, 2))
  walk = jax.vmap(
    jax.vmap(lambda r: retrieval.tree_attention(query, keys, keys, tree, rng=r))
  )(rngs)
  arrays = rng.normal(size=(4, 3, 2)).astype(np.float32)
  targets = jnp.full((3, 2, tree.depth, 2), 0.5)

  def objective(**kwargs):
    weights = objectives.ObjectiveWeights(**kwargs)
    return objectives.tree_objective(*arrays, walk, targets, weights)

  _, parts = objective()
  none = dict(leaf=0.0, reinforce=0.0, routing=0.0)
  assert objective(**none)[0] == parts["loss_tca"]
  for name, part in (
    ("leaf", parts["loss_ca"]),
    ("routing", parts["loss_routing"]),
    ("reinforce", parts["loss_rl"] - 0.01 * parts["entropy"]),
  ):
    loss, _ = objective(**none | {name: 2.0})
    np.testing.assert_allclose(loss, parts["loss_tca"] + 2 * part, rtol=1e-5)
  loss, _ = objective(**none | dict(reinforce=1.0, entropy=3.0))
  expected = parts["loss_tca"] + parts["loss_rl"] - 3 * parts["entropy"]
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
