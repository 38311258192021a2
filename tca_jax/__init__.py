"""Tree Cross Attention and ReTreever in JAX and Flax (Feng et al., ICLR 2024)."""

from tca_jax import attention
from tca_jax import bucketing
from tca_jax import checkpoint
from tca_jax import checks
from tca_jax import covariance
from tca_jax import covariance_fit
from tca_jax import growth
from tca_jax import masking
from tca_jax import memory
from tca_jax import modules
from tca_jax import node_kriging
from tca_jax import node_memory
from tca_jax import objectives
from tca_jax import relative
from tca_jax import retrieval
from tca_jax import serving
from tca_jax import sharding
from tca_jax import statistics
from tca_jax import tree
from tca_jax.attention import cross_attention
from tca_jax.attention import CrossAttentionOutput
from tca_jax.checkpoint import load
from tca_jax.checkpoint import save
from tca_jax.checkpoint import warn_outside_range
from tca_jax.checks import check_context
from tca_jax.growth import GrowingMemory
from tca_jax.memory import FlatMemory
from tca_jax.memory import TreeMemory
from tca_jax.modules import Aggregator
from tca_jax.modules import Categorical
from tca_jax.modules import ClassificationHead
from tca_jax.modules import CrossAttention
from tca_jax.modules import Encoder
from tca_jax.modules import Gaussian
from tca_jax.modules import GaussianHead
from tca_jax.modules import GaussianMixture
from tca_jax.modules import MixtureHead
from tca_jax.modules import PerceiverIO
from tca_jax.modules import PlacelessEmbedder
from tca_jax.modules import PointEmbedder
from tca_jax.modules import Prediction
from tca_jax.modules import Reading
from tca_jax.modules import ReadOut
from tca_jax.modules import Regression
from tca_jax.modules import RelativeCrossAttention
from tca_jax.modules import RelativeTreeCrossAttention
from tca_jax.modules import ReTreever
from tca_jax.modules import SequenceEmbedder
from tca_jax.modules import TrainingPrediction
from tca_jax.modules import TrainingReading
from tca_jax.modules import TreeCrossAttention
from tca_jax.node_memory import NodeMemory
from tca_jax.node_memory import PointMemory
from tca_jax.retrieval import tree_attention
from tca_jax.retrieval import TreeAttentionOutput
from tca_jax.retrieval import TreeReading
from tca_jax.statistics import node_statistics
from tca_jax.statistics import NodeStatistics
from tca_jax.tree import aggregate
from tca_jax.tree import build_tree
from tca_jax.tree import subtree_mass
from tca_jax.tree import Tree
from tca_jax.tree import tree_depth
from tca_jax.walk import num_read_slots

__version__ = "0.2.0"

__all__ = [
  "Aggregator",
  "Categorical",
  "ClassificationHead",
  "CrossAttention",
  "CrossAttentionOutput",
  "Encoder",
  "FlatMemory",
  "Gaussian",
  "GaussianHead",
  "GaussianMixture",
  "GrowingMemory",
  "MixtureHead",
  "NodeMemory",
  "NodeStatistics",
  "PerceiverIO",
  "PlacelessEmbedder",
  "PointEmbedder",
  "PointMemory",
  "Prediction",
  "ReTreever",
  "ReadOut",
  "Reading",
  "Regression",
  "RelativeCrossAttention",
  "RelativeTreeCrossAttention",
  "SequenceEmbedder",
  "TrainingPrediction",
  "TrainingReading",
  "Tree",
  "TreeAttentionOutput",
  "TreeCrossAttention",
  "TreeMemory",
  "TreeReading",
  "aggregate",
  "attention",
  "bucketing",
  "build_tree",
  "check_context",
  "checkpoint",
  "checks",
  "covariance",
  "covariance_fit",
  "cross_attention",
  "growth",
  "load",
  "masking",
  "memory",
  "modules",
  "node_kriging",
  "node_memory",
  "node_statistics",
  "num_read_slots",
  "objectives",
  "relative",
  "retrieval",
  "save",
  "serving",
  "sharding",
  "statistics",
  "subtree_mass",
  "tree",
  "tree_attention",
  "tree_depth",
  "warn_outside_range",
]
