"""The copy task's sequences: their form, distribution and determinism."""

import chex
import jax
import numpy as np
import pytest

from experiments import copy_task
from experiments.common.config import ConfigError
from experiments.data import copy


@pytest.mark.parametrize("length", [4, 6, 64])
def test_targets_are_the_symbols_reversed_and_an_end(length):
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


def test_mixed_lengths_show_the_middle_of_the_sequence():
  """One log-uniform length a batch; what is asked for is what is shown."""
  draw = jax.jit(lambda key: copy.sample(key, 2, 128, mixed_lengths=True))
  lengths = []
  for i in range(300):
    batch = jax.tree.map(np.asarray, draw(jax.random.key(i)))
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


def test_lengths_are_mixed_in_the_first_steps_alone():
  config = copy_task.CopyConfig(batch_size=2, eval_batches=3, mixed_length_steps=3)
  task = copy_task.CopyTask(config)
  assert all(batch.mask.all() for batch in task.eval_batches())
  assert not all(task.train_batch(step).mask.all() for step in range(3))
  assert all(task.train_batch(step).mask.all() for step in range(3, 9))


def test_symbols_are_uniform():
  targets = np.asarray(copy.sample(jax.random.key(0), 1000, 64).targets)[:, :-1]
  counts = np.bincount(targets.ravel(), minlength=12)
  assert not counts[:2].any()
  expected = targets.size / 10
  assert np.all(np.abs(counts[2:] - expected) < 5 * np.sqrt(expected))


def test_batches_are_a_function_of_seed_and_step():
  def task(**kwargs):
    return copy_task.CopyTask(
      copy_task.CopyConfig(batch_size=4, eval_batches=2, **kwargs)
    )

  a, b = task(seed=3), task(seed=3)
  chex.assert_trees_all_equal(a.train_batch(7), b.train_batch(7))
  drawn = [a.train_batch(0), a.train_batch(1), task(seed=4).train_batch(0)]
  drawn += [*task(seed=3, eval_seed=3).eval_batches()]
  seen = {np.asarray(batch.targets).tobytes() for batch in drawn}
  assert len(seen) == len(drawn), "streams share a batch"


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(sequence_length=7), "must be even, got 7"),
    (dict(sequence_length=2), "sequence_length must be at least 4, got 2"),
    (dict(eval_batches=0), "eval_batches must be at least 1"),
    (dict(tree_order="random_projection"), r"tree_order must be one of .*'given'"),
  ],
)
def test_bad_options_are_named(change, message):
  with pytest.raises(ConfigError, match=message):
    copy_task.CopyConfig(**change)
