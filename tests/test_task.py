"""The objective of a batch: padded queries never matter, options act."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import config as config_lib
from experiments.common import task as task_lib
import tca_jax

CONFIG = config_lib.Config(baseline="batch")


def _loss_and_grads(batch, config):
  """A function of a batch: the objective of a small model and its gradient."""
  head = tca_jax.GaussianHead(1)
  model = task_lib.build_model(config, 4, tca_jax.PointEmbedder(), head)
  inputs = (batch.coords, batch.values, batch.query_coords, batch.mask)
  params = jax.jit(model.init)(jax.random.key(0), *inputs)

  @jax.jit
  def run(params, batch):
    def loss(params):
      prediction = model.apply(
        params,
        batch.coords,
        batch.values,
        jnp.where(batch.query_mask[..., None], batch.query_coords, 0),
        batch.mask,
        train=True,
        rngs={"policy": jax.random.key(1)},
      )
      return task_lib.objective(prediction, batch, config)

    return jax.value_and_grad(loss, has_aux=True)(params)

  return lambda batch: run(params, batch)


def _batch(rng):
  coords = rng.normal(size=(3, 4, 2)).astype(np.float32)
  query_coords = rng.normal(size=(3, 4, 2)).astype(np.float32)
  return task_lib.Batch(
    coords=coords,
    values=coords[..., :1],
    mask=np.ones((3, 4), bool),
    query_coords=query_coords,
    targets=query_coords[..., :1],
    query_mask=np.arange(4) < np.array([[4], [2], [1]]),
  )


@pytest.mark.parametrize(
  "model, baseline",
  [("tca", "constant"), ("tca", "batch"), ("tca", "leaf"), ("ca", "batch"),
   ("perceiver", "batch")],
)  # fmt: skip
def test_padded_queries_never_matter(model, baseline, rng):
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
def test_gradients_are_finite_under_any_mask(through, rng):
  """One example a kind of mask: all, some, one and no valid token."""
  batch = _batch(rng)
  four = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), batch)
  masks = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
  four = four.replace(mask=masks)
  config = dataclasses.replace(
    CONFIG, num_layers=1, share_policy=through, tree_gradient=through
  )
  results = _loss_and_grads(four, config)(four)
  chex.assert_tree_all_finite(results)


def test_rewards(rng):
  logits = jnp.asarray(rng.normal(size=(2, 3, 5)))
  labels = jnp.argmax(logits, -1)
  hits = task_lib.reward(logits, labels, CONFIG)
  assert np.all(hits == 1)
  likely = task_lib.reward(
    logits, labels, dataclasses.replace(CONFIG, reward="likelihood")
  )
  np.testing.assert_allclose(likely, task_lib.log_likelihood(logits, labels))
  normal = tca_jax.Gaussian(mean=logits, std=jnp.ones_like(logits))
  np.testing.assert_allclose(
    task_lib.reward(normal, logits, CONFIG),
    task_lib.log_likelihood(normal, logits),
  )


def test_every_weight_of_a_config_reaches_the_objective(rng, monkeypatch):
  config = dataclasses.replace(
    CONFIG,
    lambda_ca=2.0,
    lambda_rl=3.0,
    entropy_weight=4.0,
    routing_weight=5.0,
    baseline="leaf",
    baseline_value=6.0,
  )
  seen = []

  def tree_objective(*args):
    seen.append(args)
    return 0.0, {}

  monkeypatch.setattr(task_lib.objectives, "tree_objective", tree_objective)
  monkeypatch.setattr(task_lib.objectives, "walk_diagnostics", lambda *_: {})
  batch = _batch(rng)
  reading = tca_jax.Reading(
    output=None,
    num_read=None,
    walk=object(),
    routing_targets=object(),
    best_leaf_read=batch.query_mask,
  )
  normal = tca_jax.Gaussian(mean=batch.targets, std=np.ones_like(batch.targets))
  prediction = tca_jax.Prediction(output=normal, leaf_output=normal, reading=reading)
  task_lib.objective(prediction, batch, config)
  assert dataclasses.asdict(seen[0][-2]) == dict(
    leaf=2.0, reinforce=3.0, entropy=4.0, routing=5.0, baseline="leaf", constant=6.0
  )
