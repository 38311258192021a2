"""Inputs that several tests use."""

import numpy as np

BRANCH_FACTORS = (2, 3, 4)
# Sizes 1, 2, 3, b**k and b**k +- 1 for every branch factor b.
SHAPES = tuple(
  (n, b)
  for b, power in zip(BRANCH_FACTORS, (32, 9, 16), strict=True)
  for n in (1, 2, 3, power - 1, power, power + 1)
)
LAYOUTS = ("random", "duplicates", "collinear", "one_point")
MASKS = ("all", "random", "one")


def coords(layout, n, rng, num_axes=2):
  """`[n, num_axes]` float32 points."""
  if layout == "random":
    x = rng.normal(size=(n, num_axes))
  elif layout == "duplicates":
    x = rng.integers(0, 3, size=(n, num_axes))
  elif layout == "collinear":
    x = np.outer(rng.permutation(n), np.arange(1, num_axes + 1))
  elif layout == "one_point":
    x = np.ones((n, num_axes))
  else:
    raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
  return x.astype(np.float32)


def mask(kind, n, rng):
  """`[n]` bool with at least one valid token."""
  valid = np.ones(n, bool)
  if kind == "random":
    valid = rng.random(n) < 0.6
  elif kind == "one":
    valid = np.zeros(n, bool)
  elif kind != "all":
    raise ValueError(f"kind must be one of {MASKS}, got {kind!r}")
  valid[rng.integers(n)] = True
  return valid


def levels(n_by_level, heads, width, rng):
  """Random `[nodes, heads, width]` float32 for each level."""
  return tuple(
    rng.normal(size=(nodes, heads, width)).astype(np.float32) for nodes in n_by_level
  )
