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


def first_line(error: BaseException) -> str:
  """The first line of an error's message, without the errors that it caused.

  >>> first_line(OSError(28, "No space left on device", "runs/copy"))
  "[Errno 28] No space left on device: 'runs/copy'"
  """
  while error.__cause__ is not None:
    error = error.__cause__
  return (str(error).strip() or repr(error)).splitlines()[0][:300]
