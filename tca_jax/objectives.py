"""The training objective: L_TCA + lambda_CA L_CA + lambda_RL L_RL + routing loss.

The first three terms are those of Section 3.2 of the paper. This package adds
baselines for REINFORCE, and a routing loss that distils the leaf attention into the
policy. All functions are pure functions of arrays. `where` excludes padded queries
from every loss, reward and baseline.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from tca_jax.checks import as_array
from tca_jax.checks import is_traced
from tca_jax.masking import MASKED
from tca_jax.masking import masked_mean
from tca_jax.retrieval import TreeAttentionOutput
from tca_jax.tree import subtree_mass

__all__ = [
  "BASELINES",
  "REWARDS",
  "Baseline",
  "ObjectiveWeights",
  "Reward",
  "accuracy",
  "advantage",
  "categorical_log_likelihood",
  "gaussian_log_likelihood",
  "masked_mean",
  "reinforce_loss",
  "routing_loss",
  "routing_targets",
  "sharpen",
  "tree_objective",
  "walk_diagnostics",
]

Baseline = typing.Literal["constant", "batch", "leaf"]
Reward = typing.Literal["accuracy", "likelihood"]
BASELINES: tuple[str, ...] = typing.get_args(Baseline)
REWARDS: tuple[str, ...] = typing.get_args(Reward)


def categorical_log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Computes log p(label) in nats, which is the negative cross-entropy.

  Args:
    logits: `[..., K]`.
    labels: `[...]` int in [0, K).

  Returns:
    `[...]` float32; NaN for a label outside [0, K).

  Raises:
    ValueError: if labels are not integers; outside a transformation also if a label is
      outside [0, K).

  >>> round(categorical_log_likelihood(jnp.zeros((1, 4)), jnp.array([2])).item(), 4)
  -1.3863
  """
  logits, labels, allowed = _check_labels(logits, labels)
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  # Labels of -1 would count from the end.
  index = jnp.where(allowed, labels, 0)[..., None]
  found = jnp.take_along_axis(log_probs, index, axis=-1)[..., 0]
  return jnp.where(allowed, found, jnp.nan)


