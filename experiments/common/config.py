"""Options of an experiment: a frozen dataclass, its recipes and its checks.

An option is declared once, as a field of a config made by `option`. `flags.parse`
makes a command-line flag of each option. A recipe is a mapping from options to values:
`DEFAULTS` is this repository's, `PAPER` is the published one.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import typing

from experiments.common import paths
from experiments.common.errors import ConfigError
from tca_jax import objectives
from tca_jax import tree

Group = typing.Literal["task", "model", "training", "evaluation", "logging", "files"]
GROUPS: tuple[Group, ...] = typing.get_args(Group)
Model = typing.Literal["tca", "ca", "perceiver", "relative_tca", "relative_ca"]
Recipe = typing.Literal["default", "paper"]
Needs = Mapping[str, tuple[typing.Any, ...] | typing.Literal["above 0"]]

_TREES: tuple[Model, ...] = ("tca", "relative_tca")
_RELATIVE: tuple[Model, ...] = ("relative_tca", "relative_ca")
_SEED_LIMIT = 2**32  # JAX ignores the other bits of a seed

# Options that were renamed, by their old name: stored configs and flags may still use it.
RENAMED = {"tree_order": "order"}

# A workdir has one value of each option in these groups; the others may change between
# runs, because they do not change the trained parameters.
_TRAINED: tuple[Group, ...] = ("task", "model", "training")


def option(
  group: Group,
  default: typing.Any,
  text: str,
  choices: tuple[str, ...] | None = None,
  at_least: float | None = None,
  below: float = math.inf,
  models: tuple[Model, ...] = (),
  needs: Needs | None = None,
) -> typing.Any:
  """Declares an option, as a field of a config.

  Args:
    group: the section of `--help` that lists the option.
    default: default value; its type is the option's type.
    text: help text, a noun phrase.
    choices: allowed strings. None: those of the field's type if that is a
      `typing.Literal`, else any.
    at_least: smallest allowed number.
    below: exclusive upper limit of a number.
    models: the models on which the option has an effect; empty: all.
    needs: for other options, and for the flag "mode", the values with which this option
      has an effect: a tuple, or "above 0" for any positive number.
  """
  metadata = dict(
    group=group,
    text=text,
    choices=choices,
    at_least=at_least,
    below=below,
    needs=({"model": models} if models else {}) | dict(needs or {}),
  )
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Options that all experiments share.

  Raises:
    ConfigError: if a value is not allowed; the message names what is.
  """

  # Recipes. A subclass states the defaults that differ from its base class, and the
  # published values (Sec. 3.2 and the hyper-parameters of the appendix).
  DEFAULTS: typing.ClassVar[Mapping[str, typing.Any]] = {}
  PAPER: typing.ClassVar[Mapping[str, typing.Any]] = dict(
    num_steps=100_000,
    num_layers=6,
    share_policy=True,
    tree_gradient=False,
    position_skip=False,
    learning_rate=5e-4,
    warmup_steps=0,
    routing_weight=0.0,
    baseline="constant",
  )
  # Options without any effect in an experiment, with the reason.
  UNUSED: typing.ClassVar[Mapping[str, str]] = {}

  model: Model = option(
    "model",
    "tca",
    "Model to train: Tree Cross Attention (tca), full Cross Attention (ca) or"
    " Perceiver IO (perceiver), as in the paper; or, for a regression, Tree Cross"
    " Attention or full Cross Attention to nodes as they are seen from the query"
    " (relative_tca, relative_ca).",
  )
  num_layers: int = option(
    "model", 0, "Number of transformer layers in the encoder; 0: none.", at_least=0
  )
  position_skip: bool = option(
    "model",
    False,
    "Skip connection for positional features around the embedder's MLP; the paper has"
    " none.",
  )
  dropout: float = option("model", 0.0, "Dropout rate.", at_least=0, below=1)
  dtype: typing.Literal["float32", "bfloat16"] = option(
    "model", "float32", "Data type of activations; parameters stay float32."
  )
  branch_factor: int = option(
    "model",
    2,
    "Number of children of an inner node of the tree.",
    at_least=2,
    models=(*_TREES, "perceiver"),
  )
  order: tree.Order = option(
    "model",
    "kd",
    "Order of the tokens in the tree's leaves: a k-d tree (kd), the order of the data"
    " (given), sorted by the first coordinate (axis), sorted by a random projection"
    " (random_projection), or random.",
    models=_TREES,
  )
  share_policy: bool = option(
    "model",
    False,
    "Shared query and key projections for policy and attention, as in the paper.",
    models=("tca",),
  )
  sees_distance: bool = option(
    "model",
    False,
    "In tca and ca, a bias of the logits by the distance from the query to the node; in"
    " tca also for the policy.",
    models=("tca", "ca"),
  )
  tree_gradient: bool = option(
    "model",
    True,
    "Gradient flow through the inner nodes of the tree.",
    models=("tca",),
  )
  beam_width: int = option(
    "model",
    8,
    "Number of paths that a query of relative_tca follows, in training and, without"
    " --num_paths, in evaluation.",
    at_least=1,
    models=("relative_tca",),
  )
  border_tokens: int = option(
    "model",
    0,
    "Largest number of tokens that relative_tca reads together with a node: those on the"
    " node's border that are nearest to the query.",
    at_least=0,
    models=("relative_tca",),
  )
  read_layers: int = option(
    "model",
    3,
    "Number of cross-attention layers of a relative model, from a query to the nodes"
    " that it reads.",
    at_least=1,
    models=_RELATIVE,
  )
  self_layers: int = option(
    "model",
    0,
    "Number of transformer layers of a relative model among the nodes that a query"
    " reads; they come first.",
    at_least=0,
    models=_RELATIVE,
  )
  summary_width: int = option(
    "model",
    16,
    "Width of the learned summary of a node in a relative model; 0: only the node's"
    " statistics are read.",
    at_least=0,
    models=_RELATIVE,
  )
  local_units: bool = option(
    "model",
    False,
    "Values of a relative model in units of the spread of the nodes near the query.",
    models=_RELATIVE,
  )
  sees_scale: bool = option(
    "model",
    True,
    "Knowledge of the absolute distance to the nearest nodes, and of their values and"
    " spread, in a relative model.",
    models=_RELATIVE,
  )
  sees_location: bool = option(
    "model",
    False,
    "Absolute locations in the queries and tokens of a relative model, for contexts that"
    " share a frame, such as centred digits. With an encoder they are always there.",
    models=_RELATIVE,
    needs={"num_layers": (0,)},
  )
  values_in_tokens: bool = option(
    "model",
    True,
    "Mean and spread of a node's values as a part of the node's token, in a relative"
    " model.",
    models=_RELATIVE,
  )
  geometry_in_tokens: bool = option(
    "model",
    True,
    "Location of a node relative to the query as a part of the node's token, in a"
    " relative model.",
    models=_RELATIVE,
  )
  geometry_in_logits: bool = option(
    "model",
    True,
    "Location of a node relative to the query as a bias of the attention logits, in a"
    " relative model.",
    models=_RELATIVE,
  )
  kriged_nodes: int = option(
    "model",
    32,
    "Largest number of nodes whose values a relative model interpolates by kriging; 0:"
    " no kriging.",
    at_least=0,
    models=_RELATIVE,
  )
  fits_covariance: bool = option(
    "model",
    False,
    "Kriging by the covariance function that fits the values of the whole context, for"
    " functions that vary alike everywhere; otherwise each query chooses one.",
    models=_RELATIVE,
    needs={"kriged_nodes": "above 0", "local_units": (False,)},
  )
  num_latents: int = option(
    "model",
    0,
    "Number of latents of Perceiver IO; 0: as many as TCA reads nodes.",
    at_least=0,
    models=("perceiver",),
  )

  seed: int = option(
    "training",
    0,
    "Random seed for parameter initialisation and training data.",
    at_least=0,
    below=_SEED_LIMIT,
  )
  num_steps: int = option("training", 2000, "Number of training steps.", at_least=1)
  batch_size: int = option(
    "training", 32, "Number of contexts per step, over all devices.", at_least=1
  )
  learning_rate: float = option(
    "training",
    2e-3,
    "Peak learning rate, reached after warm-up; a cosine schedule then decreases it to"
    " 0.",
    at_least=0,
  )
  warmup_steps: int = option(
    "training",
    200,
    "Number of steps of linear learning-rate warm-up, at most half of --num_steps.",
    at_least=0,
  )
  adam_b1: float = option("training", 0.9, "Adam's beta1.", at_least=0, below=1)
  clip_norm: float = option(
    "training", 1.0, "Largest global norm of a gradient; 0: no clipping.", at_least=0
  )
  weight_decay: float = option(
    "training",
    0.0,
    "Weight decay of AdamW, relative to the learning rate, of all parameters except"
    " biases and scales; 0: Adam.",
    at_least=0,
  )
  lambda_ca: float = option(
    "training",
    1.0,
    "Weight of L_CA, the loss when all leaves are read.",
    at_least=0,
    models=("tca",),
  )
  lambda_rl: float = option(
    "training",
    1.0,
    "Weight of L_RL, the REINFORCE loss of the policy.",
    at_least=0,
    models=("tca",),
  )
  entropy_weight: float = option(
    "training",
    0.01,
    "Weight of the policy's entropy bonus, relative to REINFORCE.",
    at_least=0,
    models=("tca",),
    needs={"lambda_rl": "above 0"},
  )
  routing_weight: float = option(
    "training",
    1.0,
    "Weight of the routing loss, which distils the leaf attention into the policy.",
    at_least=0,
    models=("tca",),
  )
  teacher_temperature: float = option(
    "training",
    1.0,
    "Temperature of the leaf attention that the routing loss distils; below 1 it is"
    " sharpened.",
    at_least=0.01,
    models=("tca",),
    needs={"routing_weight": "above 0"},
  )
  baseline: objectives.Baseline = option(
    "training",
    "batch",
    "Baseline subtracted from the REINFORCE reward: a constant, the mean of the batch"
    " for the same query position, or the reward when all leaves are read (leaf).",
    models=("tca",),
    needs={"lambda_rl": "above 0"},
  )
  baseline_value: float = option(
    "training",
    0.0,
    "Value of the baseline when --baseline=constant.",
    models=("tca",),
    needs={"lambda_rl": "above 0", "baseline": ("constant",)},
  )
  reward: objectives.Reward = option(
    "training",
    "accuracy",
    "REINFORCE reward of a classification; a regression always uses the likelihood.",
    models=("tca",),
    needs={"lambda_rl": "above 0"},
  )

  eval_batches: int = option(
    "evaluation",
    100,
    "Number of evaluation batches; 0: the whole test set.",
    at_least=0,
  )
  num_paths: int = option(
    "evaluation",
    0,
    "Beam width: number of paths that a query follows through the tree; 0: as in"
    " training, 1 for tca and --beam_width for relative_tca.",
    at_least=0,
    models=_TREES,
    needs={"mode": ("train", "eval")},
  )
  upper_paths: int = option(
    "evaluation",
    0,
    "Number of paths that a query of relative_tca follows in evaluation on all but the"
    " lowest six levels of the tree; 0: as many as on these.",
    at_least=0,
    models=("relative_tca",),
  )
  eval_seed: int = option(
    "evaluation",
    1,
    "Random seed for evaluation data, independent of --seed.",
    at_least=0,
    below=_SEED_LIMIT,
  )
  save_every: int = option(
    "logging",
    500,
    "Number of steps between checkpoints.",
    at_least=1,
    needs={"mode": ("train",)},
  )
  log_every: int = option(
    "logging",
    50,
    "Number of steps between lines of metrics.jsonl.",
    at_least=1,
    needs={"mode": ("train",)},
  )

  def __init_subclass__(cls, **kwargs: typing.Any):
    """Gives inherited options the defaults that `DEFAULTS` of a subclass states."""
    super().__init_subclass__(**kwargs)
    inherited = {field.name: field for field in dataclasses.fields(cls)}
    for name, default in cls.__dict__.get("DEFAULTS", {}).items():
      field = inherited[name]
      cls.__annotations__[name] = field.type
      setattr(cls, name, dataclasses.field(default=default, metadata=field.metadata))

  @classmethod
  def recipe_options(
    cls, recipe: Recipe, given: Mapping[str, typing.Any]
  ) -> dict[str, typing.Any]:
    """The options that a recipe sets, updated by those given; others have defaults."""
    return {**(cls.PAPER if recipe == "paper" else {}), **given}

  @classmethod
  def from_recipe(cls, recipe: Recipe, **given: typing.Any) -> typing.Self:
    """A config of a recipe, updated by the options given.

    >>> Config.from_recipe("paper", num_steps=7).num_steps
    7
    """
    return cls(**cls.recipe_options(recipe, given))

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, allowed = getattr(self, field.name), field.metadata
      if type(value) is not type(field.default):
        raise ConfigError(
          f"{field.name} must be {type(field.default).__name__}, got {value!r}"
        )
      names = choices(field)
      if names and value not in names:
        raise ConfigError(f"{field.name} must be one of {names}, got {value!r}")
      if allowed["at_least"] is not None and not value >= allowed["at_least"]:
        raise ConfigError(
          f"{field.name} must be at least {allowed['at_least']}, got {value!r}"
        )
      if field.name.endswith("_dir"):
        if not value:
          raise ConfigError(f"{field.name} must be the path of a folder, got {value!r}")
        paths.check_local(str(value), field.name)  # TFDS maps its files into memory
      number = isinstance(value, int | float)
      if number and not -math.inf < value < allowed["below"]:
        limit = f"below {allowed['below']}" if allowed["below"] < math.inf else "finite"
        raise ConfigError(f"{field.name} must be {limit}, got {value!r}")


