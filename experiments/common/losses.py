"""Training loss of a batch, from the predictions of any of the models (Sec. 3.2)."""

import dataclasses
import typing

import jax

from experiments.common.batch import Batch
from experiments.common.config import Config
import tca_jax
from tca_jax import masking
from tca_jax import objectives


def distribution(output: typing.Any) -> tca_jax.Regression | tca_jax.Categorical:
  """The predicted distribution: of values as it is, or of classes from their logits."""
  if isinstance(output, tca_jax.Regression):
    return output
  return tca_jax.Categorical(logits=output)


def reward(
  predicted: tca_jax.Regression | tca_jax.Categorical,
  targets: jax.Array,
  kind: objectives.Reward,
) -> jax.Array:
  """REINFORCE reward of each query, `[B, M]`; of a regression always the likelihood.

  Args:
    predicted: distributions of the targets.
    targets: `[B, M]` labels or `[B, M, E]` values.
    kind: reward of a classification.
  """
  if isinstance(predicted, tca_jax.Regression) or kind == "likelihood":
    return predicted.log_prob(targets)
  return predicted.accuracy(targets)


def objective(
  prediction: tca_jax.Prediction, batch: Batch, config: Config
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Training loss of a batch, and its metrics.

  Args:
    prediction: predictions with `train=True`.
    batch: a cleaned batch, see `Batch.cleaned`.
    config: config of the experiment.

  Returns:
    The loss `[]`: minus the mean log-likelihood, or with a tree the whole objective of
    `objectives.tree_objective`; and metrics by name.
  """
  where, targets = batch.query_mask, batch.targets
  predicted = distribution(prediction.output)
  log_likelihood = predicted.log_prob(targets)
  rewards = reward(predicted, targets, config.reward)
  if not isinstance(prediction, tca_jax.TrainingPrediction):
    loss = -masking.masked_mean(log_likelihood, where)
    return loss, {"reward": masking.masked_mean(rewards, where)}
  from_leaves = distribution(prediction.leaf_output)
  reading: tca_jax.TrainingReading = prediction.reading
  return objectives.tree_objective(
    log_likelihood,
    from_leaves.log_prob(targets),
    rewards,
    reward(from_leaves, targets, config.reward),
    reading.walk,
    reading.leaf_weights,
    objective_weights(config),
    where,
  )


def objective_weights(config: Config) -> objectives.ObjectiveWeights:
  """The options of the objective, which have the same names in a config."""
  fields = dataclasses.fields(objectives.ObjectiveWeights)
  return objectives.ObjectiveWeights(
    **{field.name: getattr(config, field.name) for field in fields}
  )
