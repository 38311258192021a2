"""One frozen dataclass of options for an experiment, and its flags.

An option is declared once, as a field of a config. `define_flags` makes the
absl flags of a config class, `from_flags` reads them back into one frozen
config: nothing below `main` looks at flags.

A config's defaults are the default recipe. The other recipe is named `paper`: what the
paper publishes of objective, optimiser and sizes.
"""

import dataclasses
import json
import math
import pathlib
import sys
import types
import typing

from absl import flags
from etils import epath

from tca_jax import objectives
from tca_jax import tree

CONFIG_FILE = "config.json"
_PART = ".part"
NAMES = {"tca": "TCA", "ca": "Cross Attention", "perceiver": "Perceiver IO"}
MODELS = tuple(NAMES)
RECIPES = ("default", "paper")


class ConfigError(ValueError):
  """An option or a workdir that cannot be used; the message says what can."""


def option(
  default: typing.Any,
  text: str,
  choices: tuple[str, ...] | None = None,
  at_least: float | None = None,
  below: float = math.inf,
  recipe: bool = True,
) -> typing.Any:
  """A field of a config.

  Args:
    default: its default; its type is the option's type.
    text: what the flag's help says.
    choices: the strings allowed, if only some are.
    at_least: the least number allowed.
    below: numbers must be less than this; all must be finite.
    recipe: whether it is part of what is trained, so that a workdir holds one
      value of it; False for logging, saving and evaluation.
  """
  metadata = dict(
    text=text, choices=choices, at_least=at_least, below=below, recipe=recipe
  )
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The options that all experiments share; see each one's text."""

  # Sec. 3.2 and the hyper-parameters published; tasks add their own.
  PAPER: typing.ClassVar[types.MappingProxyType[str, typing.Any]] = (
    types.MappingProxyType(
      dict(
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
    )
  )

  model: str = option("tca", "The system: its read-out.", choices=MODELS)
  seed: int = option(0, "Of the parameters and of the training data.", at_least=0)
  num_steps: int = option(2000, "Training steps.", at_least=1)
  batch_size: int = option(32, "Contexts a step, over all devices.", at_least=1)

  position_skip: bool = option(
    False, "Whether positions also go around the embedder's MLP."
  )
  num_layers: int = option(0, "Transformer layers of the encoder.", at_least=0)
  branch_factor: int = option(2, "Children of a node of the tree.", at_least=2)
  tree_order: str = option("kd", "How the tree is built.", choices=tree.ORDERS)
  share_policy: bool = option(False, "Whether policy and attention share weights.")
  tree_gradient: bool = option(True, "Whether gradients flow down the tree.")
  num_latents: int = option(
    0, "Latents of Perceiver IO; 0: as many as TCA reads nodes.", at_least=0
  )
  dropout: float = option(0.0, "Dropout rate.", at_least=0, below=1)
  dtype: str = option("float32", "Of the activations.", choices=("float32", "bfloat16"))

  learning_rate: float = option(2e-3, "The peak, after warm-up.", at_least=0)
  warmup_steps: int = option(200, "Steps of linear warm-up.", at_least=0)
  adam_b1: float = option(0.9, "Adam's beta1.", at_least=0, below=1)
  clip_norm: float = option(1.0, "Clips the global norm; 0: never.", at_least=0)
  lambda_ca: float = option(1.0, "Weight of the leaves' loss.", at_least=0)
  lambda_rl: float = option(1.0, "Weight of REINFORCE.", at_least=0)
  entropy_weight: float = option(
    0.01, "Weight of the entropy bonus, within REINFORCE.", at_least=0
  )
  routing_weight: float = option(1.0, "Weight of the routing loss.", at_least=0)
  teacher_temperature: float = option(
    1.0, "Of the leaf attention that the routing loss distils.", at_least=0.01
  )
  baseline: str = option("batch", "Of REINFORCE.", choices=objectives.BASELINES)
  baseline_value: float = option(0.0, "Of the baseline 'constant'.")
  reward: str = option(
    "accuracy",
    "Of REINFORCE; regression always takes the likelihood.",
    choices=objectives.REWARDS,
  )

  save_every: int = option(500, "Steps between checkpoints.", at_least=1, recipe=False)
  log_every: int = option(50, "Steps between log lines.", at_least=1, recipe=False)
  eval_batches: int = option(
    100, "Batches of the evaluation; 0: the whole test set.", at_least=0, recipe=False
  )
  num_paths: int = option(
    1, "Paths that a query of the evaluation follows at once.", at_least=1, recipe=False
  )
  eval_seed: int = option(
    1, "Of the evaluation's data, apart from training's.", at_least=0, recipe=False
  )

  @classmethod
  def published(cls, changes: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """The options of the published recipe, with changes."""
    return cls.PAPER | changes

  @classmethod
  def paper(cls, **changes: typing.Any) -> typing.Self:
    """The config of the published recipe, with changes."""
    return cls(**cls.published(changes))

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value, allowed = getattr(self, field.name), field.metadata
      if type(value) is not type(field.default):
        raise ConfigError(
          f"{field.name} must be {type(field.default).__name__}, got {value!r}"
        )
      if allowed["choices"] and value not in allowed["choices"]:
        raise ConfigError(
          f"{field.name} must be one of {allowed['choices']}, got {value!r}"
        )
      if allowed["at_least"] is not None and not value >= allowed["at_least"]:
        raise ConfigError(
          f"{field.name} must be at least {allowed['at_least']}, got {value!r}"
        )
      if isinstance(value, float) and not -math.inf < value < allowed["below"]:
        limit = f"below {allowed['below']}" if allowed["below"] < math.inf else "finite"
        raise ConfigError(f"{field.name} must be {limit}, got {value!r}")


ConfigType = typing.TypeVar("ConfigType", bound=Config)


def define_flags(config_class: type[Config]) -> None:
  """Defines --mode, --workdir, --out, --recipe, and a flag for every option."""
  flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "eval", "paths"],
    "Train (and evaluate); or eval; or evaluate TCA along more and more paths.",
  )
  flags.DEFINE_string(
    "workdir", None, "Holds config, checkpoints, metrics and results.", required=True
  )
  flags.DEFINE_string("out", None, "Where results go; the workdir if not given.")
  flags.DEFINE_enum(
    "recipe",
    "default",
    RECIPES,
    "What the options not given are: their defaults, or the published ones.",
  )
  define: dict[type, typing.Callable[..., typing.Any]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
  }
  for field in dataclasses.fields(config_class):
    default: typing.Any = field.default
    text, choices = field.metadata["text"], field.metadata["choices"]
    if choices:
      flags.DEFINE_enum(field.name, default, choices, text)
    else:
      define[type(default)](field.name, default, text)
  for name in (
    "mode",
    "workdir",
    "out",
    "recipe",
    *(f.name for f in dataclasses.fields(config_class)),
  ):
    # Key flags are those that --help lists.
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def _given(config_class: type[Config]) -> dict[str, typing.Any]:
  """The options that the command line asks for, by themselves or by a recipe."""
  names = [field.name for field in dataclasses.fields(config_class)]
  own = {name: flags.FLAGS[name].value for name in names if flags.FLAGS[name].present}
  paper = flags.FLAGS["recipe"].value == "paper"
  return config_class.published(own) if paper else own


