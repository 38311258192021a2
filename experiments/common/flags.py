"""Command-line flags of an experiment, and its grouped `--help`.

Flags are parsed into a value of their own (`Arguments`), never into absl's global
flags, so that a process may run several experiments one after the other. Nothing below
`launch` knows of flags.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import textwrap
import typing

from absl import flags
from absl import logging
from etils import epath

from experiments.common import config as config_lib
from experiments.common import paths
from experiments.common import processes
from experiments.common.config import Config
from experiments.common.errors import ConfigError

# The modes of every program, with their help.
MODES: Mapping[str, str] = {
  "train": "train, or resume, then evaluate",
  "eval": "evaluate the latest checkpoint",
  "paths": "evaluate TCA with beam widths 1, 2, 4 and 8",
}
_TITLES: dict[config_lib.Group, str] = {
  "files": "Files and mode",
  "task": "Task",
  "model": "Model",
  "training": "Training",
  "evaluation": "Evaluation",
  "logging": "Logging",
}
_PROCESSES = [field.name for field in dataclasses.fields(processes.Cluster)]
_WIDTH = 80


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
  """A parsed command line.

  Attributes:
    mode: what to do.
    workdir: folder of the run; None only in a mode that can do without.
    out: path for results; None: the workdir.
    recipe: recipe of the options that are not given.
    given: options that the command line sets, by name.
    verbosity: log level.
    cluster: the processes that run it together.
  """

  mode: str
  workdir: epath.Path | None
  out: epath.Path | None
  recipe: config_lib.Recipe
  given: dict[str, typing.Any]
  verbosity: int
  cluster: processes.Cluster


def check_names(flag: str, names: Collection[str], allowed: Iterable[str]) -> None:
  """Checks a list of names.

  Raises:
    ConfigError: if it is empty, or if a name is not allowed.
  """
  allowed = list(allowed)
  unknown = sorted(set(names) - set(allowed))
  if unknown or not names:
    raise ConfigError(
      f"{flag} must have names of {', '.join(allowed)}, got"
      f" {unknown[0] if unknown else ''!r}"
    )


def parse(
  config_class: type[Config],
  argv: list[str],
  modes: Mapping[str, str] = MODES,
  without_workdir: Collection[str] = (),
) -> Arguments | None:
  """Parses a command line.

  Args:
    config_class: class of the experiment's config, which declares the options.
    argv: the program's name and its arguments.
    modes: values of `--mode`, with their help.
    without_workdir: the modes that can do without `--workdir`.

  Returns:
    The parsed arguments; None if `--help` is one of them.

  Raises:
    flags.Error: on an unknown flag, a value that cannot be parsed, a path that cannot
      be used, a missing `--workdir`, an argument that is not a flag, or a mode for one
      process only.
  """
  values = _define(config_class, modes)
  unparsed = values(argv)
  if values["help"].value:
    return None
  if len(unparsed) > 1:
    raise flags.Error(f"unknown arguments: {' '.join(unparsed[1:])}")
  mode, workdir = values["mode"].value, values["workdir"].value
  if not workdir and mode not in without_workdir:
    text = "must be given"
    if mode != "train":
      text += f": --mode={mode} needs the folder of a trained model"
    raise flags.Error(f"--workdir {text}")
  if values["distributed"].value and mode not in MODES:
    raise flags.Error(f"--mode={mode} runs in one process, without --distributed")
  parsed = values.flag_values_dict()
  names = [field.name for field in dataclasses.fields(config_class)]
  return Arguments(
    mode=parsed["mode"],
    workdir=_path(values["workdir"]),
    out=_path(values["out"]),
    recipe=parsed["recipe"],
    given={name: parsed[name] for name in names if values[name].present},
    verbosity=parsed["verbosity"],
    cluster=processes.Cluster(**{name: parsed[name] for name in _PROCESSES}),
  )


def _path(flag: flags.Flag) -> epath.Path | None:
  """The path that a flag has; None if it is not given."""
  try:
    return paths.to_path(flag.value, f"--{flag.name}") if flag.value else None
  except ConfigError as error:
    raise flags.Error(str(error)) from error


def help_text(
  config_class: type[Config],
  description: str,
  modes: Mapping[str, str] = MODES,
  without_workdir: Collection[str] = (),
) -> str:
  """The text of `--help`: a description, then the flags by group.

  Args:
    config_class: class of the experiment's config.
    description: documentation of the experiment.
    modes: values of `--mode`, with their help.
    without_workdir: the modes that can do without `--workdir`; their `--out` is a file.
  """
  values = _define(config_class, modes, without_workdir)
  groups: dict[config_lib.Group, list[str]] = {group: [] for group in _TITLES}
  groups["files"] = ["workdir", "mode", "out", "recipe"]
  for field in dataclasses.fields(config_class):
    groups[field.metadata["group"]].append(field.name)
  groups["logging"] += ["verbosity", "help"]
  sections = [description.strip()]
  titled = [(title, groups[group]) for group, title in _TITLES.items()]
  for title, names in [*titled, ("Several processes", _PROCESSES)]:
    if names:
      entries = [_entry(values[name]) for name in names]
      sections.append("\n".join([f"{title}:", *entries]))
  return "\n\n".join(sections) + "\n"


def _entry(flag: flags.Flag) -> str:
  """Help of one flag: its name and allowed values, then its text and default."""
  text, default = flag.help, f" Default: {flag.default}."
  if flag.boolean:
    name, default = (
      f"--[no]{flag.name}",
      f" Default: {'on' if flag.default else 'off'}.",
    )
  elif isinstance(flag, flags.EnumFlag):
    names = "|".join(flag.parser.enum_values)
    name, text = f"--{flag.name}={names}", text.removeprefix(f"<{names}>: ")
  else:
    name = f"--{flag.name}=<{flag.flag_type()}>"
  if flag.default in (None, ""):
    default = ""
  if flag.name == "help":
    name, default = "--help", ""
  indent = " " * 6
  text = textwrap.fill(
    text + default, _WIDTH, initial_indent=indent, subsequent_indent=indent
  )
  return f"  {name}\n{text}"


def _define(
  config_class: type[Config],
  modes: Mapping[str, str],
  without_workdir: Collection[str] = (),
) -> flags.FlagValues:
  """The flags of a config class and those that all experiments share."""
  values = flags.FlagValues()
  others = ", ".join(f"--mode={mode}" for mode in without_workdir)
  flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run: config, checkpoints, metrics and results. Required"
    + (f", except with {others}." if others else "."),
    flag_values=values,
  )
  flags.DEFINE_enum(
    "mode",
    "train",
    list(modes),
    " ".join(f"{name}: {text}." for name, text in modes.items()),
    flag_values=values,
  )
  flags.DEFINE_string(
    "out",
    None,
    "Folder for results"
    + (f"; with {others} the file to write" if others else "")
    + ". Default: the workdir.",
    flag_values=values,
  )
  flags.DEFINE_enum(
    "recipe",
    "default",
    typing.get_args(config_lib.Recipe),
    "Values of the options that are not given: this repository's defaults (default),"
    " or the paper's (paper).",
    flag_values=values,
  )
  flags.DEFINE_bool(
    "distributed",
    None,
    "Whether several processes, started with the same flags, train or evaluate one model"
    " together. It must be given if there are several processes.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "coordinator_address",
    None,
    "Host and port of the first process, as host:1234. JAX finds the processes of a TPU"
    " pod, of Slurm and of Open MPI, and this flag and the next two are left out.",
    flag_values=values,
  )
  flags.DEFINE_integer(
    "num_processes", None, "Number of processes.", flag_values=values
  )
  flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0.", flag_values=values
  )
  flags.DEFINE_integer(
    "verbosity",
    logging.WARNING,
    "Log level: -1 warnings and errors, 0 also information, 1 also debug messages.",
    flag_values=values,
  )
  flags.DEFINE_bool("help", False, "This text.", short_name="h", flag_values=values)
  define: dict[type, typing.Callable[..., typing.Any]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
  }
  for field in dataclasses.fields(config_class):
    default: typing.Any = field.default
    text, names = field.metadata["text"], config_lib.choices(field)
    if names:
      flags.DEFINE_enum(field.name, default, names, text, flag_values=values)
    else:
      define[type(default)](field.name, default, text, flag_values=values)
  for old, new in config_lib.RENAMED.items():
    flags.DEFINE_alias(old, new, flag_values=values)
  return values
