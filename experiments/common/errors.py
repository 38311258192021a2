"""The errors that a user can fix; `launch` reports them without a traceback."""


class UserError(Exception):
  """Base class of the errors whose message tells a user how to fix them."""


class ConfigError(UserError, ValueError):
  """Invalid option or workdir; the message states the allowed values."""


class DataError(UserError, RuntimeError):
  """Missing or malformed data; the message states how to get it."""


class CheckpointError(UserError, RuntimeError):
  """No checkpoint can be saved or restored; the message states the reason."""


class NonFiniteLossError(UserError, RuntimeError):
  """The training loss is NaN or infinite; the message states the step."""
