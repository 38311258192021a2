"""The errors that a user can fix; `launch` reports them without a traceback."""

import typing

from absl import logging


class UserError(Exception):
  """Base class of the errors whose message tells a user how to fix them.

  Attributes:
    exit_code: exit code of a command line that ends with the error.
    log_level: level at which the command line logs it.
  """

  exit_code: typing.ClassVar[int] = 1
  log_level: typing.ClassVar[int] = logging.ERROR


class ConfigError(UserError, ValueError):
  """Invalid option or workdir; the message states the allowed values."""


class DataError(UserError, RuntimeError):
  """Missing or malformed data; the message states how to get it."""


class CheckpointError(UserError, RuntimeError):
  """No checkpoint can be saved or restored; the message states the reason."""


class NonFiniteLossError(UserError, RuntimeError):
  """The training loss is NaN or infinite; the message states the step."""


class ProcessError(UserError, RuntimeError):
  """Another process of a distributed run ended; the message states how to go on."""


class PreemptedError(UserError, RuntimeError):
  """SIGTERM stopped training; the message states the step that was saved."""

  exit_code = 143
  log_level = logging.WARNING
