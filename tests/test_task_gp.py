"""GP regression: training data and the ceiling of the evaluation."""

import numpy as np

from experiments import gp_regression
from experiments.common import evaluate
from experiments.common import task as task_lib
from tests import untrained


def test_train_batch_does_not_depend_on_the_kernel_of_the_evaluation():
  rbf, matern = (
    gp_regression.GPTask(gp_regression.GPConfig(batch_size=2, kernel=kernel))
    for kernel in ("rbf", "matern52")
  )
  for step in (0, 7):
    rng = task_lib.batch_rng(0, step)
    np.testing.assert_array_equal(
      rbf.train_batch(rng, step).targets, matern.train_batch(rng, step).targets
    )


def test_evaluate_ceiling_is_above_an_untrained_model():
  config = gp_regression.GPConfig(
    num_layers=0, batch_size=2, eval_batches=1, kernel="matern52"
  )
  task = gp_regression.GPTask(config)
  result = evaluate.evaluate(task, untrained.params(task))
  assert result["ceiling_log_likelihood"] > result["log_likelihood"]
  assert result["num_examples"] == 2
  assert task.largest_read / task.max_context == 7 / 46
