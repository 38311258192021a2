"""The copy task's sequences (Sec. 4.1): symbols to be told back in reverse."""

import jax
import jax.numpy as jnp

from experiments.common.task import Batch

START, END, NUM_SYMBOLS = 0, 1, 10
NUM_CLASSES = 2 + NUM_SYMBOLS
MIN_TOKENS = 8  # of a context, where lengths are mixed


def sample(
  rng: jax.Array, batch_size: int, sequence_length: int, mixed_lengths: bool = False
) -> Batch:
  """Draws sequences of length T: a context of T/2 tokens and T/2 queries.

  The context is the start symbol and T/2 - 1 uniform symbols, one-hot, at the
  positions 0 ... T/2 - 1. The targets at the positions T/2 ... T - 1 are those
  symbols in reverse, and the end symbol.

  Args:
    rng: consumed.
    batch_size: B.
    sequence_length: T, even, at least 4.
    mixed_lengths: whether a batch shows the middle of its sequences alone: the last n
      tokens and the first n queries, n drawn log-uniformly between 8 and T/2. What a
      short one teaches, which position mirrors which, holds for the whole.

  Returns:
    A `Batch` with N = M = T/2, C = 1 and E = 12.

  >>> batch = sample(jax.random.key(0), 1, 8)
  >>> jnp.argmax(batch.values[0], -1).tolist(), batch.targets[0].tolist()
  ([0, 11, 2, 4], [4, 2, 11, 1])
  """
  half = sequence_length // 2
  length_rng = jax.random.fold_in(rng, 1)
  symbols = jax.random.randint(rng, (batch_size, half - 1), 2, NUM_CLASSES)
  context = jnp.pad(symbols, ((0, 0), (1, 0)), constant_values=START)
  targets = jnp.pad(symbols[:, ::-1], ((0, 0), (0, 1)), constant_values=END)
  positions = jnp.arange(sequence_length, dtype=jnp.float32)
  positions = jnp.broadcast_to(positions[:, None], (batch_size, sequence_length, 1))
  shown = jnp.float32(half)
  if mixed_lengths:
    shown *= min(MIN_TOKENS / half, 1) ** jax.random.uniform(length_rng)
  valid = jnp.broadcast_to(jnp.arange(half) < shown, (batch_size, half))
  return Batch(
    coords=positions[:, :half],
    values=jax.nn.one_hot(context, NUM_CLASSES),
    mask=valid[:, ::-1],
    query_coords=positions[:, half:],
    targets=targets,
    query_mask=valid,
  )
