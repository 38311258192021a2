"""Augmentation: rigid motions of whole examples, and images of parts of two."""

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


def test_join_images_takes_each_pixel_from_one_of_two_images_along_a_line(rng):
  images = rng.integers(1, 255, (64, 8, 6, 3)).astype(np.uint8)
  joined = np.asarray(augmentation.join_images(jax.random.key(0), images, 0.5))
  assert joined.dtype == np.uint8
  own = np.all(joined == images, axis=-1)
  other = np.all(joined == np.roll(images, 1, axis=0), axis=-1)
  assert np.all(own | other)
  taken = ~own
  share = taken.any(axis=(1, 2)).mean()
  assert 0.3 < share < 0.7
  # The parts are on two sides of a line if their convex hulls do not meet: along the
  # direction between their middles, all pixels of one are before those of the other.
  pixels = np.stack(np.mgrid[-1:1:8j, -1:1:6j], axis=-1).reshape(-1, 2)
  for part in taken[taken.any(axis=(1, 2))].reshape(-1, 48):
    angles = np.linspace(0, 2 * np.pi, 720)
    along = pixels @ np.stack([np.sin(angles), np.cos(angles)])
    assert np.any(along[part].min(0) > along[~part].max(0))


@pytest.mark.parametrize("share, equal", [(0.0, True), (0.99, False)])
def test_join_images_share(rng, share, equal):
  images = rng.integers(1, 255, (32, 8, 8, 1)).astype(np.uint8)
  joined = augmentation.join_images(jax.random.key(0), images, share)
  assert np.all(np.any(np.asarray(joined) != images, axis=(1, 2, 3)) != equal)
