"""Parameters of tasks that are not trained."""

from experiments.common import train
from tests import models


def params(task):
  """Parameters as `train.init_params` makes them, without a compilation."""
  return models.draw(lambda _: train.init_params(task))
