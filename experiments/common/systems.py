"""Registry of the models that the experiments compare (Sec. 4 of the paper).

All models have the same embedder, encoder and head. They differ in the read-out: how a
query reads the context. Code that depends on the model asks its entry in `SYSTEMS`.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import typing

from flax import linen as nn
import jax
import jax.numpy as jnp

from experiments.common import config as config_lib
from experiments.common.config import Config
from experiments.common.config import Model
from experiments.common.errors import ConfigError
import tca_jax

_MOST_QUERIES = 4096  # that are read together


@dataclasses.dataclass(frozen=True)
class Reader:
  """One way to read a trained model.

  Attributes:
    title: name in tables and figures.
    method: method of the model that predicts from a memory.
    reads_all: whether a query reads every token of the context.
    most_on_cpu: largest number of queries that are best read together on a CPU, whose
      cache then holds what is computed for each node read.
    options: keyword arguments of the method.
  """

  title: str
  method: typing.Literal["read", "read_leaves"] = "read"
  reads_all: bool = False
  most_on_cpu: int = _MOST_QUERIES
  options: Mapping[str, typing.Any] = dataclasses.field(default_factory=dict)

  @property
  def most_queries(self) -> int:
    """The largest number of queries that are best read together on this device."""
    return self.most_on_cpu if jax.default_backend() == "cpu" else _MOST_QUERIES

  def along(self, num_paths: int) -> "Reader":
    """The reader that follows another number of paths, of a tree."""
    paths = "1 path" if num_paths == 1 else f"{num_paths} paths"
    options = {**self.options, "num_paths": num_paths}
    return dataclasses.replace(self, title=f"{self.title}, {paths}", options=options)

  def __call__(
    self,
    model: nn.Module,
    params: typing.Any,
    memory: typing.Any,
    query_coords: typing.Any,
  ) -> tca_jax.Prediction:
    """Predicts at query coordinates `[B, M, C]` from B memories."""
    prediction: typing.Any = model.apply(
      params, memory, query_coords, method=self.method, **self.options
    )
    return prediction


@dataclasses.dataclass(frozen=True)
class System:
  """A model of the comparison.

  Attributes:
    title: name in tables and figures.
    build: makes the read-out from a config and the largest number of context tokens.
    largest_read: from the same arguments, the largest number of tokens, latents or
      nodes that one query reads.
    readers: ways to read the trained model, by the name that result files use. The
      first is the one that the model was trained for.
    has_tree: whether the read-out is a tree, so that beam widths and reading all
      leaves make sense.
    is_relative: whether the read-out sees locations relative to the query.
  """

  title: str
  build: Callable[[Config, int], tca_jax.ReadOut]
  largest_read: Callable[[Config, int], int]
  readers: Mapping[str, Reader]
  has_tree: bool = False
  is_relative: bool = False

  def evaluation_reader(self, config: Config) -> Reader:
    """The reader that evaluation uses: with a tree, of the beam width of the config."""
    reader = next(iter(self.readers.values()))
    if self.has_tree and config.num_paths:
      return reader.along(config.num_paths)
    return reader


def _shared(config: Config) -> dict[str, typing.Any]:
  return dict(dropout=config.dropout, dtype=jnp.dtype(config.dtype))


def _build_tree_read_out(config: Config, max_context: int) -> tca_jax.ReadOut:
  del max_context
  return tca_jax.TreeCrossAttention(
    branch_factor=config.branch_factor,
    order=config.order,
    share_policy=config.share_policy,
    tree_gradient=config.tree_gradient,
    sees_distance=config.sees_distance,
    **_shared(config),
  )


def _largest_tree_read(config: Config, max_context: int) -> int:
  return tca_jax.num_read_slots(
    max_context, config.branch_factor, config.num_paths or 1
  )


def _relative(config: Config) -> dict[str, typing.Any]:
  return dict(
    num_layers=config.read_layers,
    num_self_layers=config.self_layers,
    summary_width=config.summary_width,
    local_units=config.local_units,
    sees_scale=config.sees_scale,
    values_in_tokens=config.values_in_tokens,
    geometry_in_tokens=config.geometry_in_tokens,
    geometry_in_logits=config.geometry_in_logits,
    num_kriged=config.kriged_nodes,
    fits_covariance=config.fits_covariance
    and config_lib.unused_because(config, "fits_covariance", "train") is None,
    **_shared(config),
  )


def _build_relative_tree_read_out(config: Config, max_context: int) -> tca_jax.ReadOut:
  del max_context
  return tca_jax.RelativeTreeCrossAttention(
    branch_factor=config.branch_factor,
    order=config.order,
    num_paths=config.beam_width,
    upper_paths=config.upper_paths or None,
    border_tokens=config.border_tokens,
    **_relative(config),
  )


def _largest_relative_read(config: Config, max_context: int) -> int:
  return tca_jax.num_read_slots(
    max_context,
    config.branch_factor,
    config.num_paths or config.beam_width,
    config.upper_paths or None,
  )


def _num_latents(config: Config, max_context: int) -> int:
  return config.num_latents or tca_jax.num_read_slots(max_context, config.branch_factor)


_ONE_PATH = Reader("TCA")
FULL = Reader("ReTreever-Full", method="read_leaves", reads_all=True)

SYSTEMS: dict[Model, System] = {
  "tca": System(
    title="TCA",
    build=_build_tree_read_out,
    largest_read=_largest_tree_read,
    readers={
      "tca": _ONE_PATH,
      "tca_2": _ONE_PATH.along(2),
      "tca_4": _ONE_PATH.along(4),
      "tca_full": FULL,
    },
    has_tree=True,
  ),
  "ca": System(
    title="Cross Attention",
    build=lambda config, _: tca_jax.CrossAttention(
      sees_distance=config.sees_distance, **_shared(config)
    ),
    largest_read=lambda _, max_context: max_context,
    readers={"ca": Reader("Cross Attention", reads_all=True)},
  ),
  "perceiver": System(
    title="Perceiver IO",
    build=lambda config, max_context: tca_jax.PerceiverIO(
      num_latents=_num_latents(config, max_context), **_shared(config)
    ),
    largest_read=_num_latents,
    readers={"perceiver": Reader("Perceiver IO")},
  ),
  "relative_tca": System(
    title="Relative TCA",
    build=_build_relative_tree_read_out,
    largest_read=_largest_relative_read,
    readers={
      "relative_tca": Reader("Relative TCA", most_on_cpu=256),
    },
    has_tree=True,
    is_relative=True,
  ),
  "relative_ca": System(
    title="Relative Cross Attention",
    build=lambda config, _: tca_jax.RelativeCrossAttention(**_relative(config)),
    largest_read=lambda _, max_context: max_context,
    readers={"relative_ca": Reader("Relative Cross Attention", reads_all=True)},
    is_relative=True,
  ),
}

# The models of the paper.
PUBLISHED: dict[Model, System] = {
  name: system for name, system in SYSTEMS.items() if not system.is_relative
}

# The model of experiments.surfaces, in results of other data.
PRETRAINED = "zero_shot"

# Names in tables and figures, by the name that result files use.
TITLES: dict[str, str] = {
  name: reader.title
  for system in SYSTEMS.values()
  for name, reader in system.readers.items()
} | {
  PRETRAINED: "Relative TCA, pretrained",
  "kriging": "Local kriging",
  "vecchia": "Gaussian process (Vecchia)",
  "linear": "Linear interpolation",
}


def unused_options(config: Config, names: Iterable[str], mode: str) -> str:
  """Describes the options among `names` that have no effect; "" if all have one.

  Args:
    config: a config.
    names: names of options.
    mode: what is done with the config: the value of the flag `--mode`.
  """
  unused: dict[str, list[str]] = {}
  for name in names:
    reason = config_lib.unused_because(config, name, mode)
    if name in ("position_skip", "num_frequencies") and _is_placeless(config):
      reason = f"--model={config.model}"
    if name == "branch_factor" and config.model == "perceiver" and config.num_latents:
      reason = f"--num_latents={config.num_latents}"
    if reason:
      unused.setdefault(reason, []).append(f"--{name}")
  return "; ".join(
    f"{', '.join(flags)}: no effect with {reason}" for reason, flags in unused.items()
  )


def _is_placeless(config: Config) -> bool:
  """Whether tokens are embedded without their locations, which the read-out sees."""
  # An encoder needs to know where tokens are.
  sees_location = config.sees_location or config.num_layers > 0
  return SYSTEMS[config.model].is_relative and not sees_location


def build_point_embedder(config: Config, num_frequencies: int) -> nn.Module:
  """Makes the embedder of points that a config asks for."""
  if _is_placeless(config):
    return tca_jax.PlacelessEmbedder(
      sees_values=not config.local_units, dtype=jnp.dtype(config.dtype)
    )
  return tca_jax.PointEmbedder(
    num_frequencies=num_frequencies,
    position_skip=config.position_skip,
    dtype=jnp.dtype(config.dtype),
  )


def trees_for_index(
  model: tca_jax.ReTreever, coords: jax.Array
) -> dict[str, tca_jax.Tree]:
  """Builds the tree of a context ahead of the method `index` of a model.

  On a CPU, a k-d tree is built faster outside a compiled function.

  Args:
    model: a model.
    coords: `[N, C]`, the locations of one context.

  Returns:
    The argument "tree" of `index`, a batch of one tree; empty if `index` builds its own
    tree or none.
  """
  if getattr(model.read_out, "order", None) != "kd":
    return {}
  branch_factor = model.read_out.branch_factor
  tree = tca_jax.build_tree(coords, branch_factor=branch_factor)
  return {"tree": jax.tree.map(lambda x: x[None], tree)}


def build_model(
  config: Config,
  max_context: int,
  embedder: nn.Module,
  head: nn.Module,
  periods: Sequence[float] = (),
) -> tca_jax.ReTreever:
  """Makes the model that a config asks for.

  Args:
    config: config of the experiment.
    max_context: largest number of tokens in a context.
    embedder: module that embeds tokens and queries.
    head: module that predicts from what a query read.
    periods: period of each coordinate axis, 0 for an axis that is not periodic; empty
      if none is. Only a relative model can have periodic axes.

  Raises:
    ConfigError: if a relative model is asked for a classification, or another model
      for periodic axes.
  """
  system = SYSTEMS[config.model]
  if system.is_relative and isinstance(head, tca_jax.ClassificationHead):
    raise ConfigError(
      f"model={config.model} is for regressions; a classification has the models"
      f" {', '.join(PUBLISHED)}"
    )
  if any(periods) and not system.is_relative:
    raise ConfigError(
      f"periodic axes need a relative model, got model={config.model} and the periods"
      f" {tuple(periods)}"
    )
  encoder = None
  if config.num_layers:
    encoder = tca_jax.Encoder(
      config.num_layers, dropout=config.dropout, dtype=jnp.dtype(config.dtype)
    )
  read_out = system.build(config, max_context)
  if any(periods):
    read_out = read_out.clone(periods=tuple(periods))
  return tca_jax.ReTreever(
    embedder=embedder, encoder=encoder, read_out=read_out, head=head
  )
