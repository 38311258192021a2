"""Replace the cross-attention layer of a model by Tree Cross Attention.

Run it with `python examples/drop_in_layer.py`.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

import tca_jax


class Decoder(nn.Module):
  """A transformer decoder whose queries attend to a context.

  Attributes:
    attention: `CrossAttention`, or `TreeCrossAttention` in its place. Both have a
      residual connection and a feed-forward block.
  """

  attention: tca_jax.ReadOut

  @nn.compact
  def __call__(self, queries, tokens, coords, train=False):
    queries = nn.Dense(self.attention.width)(queries)
    tokens = nn.Dense(self.attention.width)(tokens)
    attended = self.attention(queries, tokens, coords, train=train)
    return nn.Dense(1)(nn.LayerNorm()(attended))


def main():
  rng = jax.random.key(0)
  tokens = jax.random.normal(rng, (2, 64, 16))  # 2 contexts of 64 tokens
  coords = jnp.arange(64.0)[None, :, None] * jnp.ones((2, 1, 1))  # their positions
  queries = jax.random.normal(rng, (2, 8, 16))
  for layer in (tca_jax.CrossAttention(), tca_jax.TreeCrossAttention()):
    model = Decoder(layer)
    params = jax.jit(model.init)(rng, queries, tokens, coords)
    output = jax.jit(model.apply)(params, queries, tokens, coords)
    print(f"{type(layer).__name__}: output {output.shape}")

  # In training the walks are sampled, which needs the random stream "policy". Gradients
  # reach the tokens read. The policy itself is trained by `tca_jax.objectives`.
  def loss(params):
    out = model.apply(params, queries, tokens, coords, train=True, rngs={"policy": rng})
    return jnp.mean(out**2)

  gradient = jax.jit(jax.grad(loss))(params)
  leaves = jax.tree.leaves(gradient)
  print("gradients finite:", all(bool(jnp.isfinite(x).all()) for x in leaves))


if __name__ == "__main__":
  main()
