"""Train a small ReTreever on random functions, then index once and read often.

Run it with `python examples/quickstart.py`.
"""

import functools

import jax
import jax.numpy as jnp
import optax

import tca_jax

model = tca_jax.ReTreever(
  embedder=tca_jax.PointEmbedder(num_frequencies=3, position_skip=True),
  read_out=tca_jax.TreeCrossAttention(share_policy=False),
  head=tca_jax.GaussianHead(num_outputs=1),
)
weights = tca_jax.objectives.ObjectiveWeights(baseline="leaf")


def sample(rng, num_context):
  """Draws 8 sine functions at random locations: contexts and 32 queries each."""
  x_rng, wave_rng = jax.random.split(rng)
  x = jax.random.uniform(x_rng, (8, num_context + 32, 1), minval=-1, maxval=1)
  frequency, phase = jax.random.uniform(wave_rng, (2, 8, 1, 1), maxval=5)
  y = jnp.sin(frequency * x + phase)
  return x[:, :-32], y[:, :-32], x[:, -32:], y[:, -32:]


def loss_fn(params, rng):
  data_rng, policy_rng = jax.random.split(rng)
  *inputs, targets = sample(data_rng, num_context=64)
  out = model.apply(params, *inputs, train=True, rngs={"policy": policy_rng})
  scores = out.output.log_prob(targets), out.leaf_output.log_prob(targets)
  return tca_jax.objectives.tree_objective(
    *scores, *scores, out.reading.walk, out.reading.leaf_weights, weights
  )[0]


optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3))


@jax.jit
def train_step(params, state, rng):
  updates, state = optimizer.update(jax.grad(loss_fn)(params, rng), state)
  return optax.apply_updates(params, updates), state


def main(num_steps=200):
  x, y, queries, targets = sample(jax.random.key(0), num_context=1000)
  params = jax.jit(model.init)(jax.random.key(1), x[:, :64], y[:, :64], queries)
  state = optimizer.init(params)
  for step in range(num_steps):
    params, state = train_step(params, state, jax.random.key(100 + step))

  memory = jax.jit(functools.partial(model.apply, method="index"))(params, x, y)  # once
  read = jax.jit(functools.partial(model.apply, method="read"))  # as often as needed
  out = read(params, memory, queries)
  rmse = jnp.sqrt(jnp.mean((out.output.mean - targets) ** 2))
  print(f"RMSE {rmse:.3f}, nodes read: {out.reading.num_read.max()} of 1000")


if __name__ == "__main__":
  main()