ConfigType = typing.TypeVar("ConfigType", bound=Config)


def choices(field: dataclasses.Field) -> tuple[str, ...] | None:
  """The strings that an option allows; None if it allows any value of its type."""
  if field.metadata["choices"] is None and typing.get_origin(field.type) is (
    typing.Literal
  ):
    return typing.get_args(field.type)
  return field.metadata["choices"]


def trained_options(config_class: type[Config]) -> tuple[str, ...]:
  """Names of the options that change the trained parameters."""
  return _options_in(config_class, _TRAINED)


def evaluation_options(config_class: type[Config]) -> tuple[str, ...]:
  """Names of the options that change how a trained model is measured."""
  return _options_in(config_class, ("evaluation",))


def _options_in(config_class: type[Config], groups: Sequence[Group]) -> tuple[str, ...]:
  fields = dataclasses.fields(config_class)
  return tuple(field.name for field in fields if field.metadata["group"] in groups)


def unused_because(config: Config, name: str, mode: str) -> str | None:
  """The reason why an option has no effect, such as "--model=tca"; None if it has one.

  Args:
    config: a config.
    name: name of the option.
    mode: what is done with the config: the value of the flag `--mode`.
  """
  if name in config.UNUSED:
    return config.UNUSED[name]
  (field,) = (field for field in dataclasses.fields(config) if field.name == name)
  for other, allowed in field.metadata["needs"].items():
    value: typing.Any = mode if other == "mode" else getattr(config, other)
    if not (value > 0 if allowed == "above 0" else value in allowed):
      return f"--{other}={value}"
  return None