def _check_labels(
  logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Logits, labels, and True where a label is in [0, K); see `Raises` of the callers."""
  logits, labels = as_array("logits", logits), as_array("labels", labels)
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f"labels must be integers, got dtype {labels.dtype}")
  num_classes = logits.shape[-1]
  allowed = (labels >= 0) & (labels < num_classes)
  if not is_traced(allowed) and not np.all(allowed):
    outside = labels[~allowed].ravel()[0]
    raise ValueError(f"labels must be in [0, {num_classes}), got {outside}")
  return logits, labels, allowed


def gaussian_log_likelihood(
  mean: jax.Array, std: jax.Array, targets: jax.Array
) -> jax.Array:
  """Computes log N(target; mean, std) in nats, summed over the last axis (channels).

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
  mean = as_array("mean", mean).astype(jnp.float32)
  std = as_array("std", std).astype(jnp.float32)
  targets = as_array("targets", targets)
  scaled = (targets - mean) / std
  log_density = -0.5 * (scaled**2 + jnp.log(2 * jnp.pi)) - jnp.log(std)
  return jnp.sum(log_density, axis=-1)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns 1 where the most probable class is the label, else 0.

  Args:
    logits: `[..., K]`.
    labels: `[...]` int in [0, K).

  Returns:
    `[...]` float32; NaN for a label outside [0, K).

  Raises:
    ValueError: see `categorical_log_likelihood`.

  >>> accuracy(jnp.eye(2), jnp.array([0, 0])).tolist()
  [1.0, 0.0]
  """
  logits, labels, allowed = _check_labels(logits, labels)
  correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
  return jnp.where(allowed, correct, jnp.nan)


def advantage(
  reward: jax.Array,
  leaf_reward: jax.Array,
  baseline: Baseline,
  where: jax.Array | None = None,
  constant: float = 0.0,
  clip: float = 5.0,
) -> jax.Array:
  """Computes the advantage of REINFORCE: the reward minus a baseline.

  Args:
    reward: `[B, M]`, the reward of each query's path.
    leaf_reward: `[B, M]`, the reward of the same query's prediction from all leaves;
      only baseline "leaf" uses it.
    baseline: "constant": the number `constant`, as published. "batch": the mean
      reward of the same query position in the other valid examples of the batch (0
      if there are none). "leaf": `leaf_reward`.
    where: `[B, M]` bool, False at padded queries; None means all are valid.
    constant: the value of baseline "constant": 0 as published, or -log(number of
      classes) if the reward is the likelihood of a classification.
    clip: the bound of advantages, which are clipped to [-clip, clip]; not used with
      baseline "constant".

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
  """Returns the baseline of `advantage`, `[B, M]`."""
  if baseline == "constant":
    return jnp.full_like(reward, constant)
  if baseline == "leaf":
    return leaf_reward
  if baseline == "batch":
    valid = jnp.ones(reward.shape, bool) if where is None else where
    own = jnp.where(valid, reward, 0)
    count = jnp.sum(valid, axis=0, keepdims=True, dtype=jnp.int32)
    count -= valid.astype(jnp.int32)
    others = jnp.sum(own, axis=0, keepdims=True) - own
    return others / jnp.maximum(count, 1).astype(others.dtype)
  raise ValueError(f"baseline must be one of {BASELINES}, got {baseline!r}")


def reinforce_loss(
  log_prob: jax.Array, advantage: jax.Array, where: jax.Array | None = None
) -> jax.Array:
  """Computes the REINFORCE loss of whole paths: mean of -(R - baseline) log pi(path).

  The entropy bonus of L_RL is not included; it is `-alpha * masked_mean(entropy)`.

  Args:
    log_prob: `[...]`, the log-probability of each query's path, summed over levels.
    advantage: `[...]`, the reward minus the baseline; treated as a constant.
    where: `[...]` bool, False at padded queries; None means all are valid.

  Returns:
    `[]`.
  """
  if where is not None:  # before the product, whose gradient would be 0 * NaN
    advantage = jnp.where(where, advantage, 0)
    log_prob = jnp.where(where, log_prob, 0)
  return masked_mean(-jax.lax.stop_gradient(advantage) * log_prob, where)


def sharpen(leaf_weights: jax.Array, temperature: float) -> jax.Array:
  """Returns leaf weights to the power of 1 / temperature, normalised.

  Temperatures below 1 sharpen the distribution, which reduces the influence of
  heads that attend to many tokens.

  Args:
    leaf_weights: `[..., L]`, non-negative, such as the leaf attention averaged over
      heads.
    temperature: the temperature, above 0.

  Returns:
    `[..., L]` without gradient; rows sum to 1, or to 0 if all weights are 0.

  Raises:
    ValueError: if the temperature is not above 0.

  >>> sharpen(jnp.array([3.0, 2.0, 1.0, 1.0, 1.0]) / 8, 0.5).tolist()
  [0.5625, 0.25, 0.0625, 0.0625, 0.0625]
  """
  if temperature <= 0:
    raise ValueError(f"temperature must be above 0, got {temperature}")
  weights = jax.lax.stop_gradient(leaf_weights) ** (1 / temperature)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return weights / jnp.where(total > 0, total, 1)


def routing_targets(mass: tuple[jax.Array, ...], path: jax.Array) -> jax.Array:
  """Returns the leaf attention under each child of the nodes that a query visited.

  Args:
    mass: depth + 1 levels of `[b**l]`, the leaf attention averaged over heads and
      summed under every node, see `tree.subtree_mass`.
    path: `[depth]` int32, the children taken.

  Returns:
    `[depth, b]` float32 without gradient; each row sums to the mass of the visited
    node.
  """
  b = mass[1].shape[-1] if len(mass) > 1 else 1
  node, targets = jnp.int32(0), []
  for level, choice in zip(mass[1:], path, strict=True):
    targets.append(level.reshape(-1, b)[node])
    node = node * b + choice
  targets = jnp.array(targets, jnp.float32).reshape(len(targets), b)
  return jax.lax.stop_gradient(targets)


def routing_loss(
  log_policy: jax.Array,
  targets: jax.Array,
  counted: jax.Array,
  where: jax.Array | None = None,
) -> jax.Array:
  """Computes the cross-entropy of the policy to the leaf attention at visited nodes.

  The policy defines a distribution over leaves: the product of its choices on the path
  to each leaf. Its cross-entropy relative to the leaf attention is a sum over all inner
  nodes n of -sum_c mass(c) log pi(c | n), where c are the children of n
  and mass is the leaf attention under a node. The loss has the terms of the visited
  nodes. A node with little mass contributes little: after a wrong turn, where the
  attention is mostly noise, the policy has almost no target.

  Args:
    log_policy: `[..., depth, b]`, log pi at the visited nodes.
    targets: `[..., depth, b]`, the mass of their children, from `routing_targets`.
    counted: `[..., depth]` bool, see `TreeAttentionOutput`.
    where: `[...]` bool, False at padded queries; None means all are valid.

  Returns:
    `[]`, the sum over the counted decisions of a query, averaged over queries.
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
  """Computes statistics of the policy for each level of the tree, for logging.

  Args:
    walk: the sampled walks, with leading axes `[...]`.
    targets: `[..., depth, b]`, from `routing_targets`.
    where: `[...]` bool, False at padded queries; None means all are valid.

  Returns:
    A dict of scalars over counted decisions, for the choice among the nodes of each
    level l >= 1. "policy_entropy/level_<l>": the mean entropy of pi in nats.
    "agreement/level_<l>": the fraction of decisions where the most probable child is
    also the child with most leaf attention, weighted by the leaf attention under the
    visited node.
  """
  counted = walk.counted if where is None else walk.counted & where[..., None]
  policy = jnp.where(walk.log_policy > MASKED, jnp.exp(walk.log_policy), 0)
  entropy = -jnp.sum(jnp.where(policy > 0, policy * walk.log_policy, 0), axis=-1)
  agrees = jnp.argmax(walk.log_policy, axis=-1) == jnp.argmax(targets, axis=-1)
  mass = jnp.where(counted, jnp.sum(targets, axis=-1), 0)
  statistics = {}
  for l in range(walk.counted.shape[-1]):
    statistics[f"policy_entropy/level_{l + 1}"] = masked_mean(
      entropy[..., l], counted[..., l]
    )
    agreed = jnp.sum(jnp.where(agrees[..., l], mass[..., l], 0))
    statistics[f"agreement/level_{l + 1}"] = agreed / jnp.maximum(
      jnp.sum(mass[..., l]), 1e-9
    )
  return statistics


@dataclasses.dataclass(frozen=True)
class ObjectiveWeights:
  """Weights and options of the training objective. All are static.

  Attributes:
    lambda_ca: the weight of the task loss of the prediction from all leaves.
    lambda_rl: the weight of REINFORCE and of the entropy bonus.
    entropy_weight: alpha, the weight of the entropy bonus relative to REINFORCE.
    routing_weight: the weight of the routing loss.
    teacher_temperature: the temperature of the leaf attention as the target of the
      routing loss, see `sharpen`. Below 1 the target is sharpened, which gives
      diffuse heads less weight. When the relevant information is spread over many
      tokens, this can collapse all queries onto one leaf.
    baseline: the baseline of REINFORCE, one of `BASELINES`; see `advantage`.
    baseline_value: the value of baseline "constant".
  """

  lambda_ca: float = 1.0
  lambda_rl: float = 1.0
  entropy_weight: float = 0.01
  routing_weight: float = 1.0
  teacher_temperature: float = 1.0
  baseline: Baseline = "batch"
  baseline_value: float = 0.0

  def __post_init__(self) -> None:
    if self.teacher_temperature <= 0:
      raise ValueError(
        f"teacher_temperature must be above 0, got {self.teacher_temperature}"
      )


def tree_objective(
  log_likelihood: jax.Array,
  leaf_log_likelihood: jax.Array,
  reward: jax.Array,
  leaf_reward: jax.Array,
  walk: TreeAttentionOutput,
  leaf_weights: jax.Array,
  weights: ObjectiveWeights,
  where: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Computes the training objective of B contexts with M queries each.

  The loss is loss_tca + lambda_ca * loss_ca + lambda_rl * (loss_rl - entropy_weight
  * entropy) + routing_weight * loss_routing.

  Args:
    log_likelihood: `[B, M]`, of the targets, predicted from the nodes read.
    leaf_log_likelihood: `[B, M]`, of the targets, predicted from all leaves.
    reward: `[B, M]`, of the prediction from the nodes read.
    leaf_reward: `[B, M]`, of the prediction from all leaves.
    walk: the sampled walks, with leading axes `[B, M]`.
    leaf_weights: `[B, M, L]`, the leaf attention averaged over heads.
    weights: an `ObjectiveWeights`.
    where: `[B, M]` bool, False at padded queries; None means all are valid.

  Returns:
    The loss, `[]`, and a dict of scalars: the unweighted parts "loss_tca",
    "loss_ca", "loss_rl", "loss_routing" and "entropy"; the means "reward" and
    "baseline"; "best_leaf_read", the fraction of queries that read the leaf of the
    largest leaf weight as a leaf; and the entries of `walk_diagnostics`.

  Raises:
    ValueError: if the baseline is not one of `BASELINES`, or the temperature of the
      teacher is not above 0.
  """
  depth, b = walk.log_policy.shape[-2:]
  teacher = sharpen(leaf_weights, weights.teacher_temperature)
  mass = subtree_mass(teacher, b)
  targets = jax.vmap(jax.vmap(routing_targets))(mass, walk.path)
  # The children of the last node visited are the leaves that are read as leaves.
  last = targets[..., -1, :] if depth else teacher
  best_leaf_read = jnp.max(last, axis=-1) >= jnp.max(teacher, axis=-1)

  terms = (reward, leaf_reward, weights.baseline, where, weights.baseline_value)
  gain = advantage(*terms)
  parts = {
    "loss_tca": -masked_mean(log_likelihood, where),
    "loss_ca": -masked_mean(leaf_log_likelihood, where),
    "loss_rl": reinforce_loss(walk.log_prob, gain, where),
    "loss_routing": routing_loss(walk.log_policy, targets, walk.counted, where),
    "entropy": masked_mean(walk.entropy, where),
    "reward": masked_mean(reward, where),
    "baseline": masked_mean(_baseline_value(*terms), where),
    "best_leaf_read": masked_mean(best_leaf_read, where),
  }
  loss = (
    parts["loss_tca"]
    + weights.lambda_ca * parts["loss_ca"]
    + weights.lambda_rl * (parts["loss_rl"] - weights.entropy_weight * parts["entropy"])
    + weights.routing_weight * parts["loss_routing"]
  )
  return loss, parts | walk_diagnostics(walk, targets, where)
