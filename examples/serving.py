"""Answer requests of any size without recompiling, and export the read.

Run it with `python examples/serving.py`.
"""

import functools
import io

import jax
import numpy as np

import tca_jax
from tca_jax import serving


def main():
  model = tca_jax.ReTreever(
    embedder=tca_jax.PointEmbedder(),
    read_out=tca_jax.TreeCrossAttention(),
    head=tca_jax.GaussianHead(num_outputs=1),
  )
  x = jax.random.uniform(jax.random.key(0), (1, 64, 2))
  y = x[..., :1] * x[..., 1:]
  params = jax.jit(model.init)(jax.random.key(1), x, y, x)  # or restore trained ones
  memory = jax.jit(functools.partial(model.apply, method="index"))(params, x, y)

  def predict(memory, queries):
    output = model.apply(params, memory, queries, method="read").output
    return output.mean, output.std

  # Requests are padded to the next size; larger ones are split.
  server = serving.Server(predict, memory, sizes=(1, 16, 64))
  for count in (1, 10, 100):
    mean, std = server(np.random.default_rng(count).random((1, count, 2), np.float32))
    print(f"{count} queries: mean {mean.shape}, std {std.shape}")

  # A program and its arrays, which need JAX and NumPy but not this package.
  program = serving.export_read(predict, memory, x)
  file = io.BytesIO()
  np.savez(file, *jax.tree.leaves(memory))

  file.seek(0)
  arrays = np.load(file)
  loaded = jax.export.deserialize(bytearray(program))
  mean, _ = loaded.call([arrays[name] for name in arrays.files], x[:, :5])
  expected, _ = server(x[:, :5])
  print("exported program agrees:", np.allclose(mean, expected, atol=1e-5))


if __name__ == "__main__":
  main()
