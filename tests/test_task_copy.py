"""The copy task: independence of its batches."""

import numpy as np

from experiments import copy_task
from experiments.common import task as task_lib


def test_batches_of_training_and_evaluation_with_one_seed_are_distinct():
  def task(seed):
    return copy_task.CopyTask(
      copy_task.CopyConfig(batch_size=4, eval_batches=2, seed=seed, eval_seed=3)
    )

  def train_batch(seed, step):
    return task(seed).train_batch(task_lib.batch_rng(seed, step), step)

  batches = [train_batch(3, 0), train_batch(3, 1), train_batch(4, 0)]
  batches += [*task(3).eval_batches()]
  distinct = {np.asarray(batch.targets).tobytes() for batch in batches}
  assert len(distinct) == len(batches) == 5
