"""The training objective, L = L_TCA + lambda_CA L_CA + lambda_RL L_RL + routing.

Section 3.2 of the paper, and what this package adds to it: baselines for
REINFORCE, and a routing loss that distils the leaf attention into the policy.
Everything is a pure function of arrays; `where` keeps padded queries out of
every loss, reward and baseline.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from tca_jax.attention import MASKED
from tca_jax.retrieval import TreeAttentionOutput

Baseline = typing.Literal["constant", "batch", "leaf"]
Reward = typing.Literal["accuracy", "likelihood"]
BASELINES: tuple[str, ...] = typing.get_args(Baseline)
REWARDS: tuple[str, ...] = typing.get_args(Reward)


def masked_mean(
  x: jax.Array, where: jax.Array | None = None, axis=None, keepdims=False
) -> jax.Array:
  """Mean of x over the entries where `where` is True; 0 if there are none.

  >>> masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])).item()
  2.0
  """
  if where is None:
    where = jnp.ones(x.shape, bool)
  where = jnp.broadcast_to(where, x.shape)
  total = jnp.sum(jnp.where(where, x, 0), axis=axis, keepdims=keepdims)
  count = jnp.sum(where, axis=axis, keepdims=keepdims)
  return total / jnp.maximum(count, 1)


def categorical_log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Log p(label), i.e. minus the cross entropy, in nats.

  Args:
    logits: `[..., K]`.
    labels: `[...]` int in [0, K).

  Returns:
    `[...]` float32.
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  return jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]


def gaussian_log_likelihood(
  mean: jax.Array, std: jax.Array, targets: jax.Array
) -> jax.Array:
  """Log N(target; mean, std) in nats, summed over the last axis (channels).

  Args:
    mean: `[..., E]`.
    std: `[..., E]`, positive.
    targets: `[..., E]`.

  Returns:
    `[...]` float32.

  >>> x = jnp.zeros(1)
  >>> round(gaussian_log_likelihood(x, x + 1, x).item(), 4)
  -0.9189
  """
  mean, std = mean.astype(jnp.float32), std.astype(jnp.float32)
  scaled = (targets - mean) / std
  log_density = -0.5 * (scaled**2 + jnp.log(2 * jnp.pi)) - jnp.log(std)
  return jnp.sum(log_density, axis=-1)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """1.0 where the most probable class is the label, else 0.0; shapes as above."""
  return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


def advantage(
  reward: jax.Array,
  leaf_reward: jax.Array,
  baseline: Baseline,
  where: jax.Array | None = None,
  constant: float = 0.0,
  clip: float = 5.0,
) -> jax.Array:
  """What REINFORCE multiplies log pi by: the reward less a baseline.

  Args:
    reward: `[B, M]`, the reward of each query's path.
    leaf_reward: `[B, M]`, the reward of the same query's prediction from all
      leaves, read by baseline "leaf" alone.
    baseline: "constant": a number, as published. "batch": the mean reward
      of the same query position in the *other* valid examples of the batch (0
      where there is no other). "leaf": `leaf_reward`.
    where: `[B, M]` bool, False at padded queries.
    constant: of baseline "constant": 0 as published, or -log(number of classes)
      with the likelihood as a classification's reward.
    clip: advantages are clipped to [-clip, clip], unless the baseline is constant.

  Returns:
    `[B, M]`, without gradient.

  Raises:
    ValueError: if the baseline is not one of `BASELINES`.
  """
  value = _baseline_value(reward, leaf_reward, baseline, where, constant)
  gain = reward - value
  if baseline != "constant":
    gain = jnp.clip(gain, -clip, clip)
  return jax.lax.stop_gradient(gain)


def _baseline_value(
  reward: jax.Array,
  leaf_reward: jax.Array,
  baseline: Baseline,
  where: jax.Array | None,
  constant: float,
) -> jax.Array:
  """`[B, M]`; see `advantage`."""
  if baseline == "constant":
    return jnp.full_like(reward, constant)
  if baseline == "leaf":
    return leaf_reward
  if baseline == "batch":
    valid = jnp.ones(reward.shape, bool) if where is None else where
    own = jnp.where(valid, reward, 0)
    others = jnp.sum(valid, axis=0) - valid
    return (jnp.sum(own, axis=0) - own) / jnp.maximum(others, 1)
  raise ValueError(f"baseline must be one of {BASELINES}, got {baseline!r}")


def reinforce_loss(
  log_prob: jax.Array, advantage: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """REINFORCE over whole paths: mean of -(R - baseline) log pi(path).

  The entropy bonus of L_RL is a term of its own, `-alpha * masked_mean(entropy)`.

  Args:
    log_prob: `[...]`, the summed log-probability of each query's path.
    advantage: `[...]`, reward less baseline; no gradient flows into it.
    where: `[...]` bool, False at padded queries.
  """
  if where is not None:  # before the product, whose gradient would be 0 * NaN
    advantage = jnp.where(where, advantage, 0)
    log_prob = jnp.where(where, log_prob, 0)
  return masked_mean(-jax.lax.stop_gradient(advantage) * log_prob, where)


def routing_targets(mass: tuple[jax.Array, ...], path: jax.Array) -> jax.Array:
  """The leaf attention's mass under each child, at the nodes one query visited.

  Args:
    mass: depth + 1 levels of `[b**l]`, the head-averaged leaf attention summed
      under every node (`subtree_mass`).
    path: `[depth]` int32, the children taken.

  Returns:
    `[depth, b]` without gradient, rows summing to the mass of the node visited.
  """
  b = mass[1].shape[-1] if len(mass) > 1 else 1
  node, found = jnp.int32(0), []
  for level, choice in zip(mass[1:], path, strict=True):
    found.append(level.reshape(-1, b)[node])
    node = node * b + choice
  found = jnp.array(found, jnp.float32).reshape(len(found), b)
  return jax.lax.stop_gradient(found)


def routing_loss(
  log_policy: jax.Array,
  targets: jax.Array,
  counted: jax.Array,
  where: jax.Array | None = None,
) -> jax.Array:
  """Cross-entropy of the policy to the leaf attention, at the nodes visited.

  The attention's distribution over the leaves and the policy's, the product of
  its choices on the way there, have a cross-entropy that is a sum over all inner
  nodes: of the attention's mass there, times the cross-entropy of the policy to
  its shares of the children. These are the terms of the nodes visited. The mass is
  what matters: below a wrong turn the shares are noise, and count for nothing.

  Args:
    log_policy: `[..., depth, b]`, log pi at the nodes visited.
    targets: `[..., depth, b]`, from `routing_targets`.
    counted: `[..., depth]` bool, the decisions that can change what is read.
    where: `[...]` bool, False at padded queries.

  Returns:
    `[]`: for each query the sum over its counted decisions, averaged over the
    queries.
  """
  valid = counted[..., None] & (log_policy > MASKED)
  if where is not None:
    valid &= where[..., None, None]
  cross = jnp.where(valid, targets, 0) * jnp.where(valid, log_policy, 0)
  cross = -jnp.sum(cross, axis=(-2, -1))
  return masked_mean(cross, where)


def walk_diagnostics(
  walk: TreeAttentionOutput, targets: jax.Array, where: jax.Array | None = None
) -> dict[str, jax.Array]:
  """How the policy does, by level of the tree; no part of a loss.

  Args:
    walk: with leading `[...]`.
    targets: `[..., depth, b]`, from `routing_targets`.
    where: `[...]` bool, False at padded queries.

  Returns:
    "policy_entropy/level_<l>", of pi in nats, and "agreement/level_<l>", how often
    pi's first choice is the leaf attention's, weighted by the attention's mass at the
    node visited; for the choice of each level's node, over the counted decisions.
  """
  counted = walk.counted if where is None else walk.counted & where[..., None]
  policy = jnp.where(walk.log_policy > MASKED, jnp.exp(walk.log_policy), 0)
  entropy = -jnp.sum(jnp.where(policy > 0, policy * walk.log_policy, 0), axis=-1)
  agrees = jnp.argmax(walk.log_policy, axis=-1) == jnp.argmax(targets, axis=-1)
  mass = jnp.where(counted, jnp.sum(targets, axis=-1), 0)
  found = {}
  for l in range(walk.counted.shape[-1]):
    found[f"policy_entropy/level_{l + 1}"] = masked_mean(
      entropy[..., l], counted[..., l]
    )
    agreed = jnp.sum(jnp.where(agrees[..., l], mass[..., l], 0))
    found[f"agreement/level_{l + 1}"] = agreed / jnp.maximum(
      jnp.sum(mass[..., l]), 1e-9
    )
  return found


@dataclasses.dataclass(frozen=True)
class ObjectiveWeights:
  """The weights of the training objective: static, the defaults are our recipe.

  Attributes:
    leaf: lambda_CA, the weight of the task loss read from all leaves.
    reinforce: lambda_RL, the weight of REINFORCE and of the entropy bonus.
    entropy: alpha, the entropy bonus relative to REINFORCE.
    routing: the weight of the routing loss.
    baseline: one of `BASELINES`.
    constant: the value of baseline "constant".
  """

  leaf: float = 1.0
  reinforce: float = 1.0
  entropy: float = 0.01
  routing: float = 1.0
  baseline: Baseline = "batch"
  constant: float = 0.0


def tree_objective(
  log_likelihood: jax.Array,
  leaf_log_likelihood: jax.Array,
  reward: jax.Array,
  leaf_reward: jax.Array,
  walk: TreeAttentionOutput,
  targets: jax.Array,
  weights: ObjectiveWeights,
  where: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The whole objective of a batch of B contexts with M queries each.

  Args:
    log_likelihood: `[B, M]`, of the targets, predicted from the nodes read.
    leaf_log_likelihood: `[B, M]`, the same, predicted from all leaves.
    reward: `[B, M]`, of the prediction from the nodes read.
    leaf_reward: `[B, M]`, of the prediction from all leaves.
    walk: the sampled walks, with leading `[B, M]`.
    targets: `[B, M, depth, b]`, from `routing_targets`.
    weights: an `ObjectiveWeights`.
    where: `[B, M]` bool, False at padded queries.

  Returns:
    The loss `[]`, and its unweighted parts by name.

  Raises:
    ValueError: if the baseline is not one of `BASELINES`.
  """
  against = (reward, leaf_reward, weights.baseline, where, weights.constant)
  gain = advantage(*against)
  parts = {
    "loss_tca": -masked_mean(log_likelihood, where),
    "loss_ca": -masked_mean(leaf_log_likelihood, where),
    "loss_rl": reinforce_loss(walk.log_prob, gain, where),
    "loss_routing": routing_loss(walk.log_policy, targets, walk.counted, where),
    "entropy": masked_mean(walk.entropy, where),
    "reward": masked_mean(reward, where),
    "baseline": masked_mean(_baseline_value(*against), where),
  }
  loss = (
    parts["loss_tca"]
    + weights.leaf * parts["loss_ca"]
    + weights.reinforce * (parts["loss_rl"] - weights.entropy * parts["entropy"])
    + weights.routing * parts["loss_routing"]
  )
  return loss, parts
