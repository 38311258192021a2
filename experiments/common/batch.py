"""Batches of contexts, queries and targets."""

from collections.abc import Iterator
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.errors import ConfigError


@chex.dataclass(frozen=True)
class Batch:
  """B contexts of at most N tokens, with at most M queries each.

  Attributes:
    coords: `[B, N, C]`, the locations of the tokens.
    values: `[B, N, E]`, the features of the tokens.
    mask: `[B, N]` bool, True at valid tokens.
    query_coords: `[B, M, C]`, the locations of the queries.
    targets: `[B, M]` int32 labels, or `[B, M, E]` float32 values.
    query_mask: `[B, M]` bool, True at valid queries.
    ceiling: `[B, M]`, the log-likelihood of the targets under the best prediction
      that the context allows; None if the distribution of the data is unknown.
  """

  coords: jax.Array
  values: jax.Array
  mask: jax.Array
  query_coords: jax.Array
  targets: jax.Array
  query_mask: jax.Array
  ceiling: jax.Array | None = None

  def cleaned(self) -> "Batch":
    """Sets padded queries and targets to zero.

    A padded entry may contain any value, also NaN. Masks in a loss do not keep such
    a value out of the gradient, because 0 * NaN is NaN. Padded tokens need no such
    care: the model sets them to zero.

    Returns:
      The batch, with `query_coords` and `targets` zero where `query_mask` is False.
    """
    return dataclasses.replace(
      self,
      query_coords=_zero_where_false(self.query_mask, self.query_coords),
      targets=_zero_where_false(self.query_mask, self.targets),
    )


def _zero_where_false(mask: jax.Array, x: jax.Array) -> jax.Array:
  """Zeroes `[B, K, ...]` where a mask `[B, K]` is False."""
  mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
  return jnp.where(mask, x, 0)


def check_batch_size(batch_size: int, num_examples: int, examples: str) -> None:
  """Checks that a batch of distinct training examples can be drawn.

  Args:
    batch_size: B.
    num_examples: the number of training examples.
    examples: the plural noun for the examples in the message, as "images".

  Raises:
    ConfigError: if B is larger than the number of examples.
  """
  if batch_size > num_examples:
    raise ConfigError(
      f"batch_size must be at most the {num_examples:,} {examples} to train on, got"
      f" {batch_size:,}"
    )


def batch_indices(
  num_examples: int, batch_size: int, max_batches: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Splits examples into batches of equal size.

  Args:
    num_examples: the number of examples.
    batch_size: B.
    max_batches: the maximum number of batches; 0: all examples are used.

  Yields:
    The indices of the examples in a batch, `[B]`, and True at each index that was
    not used before, `[B]` bool. The last batch is filled up with the first examples.

  >>> [(index.tolist(), new.tolist()) for index, new in batch_indices(3, 2)]
  [([0, 1], [True, True]), ([2, 0], [True, False])]
  """
  for start in range(0, num_examples, batch_size)[: max_batches or None]:
    index = np.arange(start, start + batch_size)
    yield index % num_examples, index < num_examples
