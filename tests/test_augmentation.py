"""Augmentation: rigid motions of whole examples."""

import chex
import jax
import numpy as np
import pytest

from experiments.data import augmentation
from experiments.data import elevation
from experiments.data import windows


@pytest.mark.parametrize("swaps, num_frames", [(True, 8), (False, 4)])
def test_random_rigid_motion_keeps_distances_and_reaches_all_frames(swaps, num_frames):
  points = elevation.load("airports")
  batch = windows.sample(jax.random.key(0), points.train, None, 64, 20)
  moved = augmentation.random_rigid_motion(jax.random.key(1), batch, swaps)
  chex.assert_trees_all_equal(
    moved.replace(coords=batch.coords, query_coords=batch.query_coords), batch
  )
  before, after = (
    np.concatenate([x.coords, x.query_coords], axis=1) for x in (batch, moved)
  )
  # A rigid motion keeps all distances from the first point.
  np.testing.assert_allclose(
    *(np.linalg.norm(x - x[:, :1], axis=-1) for x in (before, after)), atol=1e-5
  )
  frames, shifts = set(), []
  for old, new in zip(before, after, strict=True):
    frame = np.linalg.lstsq(old - old[:1], new - new[:1])[0]
    frames.add(tuple(frame.round().astype(int).ravel().tolist()))
    shifts.append((new - old @ frame)[0])
  assert len(frames) == num_frames
  assert len(np.unique(np.round(shifts, 4), axis=0)) == 64
  assert np.all(np.min(shifts, 0) < -0.8) and np.all(np.max(shifts, 0) > 0.8)
  assert np.abs(shifts).max() < 1.001
