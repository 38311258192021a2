"""Flax Linen modules: the learned parts, and `ReTreever`, which composes them.

Modules take batches, `[B, ...]`. The read-outs `TreeCrossAttention`, `CrossAttention`
and `PerceiverIO` have one interface, `ReadOut`:

  index(tokens, coords, mask) -> memory      once per context
  read(memory, queries) -> Reading           for every batch of queries
  (queries, tokens, coords, mask) -> output  both, as a drop-in layer

`RelativeTreeCrossAttention` and `RelativeCrossAttention` have it too. They also need
the observed `values` and the `query_coords`, by name.

Random streams: "policy" samples the walks if `train` is True. "dropout" is needed if
`train` is True and a dropout rate is above 0.

Parameters are float32. `dtype` is the data type of activations. Softmax and the
statistics of layer norm stay float32.
"""

from tca_jax.memory import FlatMemory
from tca_jax.memory import TreeMemory
from tca_jax.modules.embedders import fourier_features
from tca_jax.modules.embedders import PlacelessEmbedder
from tca_jax.modules.embedders import PointEmbedder
from tca_jax.modules.embedders import SequenceEmbedder
from tca_jax.modules.embedders import sinusoids
from tca_jax.modules.growing import GrowingReadOut
from tca_jax.modules.heads import Categorical
from tca_jax.modules.heads import ClassificationHead
from tca_jax.modules.heads import Gaussian
from tca_jax.modules.heads import GaussianHead
from tca_jax.modules.heads import GaussianMixture
from tca_jax.modules.heads import MixtureHead
from tca_jax.modules.heads import Regression
from tca_jax.modules.interface import Reading
from tca_jax.modules.interface import ReadOut
from tca_jax.modules.interface import TrainingReading
from tca_jax.modules.interface import Units
from tca_jax.modules.layers import Aggregator
from tca_jax.modules.layers import Encoder
from tca_jax.modules.layers import FeedForward
from tca_jax.modules.layers import MLP
from tca_jax.modules.layers import SelfAttention
from tca_jax.modules.layers import TransformerLayer
from tca_jax.modules.read_outs import CrossAttention
from tca_jax.modules.read_outs import PerceiverIO
from tca_jax.modules.read_outs import TreeCrossAttention
from tca_jax.modules.relative import RelativeCrossAttention
from tca_jax.modules.relative import RelativeTreeCrossAttention
from tca_jax.modules.retreever import Prediction
from tca_jax.modules.retreever import ReTreever
from tca_jax.modules.retreever import TrainingPrediction

__all__ = [
  "MLP",
  "Aggregator",
  "Categorical",
  "ClassificationHead",
  "CrossAttention",
  "Encoder",
  "FeedForward",
  "FlatMemory",
  "Gaussian",
  "GaussianHead",
  "GaussianMixture",
  "GrowingReadOut",
  "MixtureHead",
  "PerceiverIO",
  "PlacelessEmbedder",
  "PointEmbedder",
  "Prediction",
  "ReTreever",
  "ReadOut",
  "Reading",
  "Regression",
  "RelativeCrossAttention",
  "RelativeTreeCrossAttention",
  "SelfAttention",
  "SequenceEmbedder",
  "TrainingPrediction",
  "TrainingReading",
  "TransformerLayer",
  "TreeCrossAttention",
  "TreeMemory",
  "Units",
  "fourier_features",
  "sinusoids",
]
