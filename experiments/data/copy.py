"""Sequences of the copy task (Sec. 4.1): symbols to recall in reverse order."""

import jax
import jax.numpy as jnp

from experiments.common.batch import Batch

START, END, NUM_SYMBOLS = 0, 1, 10
NUM_CLASSES = 2 + NUM_SYMBOLS
MIN_TOKENS = 8  # smallest context with mixed lengths


def sample(
  rng: jax.Array, batch_size: int, sequence_length: int, mixed_lengths: bool = False
) -> Batch:
  """Draws sequences of length T, each with T/2 context tokens and T/2 queries.

  The context consists of the start symbol and T/2 - 1 uniform symbols, one-hot, at the
  positions 0 ... T/2 - 1. The targets at the positions T/2 ... T - 1 are these symbols
  in reverse order, followed by the end symbol.

  Args:
    rng: a random key, consumed. The symbols are drawn from this key itself, and the
      length of mixed-length batches from `fold_in(rng, 1)`: do not draw anything else
      from either.
    batch_size: B.
    sequence_length: T, even, at least 4.
    mixed_lengths: whether only the middle of the sequences is valid: the last n context
      tokens and the first n queries. One n per batch is drawn log-uniformly between 8
      and T/2. The rule that a model learns from short sequences, which position mirrors
      which, also applies to the full length.

  Returns:
    A `Batch` with N = M = T/2, C = 1 and E = 12.

  >>> batch = sample(jax.random.key(0), 1, 8)
  >>> jnp.argmax(batch.values[0], -1).tolist(), batch.targets[0].tolist()
  ([0, 11, 2, 4], [4, 2, 11, 1])
  """
  half = sequence_length // 2
  # Folded out before `rng` is used. A split of `rng` would draw other symbols, and
  # published evaluations depend on these.
  length_rng = jax.random.fold_in(rng, 1)
  symbols = jax.random.randint(rng, (batch_size, half - 1), 2, NUM_CLASSES, jnp.int32)
  context = jnp.pad(symbols, ((0, 0), (1, 0)), constant_values=START)
  targets = jnp.pad(symbols[:, ::-1], ((0, 0), (0, 1)), constant_values=END)
  positions = jnp.arange(sequence_length, dtype=jnp.float32)
  positions = jnp.broadcast_to(positions[:, None], (batch_size, sequence_length, 1))
  num_valid = jnp.float32(half)
  if mixed_lengths:
    num_valid *= min(MIN_TOKENS / half, 1) ** jax.random.uniform(
      length_rng, dtype=jnp.float32
    )
  valid = jnp.broadcast_to(jnp.arange(half) < num_valid, (batch_size, half))
  return Batch(
    coords=positions[:, :half],
    values=jax.nn.one_hot(context, NUM_CLASSES, dtype=jnp.float32),
    mask=valid[:, ::-1],
    query_coords=positions[:, half:],
    targets=targets,
    query_mask=valid,
  )
