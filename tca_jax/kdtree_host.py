"""The partition of a k-d tree in NumPy, for `build_tree` outside transformations."""

import numpy as np

__all__ = ["kd_permutation"]


def kd_permutation(
  coords: np.ndarray, tokens: np.ndarray, branch_factor: int
) -> np.ndarray:
  """Sorts tokens into the leaf order of a k-d tree.

  One level of the tree is one table with a row of tokens per node. Rows differ in
  length by at most one, so at most the last entry of a row is missing. A row is
  partitioned by 64-bit keys: the coordinate in the upper 32 bits, the token's index
  in the lower 32 bits.

  Args:
    coords: `[N, C]` float32.
    tokens: `[n]`, the indices of the valid tokens.
    branch_factor: b, the number of parts into which each node is split.

  Returns:
    `[n]`, the tokens in leaf order.

  >>> kd_permutation(np.float32([[3], [1], [2]]), np.arange(3), 2).tolist()
  [1, 2, 0]
  """
  b = branch_factor
  missing = np.uint64(2**64 - 1)
  axes = [_sortable(x) for x in coords.T]
  rows = tokens.astype(np.uint32)[None]
  count = np.array([len(tokens)])
  while (width := rows.shape[1]) > 1:
    short = np.flatnonzero(count < width)
    best, widest = np.zeros_like(rows), np.full(len(rows), -np.inf, np.float32)
    for axis in axes:
      x = axis.take(rows, mode="clip")
      x[short, -1] = x[short, 0]
      # NumPy reduces the leading axis of a contiguous array faster.
      columns = np.ascontiguousarray(x.T) if width < 32 else x.T
      with np.errstate(over="ignore"):
        spread = _unsortable(columns.max(axis=0)) - _unsortable(columns.min(axis=0))
      wider = spread > widest
      best = np.where(wider[:, None], x, best)
      widest = np.where(wider, spread, widest)
    keys = best.astype(np.uint64) << np.uint64(32) | rows
    child_width = -(-width // b)
    children = np.full((len(rows), b, child_width), missing)
    child_count = np.empty((len(rows), b), np.int64)
    for size in (width, width - 1):
      chosen = slice(None) if np.all(count == size) else count == size
      sizes = [-(-(size - part) // b) for part in range(b)]
      starts = np.cumsum([0, *sizes])
      part_keys = keys[chosen, :size]
      end = size
      # From the right; each partition leaves the next one a shorter row.
      for start in starts[-2:0:-1]:
        if start < end:
          part_keys[:, :end].partition(start, axis=1)
          end = start
      for part, (start, n) in enumerate(zip(starts, sizes, strict=False)):
        children[chosen, part, :n] = part_keys[:, start : start + n]
      child_count[chosen] = sizes
    rows = children.reshape(-1, child_width).astype(np.uint32)
    count = child_count.ravel()
  return rows[count > 0, 0]


def _sortable(x: np.ndarray) -> np.ndarray:
  """Maps float32 to uint32 with the same order; -0.0 is mapped as 0.0."""
  bits = (x + np.float32(0)).view(np.uint32)
  return np.where(bits >> 31, ~bits, bits | np.uint32(2**31))


def _unsortable(bits: np.ndarray) -> np.ndarray:
  """Inverts `_sortable`."""
  return np.where(bits >> 31, bits & np.uint32(2**31 - 1), ~bits).view(np.float32)
