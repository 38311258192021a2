"""Sequences of the copy task: their form and their distribution."""

import jax
import numpy as np
import pytest

from experiments.data import copy


@pytest.mark.parametrize("length", [4, 6, 64])
def test_sample_targets_are_the_reversed_symbols_and_the_end(length):
  batch = copy.sample(jax.random.key(0), 5, length)
  half = length // 2
  symbols = np.asarray(batch.values.argmax(-1))
  assert batch.values.shape == (5, half, 12) and batch.targets.shape == (5, half)
  assert np.all(symbols[:, 0] == copy.START)
  assert np.all(np.asarray(batch.targets)[:, -1] == copy.END)
  np.testing.assert_array_equal(batch.targets[:, :-1], symbols[:, :0:-1])
  np.testing.assert_array_equal(batch.coords[0, :, 0], np.arange(half))
  np.testing.assert_array_equal(batch.query_coords[0, :, 0], half + np.arange(half))
  assert np.all(batch.mask) and np.all(batch.query_mask)


def test_sample_mixed_lengths_show_the_middle_of_the_sequence():
  """One length per batch is log-uniform; the targets are the symbols shown."""
  draw = jax.jit(lambda rng: copy.sample(rng, 2, 128, mixed_lengths=True))
  lengths = []
  for i in range(300):
    batch = jax.device_get(draw(jax.random.key(i)))
    n = batch.mask[0].sum()
    assert np.all(batch.mask == (np.arange(64) >= 64 - n))
    assert np.all(batch.query_mask == (np.arange(64) < n))
    shown = batch.values[batch.mask].argmax(-1).reshape(2, n)
    expected = np.where(shown == copy.START, copy.END, shown)[:, ::-1]
    np.testing.assert_array_equal(batch.targets[:, :n], expected)
    lengths.append(n)
  assert 8 <= min(lengths) < 10 and 60 < max(lengths) <= 64
  share = np.log(np.array(lengths) / 8) / np.log(64 / 8)
  assert abs(share.mean() - 0.5) < 0.1
  full = copy.sample(jax.random.key(0), 2, 128)
  short = copy.sample(jax.random.key(0), 2, 128, mixed_lengths=True)
  np.testing.assert_array_equal(full.values, short.values)
  assert copy.sample(jax.random.key(0), 2, 4, mixed_lengths=True).mask.all()


def test_sample_symbols_are_uniform():
  targets = np.asarray(copy.sample(jax.random.key(0), 1000, 64).targets)[:, :-1]
  counts = np.bincount(targets.ravel(), minlength=12)
  assert not counts[:2].any()
  expected = targets.size / 10
  assert np.all(np.abs(counts[2:] - expected) < 5 * np.sqrt(expected))
