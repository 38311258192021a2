"""The copy task's sequences (Sec. 4.1): symbols to be told back in reverse."""

import jax
import jax.numpy as jnp

from experiments.common.task import Batch

START, END, NUM_SYMBOLS = 0, 1, 10
NUM_CLASSES = 2 + NUM_SYMBOLS


def sample(rng: jax.Array, batch_size: int, sequence_length: int) -> Batch:
  """Draws sequences of length T: a context of T/2 tokens and T/2 queries.

  The context is the start symbol and T/2 - 1 uniform symbols, one-hot, at the
  positions 0 ... T/2 - 1. The targets at the positions T/2 ... T - 1 are those
  symbols in reverse, and the end symbol.

  Args:
    rng: consumed.
    batch_size: B.
    sequence_length: T, even, at least 4.

  Returns:
    A `Batch` with N = M = T/2, C = 1 and E = 12.

  >>> batch = sample(jax.random.key(0), 1, 8)
  >>> jnp.argmax(batch.values[0], -1).tolist(), batch.targets[0].tolist()
  ([0, 11, 2, 4], [4, 2, 11, 1])
  """
  half = sequence_length // 2
  symbols = jax.random.randint(rng, (batch_size, half - 1), 2, NUM_CLASSES)
  context = jnp.pad(symbols, ((0, 0), (1, 0)), constant_values=START)
  targets = jnp.pad(symbols[:, ::-1], ((0, 0), (0, 1)), constant_values=END)
  positions = jnp.arange(sequence_length, dtype=jnp.float32)
  positions = jnp.broadcast_to(positions[:, None], (batch_size, sequence_length, 1))
  valid = jnp.ones((batch_size, half), bool)
  return Batch(
    coords=positions[:, :half],
    values=jax.nn.one_hot(context, NUM_CLASSES),
    mask=valid,
    query_coords=positions[:, half:],
    targets=targets,
    query_mask=valid,
  )