def from_flags(config_class: type[ConfigType]) -> ConfigType:
  """The config that the parsed flags ask for; ConfigError if it is not allowed."""
  return config_class(**_given(config_class))


def with_given_flags(config: ConfigType) -> ConfigType:
  """A workdir's config, with the flags of the command line that may differ.

  Raises:
    ConfigError: if a flag given asks for another recipe than the workdir's.
  """
  given = _given(type(config))
  for field in dataclasses.fields(config):
    trained = getattr(config, field.name)
    if field.metadata["recipe"] and given.get(field.name, trained) != trained:
      own = flags.FLAGS[field.name].present
      option_given = f"--{field.name}" if own else f"--recipe=paper: {field.name}"
      raise ConfigError(
        f"{option_given}={given[field.name]} contradicts the workdir, which was trained"
        f" with {trained!r}; leave it out"
      )
  return dataclasses.replace(config, **given)


def load(config_class: type[ConfigType], workdir: epath.Path) -> ConfigType:
  """Reads a workdir's config; options newer than it take their defaults.

  Raises:
    ConfigError: if there is none, or if it is not of this experiment.
  """
  path = workdir / CONFIG_FILE
  if not path.exists():
    raise ConfigError(f"{workdir} holds no {CONFIG_FILE}: nothing was trained there")
  stored = json.loads(path.read_text())
  names = {field.name for field in dataclasses.fields(config_class)}
  if set(stored) - names:
    raise ConfigError(
      f"{path} is of another experiment or version: it holds the unknown options"
      f" {sorted(set(stored) - names)}"
    )
  return config_class(**stored)


def claim_workdir(config: Config, workdir: epath.Path) -> None:
  """Writes the config to a new workdir, or checks it against an old one's.

  Raises:
    ConfigError: if the workdir was trained with another recipe, or if it holds
      files but no config.
  """
  path = workdir / CONFIG_FILE
  if path.exists():
    stored = load(type(config), workdir)
    different = [
      f"{field.name}: {getattr(stored, field.name)!r} there,"
      f" {getattr(config, field.name)!r} here"
      for field in dataclasses.fields(config)
      if field.metadata["recipe"]
      and getattr(stored, field.name) != getattr(config, field.name)
    ]
    if different:
      raise ConfigError(
        f"{workdir} holds a run of another config ({'; '.join(different)});"
        " choose another --workdir, or give the same flags to resume"
      )
    return
  part = CONFIG_FILE + _PART  # a start that was killed left nothing else
  if workdir.exists() and any(x.name != part for x in workdir.iterdir()):
    raise ConfigError(
      f"{workdir} holds files but no {CONFIG_FILE}; choose an empty --workdir"
    )
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(path, dataclasses.asdict(config))


def write_json(path: epath.PathLike, content: typing.Any) -> None:
  """Writes JSON as `replace_text` does."""
  replace_text(path, json.dumps(content, indent=2) + "\n")


def replace_text(path: epath.PathLike, text: str) -> None:
  """Writes a file so that a kill leaves the old one or the new one, never half."""
  path = pathlib.Path(path)
  part = path.with_name(path.name + _PART)
  part.write_text(text)
  part.replace(path)
