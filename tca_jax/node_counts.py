"""How many valid tokens the nodes of a balanced tree have.

Every node is split into b parts whose numbers of valid tokens differ by at most one, and
larger parts come first. The numbers therefore depend only on that of all valid tokens.
"""

import typing

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
  "digit_reversal",
  "even_counts",
  "leaves_of_tokens",
  "parents_of_several",
  "split_count",
]


def digit_reversal(b: int, level: int) -> np.ndarray:
  """Returns each node's index with its base-b digits reversed, `[b**level]`."""
  reversal = np.zeros(1, np.int32)
  for l in range(level):
    reversal = np.add.outer(reversal, b**l * np.arange(b, dtype=np.int32)).ravel()
  return reversal


def even_counts(count: jax.Array, b: int, level: int) -> jax.Array:
  """Counts the valid tokens under each node of a level of a tree.

  With n valid tokens in the tree, a node of level l whose index has the base-b digit
  reversal r has ceil((n - r) / b**l) of them.

  Args:
    count: `[...]` int32, n.
    b: the branch factor.
    level: l.

  Returns:
    `[..., b**level]` int32.

  >>> even_counts(jnp.int32(5), 2, 2).tolist()
  [2, 1, 1, 1]
  """
  reversal = jnp.asarray(digit_reversal(b, level))
  reversal = jnp.expand_dims(reversal, range(count.ndim))
  return (count[..., None] - reversal + b**level - 1) // b**level


def leaves_of_tokens(num_tokens: int, b: int, depth: int) -> np.ndarray:
  """Tells which leaves can have a valid token, `[b**depth]` bool; N are True.

  Args:
    num_tokens: N, the largest number of valid tokens, at most b**depth.
    b: the branch factor.
    depth: the level of the leaves.

  >>> leaves_of_tokens(5, 2, 3).astype(int).tolist()
  [1, 1, 1, 0, 1, 0, 1, 0]
  """
  return digit_reversal(b, depth) < num_tokens


def parents_of_several(num_tokens: int, b: int, depth: int) -> np.ndarray:
  """Selects the parents of leaves that can have several valid children.

  Args:
    num_tokens: N, the largest number of valid tokens.
    b: the branch factor.
    depth: the level of the leaves, at least 1.

  Returns:
    `[n]` int, indices in the level above the leaves, of length b**(depth - 1).

  >>> parents_of_several(5, 2, 3).tolist()
  [0]
  """
  return np.flatnonzero(leaves_of_tokens(num_tokens, b, depth).reshape(-1, b)[:, 1])


def split_count(count: typing.Any, b: int) -> typing.Any:
  """Splits a count into b parts, larger parts first, `[b]`."""
  return (count + np.arange(b, dtype=np.int32)[::-1]) // b
