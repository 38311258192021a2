"""Summarise nodes with your own function: here a mean weighted by a confidence.

Run it with `python examples/custom_aggregator.py`.
"""

import jax
import jax.numpy as jnp

import tca_jax
from tca_jax import memory
from tca_jax import retrieval


def weighted_mean(children, mask):
  """`[..., b, D]` and `[..., b]` to `[..., D]`; the last column is the weight."""
  del mask  # masked children are zeros, so their weight is 0
  weights = children[..., -1:]
  total = jnp.sum(weights, axis=-2)
  mean = jnp.sum(weights * children[..., :-1], axis=-2) / jnp.maximum(total, 1e-6)
  return jnp.concatenate([mean, total], axis=-1)


def main():
  value_rng, coords_rng, weight_rng = jax.random.split(jax.random.key(0), 3)
  coords = jax.random.normal(coords_rng, (1000, 3))
  values = jax.random.normal(value_rng, (1000, 16))
  confidence = jax.random.uniform(weight_rng, (1000, 1), minval=0.1)

  # The tree, and the value of each node: one array per level, from the root down.
  tree = tca_jax.build_tree(coords, branch_factor=4)
  tokens = jnp.concatenate([values, confidence], axis=-1)
  levels = tca_jax.aggregate(weighted_mean, tree, tokens)
  total = jnp.sum(confidence)
  print(f"root: weight {levels[0][0, -1]:.1f}, sum of all weights {total:.1f}")

  # Keys and values of each node, `[b**l, H, Dh]`; then read with one query.
  keys = [level[:, None, :-1] for level in levels]
  packed = memory.pack(tree, keys, keys)
  reading = jax.jit(retrieval.read)(keys[-1][17], packed)
  print(
    f"read {reading.num_read} nodes of {len(coords)} tokens: {reading.output.shape}"
  )

  # The nodes read cover each token once (masked nodes are zeros): the sum is the same.
  covered = sum(
    levels[level][index, -1]
    for level, index in zip(reading.level, reading.index, strict=True)
  )
  print(f"weight of the nodes read: {covered:.1f}")


if __name__ == "__main__":
  main()
