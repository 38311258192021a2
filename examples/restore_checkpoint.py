"""Restore a checkpoint of the repository and complete a digit it was not trained on.

Run it in a clone, with `python -m examples.restore_checkpoint`.
"""

import jax
import numpy as np

from experiments import image_completion
from experiments.common import evaluate
from experiments.common import workdir

WORKDIR = "checkpoints/image_tca"
NUM_PIXELS = 60


def shade(image):
  """Returns an image in [0, 1] as lines of text."""
  symbols = np.array(list(" .:-=+*#%@"))
  return ["".join(row) for row in symbols[np.int32(image.clip(0, 0.99) * 10)]]


def main():
  config = workdir.load(image_completion.ImageConfig, WORKDIR)
  task = image_completion.ImageTask(config)
  params = evaluate.restore(task, WORKDIR).params

  # One held-out digit: coordinates in [-1, 1], values in [-0.5, 0.5].
  image = task.test_images[0, ..., 0] / 255
  grid = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, 28)], indexing="ij"), axis=-1)
  grid = grid.reshape(1, -1, 2).astype(np.float32)
  known = np.random.default_rng(0).permutation(28 * 28)[:NUM_PIXELS]
  values = image.reshape(1, -1, 1)[:, known].astype(np.float32) - 0.5

  memory = task.index(params, grid[:, known], values)  # once
  prediction = task.read(params, memory, grid)  # all pixels of the image
  mean, num_read = jax.device_get(
    (prediction.output.mean + 0.5, prediction.reading.num_read)
  )

  print(f"{NUM_PIXELS} pixels given, at most {num_read.max()} nodes read per pixel")
  print("left: the pixels given; middle: predicted; right: the truth")
  context = np.zeros(28 * 28)
  context[known] = image.reshape(-1)[known]
  panels = [shade(x.reshape(28, 28)) for x in (context, mean, image)]
  for row in zip(*panels, strict=True):
    print(" | ".join(row))


if __name__ == "__main__":
  main()
