"""SIGTERM as a request to stop, so that a program can save its work first."""

from collections.abc import Iterator
import contextlib
import dataclasses
import signal
import threading
import typing


@dataclasses.dataclass
class Request:
  """Whether SIGTERM has arrived."""

  arrived: bool = False


@contextlib.contextmanager
def noticed() -> Iterator[Request]:
  """Notes SIGTERM instead of ending the process; in a thread, SIGTERM still ends it."""
  request = Request()

  def note(*_: typing.Any) -> None:
    request.arrived = True

  # Python allows a signal handler in the main thread only.
  if threading.current_thread() is not threading.main_thread():
    yield request
    return
  previous = signal.signal(signal.SIGTERM, note)
  try:
    yield request
  finally:
    signal.signal(signal.SIGTERM, previous)
