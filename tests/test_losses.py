"""The training loss of a batch: padding has no effect, every option has one."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import config as config_lib
from experiments.common import losses
from experiments.common import systems
from experiments.common.batch import Batch
import tca_jax
from tests import models

CONFIG = config_lib.Config(baseline="batch")


def _loss_and_grads(batch, config):
  """A function of a batch: the objective of a small model and its gradient."""
  head = tca_jax.GaussianHead(1)
  model = systems.build_model(config, 4, tca_jax.PointEmbedder(), head)
  inputs = (batch.coords, batch.values, batch.query_coords, batch.mask)
  params = models.draw(model.init, *inputs)

  @jax.jit
  def run(params, batch):
    batch = batch.cleaned()

    def loss(params):
      prediction = model.apply(
        params,
        batch.coords,
        batch.values,
        batch.query_coords,
        batch.mask,
        train=True,
        rngs={"policy": jax.random.key(1)},
      )
      return losses.objective(prediction, batch, config)

    return jax.value_and_grad(loss, has_aux=True)(params)

  return lambda batch: run(params, batch)


def _batch(rng):
  coords = rng.normal(size=(3, 4, 2)).astype(np.float32)
  query_coords = rng.normal(size=(3, 4, 2)).astype(np.float32)
  return Batch(
    coords=coords,
    values=coords[..., :1],
    mask=np.ones((3, 4), bool),
    query_coords=query_coords,
    targets=query_coords[..., :1],
    query_mask=np.arange(4) < np.array([[4], [2], [1]]),
  )


@pytest.mark.parametrize(
  "model, baseline",
  [
    ("tca", "batch"),
    ("ca", "batch"),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (("tca", "constant"), ("tca", "leaf"), ("perceiver", "batch"))
    ),
  ],
)
def test_objective_padded_queries_have_no_effect(model, baseline, rng):
  batch = _batch(rng)
  config = dataclasses.replace(CONFIG, model=model, baseline=baseline)
  run = _loss_and_grads(batch, config)
  expected = run(batch)
  chex.assert_tree_all_finite(expected)
  valid = batch.query_mask[..., None]
  for junk in (1e3, np.nan):
    other = batch.replace(
      targets=np.where(valid, batch.targets, junk).astype(np.float32),
      query_coords=np.where(valid, batch.query_coords, junk).astype(np.float32),
    )
    chex.assert_trees_all_close(run(other), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("through", [True, False])
def test_objective_gradients_are_finite_with_any_mask(through, rng):
  """One example for each kind of mask: all, some, one and no valid token."""
  batch = _batch(rng)
  four = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), batch)
  masks = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
  four = four.replace(mask=masks)
  config = dataclasses.replace(
    CONFIG, num_layers=1, share_policy=through, tree_gradient=through
  )
  results = _loss_and_grads(four, config)(four)
  chex.assert_tree_all_finite(results)


def test_reward_is_accuracy_or_likelihood(rng):
  logits = jnp.asarray(rng.normal(size=(2, 3, 5)))
  labels = jnp.argmax(logits, -1)
  classes = losses.distribution(logits)
  assert np.all(losses.reward(classes, labels, "accuracy") == 1)
  likely = losses.reward(classes, labels, "likelihood")
  np.testing.assert_allclose(likely, classes.log_prob(labels))
  normal = tca_jax.Gaussian(mean=logits, std=jnp.ones_like(logits))
  assert losses.distribution(normal) is normal
  reward = losses.reward(normal, logits, "accuracy")
  np.testing.assert_allclose(reward, normal.log_prob(logits))


def test_objective_weights_are_the_options_of_the_config(rng, monkeypatch):
  options = dict(
    lambda_ca=2.0,
    lambda_rl=3.0,
    entropy_weight=4.0,
    routing_weight=5.0,
    teacher_temperature=0.7,
    baseline="leaf",
    baseline_value=6.0,
  )
  config = dataclasses.replace(CONFIG, **options)
  seen = []

  def tree_objective(*args):
    seen.append(args)
    return 0.0, {}

  monkeypatch.setattr(losses.objectives, "tree_objective", tree_objective)
  batch = _batch(rng)
  reading = tca_jax.TrainingReading(
    output=None, num_read=None, walk=object(), leaf_output=None, leaf_weights=object()
  )
  normal = tca_jax.Gaussian(mean=batch.targets, std=np.ones_like(batch.targets))
  prediction = tca_jax.TrainingPrediction(
    output=normal, leaf_output=normal, reading=reading
  )
  losses.objective(prediction, batch, config)
  assert dataclasses.asdict(seen[0][-2]) == options
  assert seen[0][4] is reading.walk and seen[0][5] is reading.leaf_weights
