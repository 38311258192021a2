"""Several processes that train or evaluate one model together, through JAX.

Every process runs the same program with the same flags, on its own devices. All devices
together form one mesh. The first process alone writes files and prints; checkpoints are
written by all.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import ctypes
import dataclasses
import io
import os
import signal
import sys
import threading
import time
import typing
import zlib

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from experiments.common.errors import ConfigError
from experiments.common.errors import ProcessError
from tca_jax.checkpoint import first_line

# Number of processes that a launcher started: srun, Open MPI's mpirun, MPICH's mpiexec.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_ENDED = (
  "another process ended, or cannot be reached; start all processes again, and training"
  " continues from its newest checkpoint"
)
_DAY = 24 * 60 * 60
_LAST_SECONDS = 2  # the first process ends so much later than the others
_handlers: list[typing.Any] = []  # C has pointers to them, so they must stay

Tree = typing.TypeVar("Tree")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
  """The processes of a run, as the command line describes them.

  Attributes:
    distributed: whether this process works with others; None: not given.
    coordinator_address: host and port of the first process; None: JAX finds the
      processes, as it can on TPU pods and under Slurm and Open MPI.
    num_processes: number of processes; None as above.
    process_id: number of this process, from 0; None as above.
  """

  distributed: bool | None = None
  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None

  def join(self) -> None:
    """Connects this process to the others, if it works with others.

    Raises:
      ConfigError: if the description is incomplete or wrong, or if there are several
        processes and `distributed` is not given.
    """
    names = ("coordinator_address", "num_processes", "process_id")
    given = [name for name in names if getattr(self, name) is not None]
    if not self.distributed:
      if given:
        raise ConfigError(f"--{given[0]} needs --distributed")
      if self.distributed is None:
        _refuse_several()
      return
    if given:
      self._check(sorted(set(names) - set(given)))
    try:
      _report_abort(f"process {self.process_id}" if given else "this process")
      # At the end the others wait for the files that the first process writes alone.
      jax.distributed.initialize(
        self.coordinator_address,
        self.num_processes,
        self.process_id,
        shutdown_timeout_seconds=_DAY,
      )
    except (RuntimeError, ValueError) as error:
      if not given and isinstance(error, ValueError):
        raise ConfigError(
          "--distributed needs --coordinator_address, --num_processes and --process_id"
          f" here, because JAX found no cluster: {first_line(error)}"
        ) from error
      raise ConfigError(f"--distributed: {first_line(error)}") from error
    _report_abort(_name())
    # On CPUs, the first exchange must not wait longer than half a minute for a process.
    with together():
      barrier("joined")

  def _check(self, missing: list[str]) -> None:
    """Raises ConfigError unless JAX accepts the fields; some are given."""
    if missing:
      raise ConfigError(
        f"--distributed also needs --{', --'.join(missing)}; without all three, JAX"
        " finds the processes of a TPU pod, of Slurm or of Open MPI"
      )
    count, number, address = (
      typing.cast(int, self.num_processes),
      typing.cast(int, self.process_id),
      typing.cast(str, self.coordinator_address),
    )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
      raise ConfigError(
        f"coordinator_address must be a host and a port, as host:1234, got {address!r}"
      )
    if count < 1:
      raise ConfigError(f"num_processes must be at least 1, got {count}")
    if not 0 <= number < count:
      raise ConfigError(
        f"process_id must be from 0 to num_processes - 1 = {count - 1}, got {number}"
      )


def _refuse_several() -> None:
  """Raises ConfigError if this is one of several processes that are not connected."""
  if not is_alone():
    return
  for name in _COUNTS:
    count = os.environ.get(name, "")
    if count.isdecimal() and int(count) > 1:
      raise ConfigError(
        f"this is one of {count} processes ({name}), and each would train alone: give"
        " --distributed to train one model together, or --nodistributed"
      )


def check(config: typing.Any) -> None:
  """Checks that several processes are connected and have the same options.

  Args:
    config: the options, a dataclass.

  Raises:
    ConfigError: if they are not, or if this process has others than the first.
  """
  if jax.process_count() > 1 and is_alone():
    raise ConfigError(
      f"JAX runs in {jax.process_count()} processes that are not connected: give"
      " --distributed, or call jax.distributed.initialize first"
    )
  digest = zlib.crc32(repr(config).encode())
  if from_first(digest) != digest:
    raise ConfigError(
      f"{_name()} has other options than the first; give all of them the same flags"
    )


def is_alone() -> bool:
  """Whether this process is not connected to others."""
  return not jax.distributed.is_initialized()


def is_first() -> bool:
  """Whether this is the first process, which alone writes files, or the only one."""
  return is_alone() or jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until all processes are here; the name is the same in all."""
  multihost_utils.sync_global_devices(name)


def from_first(value: int) -> int:
  """The first process's number, in all processes; 0 to 2^32 - 1."""
  return int(multihost_utils.broadcast_one_to_all(np.uint32(value)))


def shardings(
  batch_size: int, all_devices: bool = True
) -> tuple[NamedSharding, NamedSharding]:
  """Shardings over the devices of all processes: replicated, and along the batch.

  Args:
    batch_size: number of contexts on all devices together.
    all_devices: whether to use every device. If False, every process uses the same
      number of devices, the largest that divides the batch evenly.

  Raises:
    ConfigError: if the batch cannot be divided evenly.
  """
  devices, count = jax.devices(), jax.process_count()
  if batch_size % len(devices):
    if all_devices:
      raise ConfigError(
        f"batch_size must be a multiple of the {len(devices)} devices, got {batch_size}"
      )
    own = [[x for x in devices if x.process_index == i] for i in range(count)]
    each = min(map(len, own))
    while each and batch_size % (each * count):
      each -= 1
    if not each:
      raise ConfigError(
        f"batch_size must be a multiple of the {count} processes, got {batch_size}"
      )
    devices = [x for some in own for x in some[:each]]
  mesh = Mesh(np.asarray(devices), ("data",))
  return (
    NamedSharding(mesh, PartitionSpec()),
    NamedSharding(mesh, PartitionSpec("data")),
  )


def place(tree: Tree, sharding: NamedSharding) -> Tree:
  """Distributes arrays that every process has whole.

  Args:
    tree: a pytree of arrays on this process's default device, the same in all
      processes. Each process copies the parts of its own devices only.
    sharding: how they are distributed.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)
  # Unlike device_put, this does not compare the values of all processes.
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), tree
  )


def own(tree: Tree) -> Tree:
  """Replicated arrays as arrays of this process's first device."""
  return jax.tree.map(lambda x: x.addressable_data(0), tree)


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[int], bool]]:
  """Yields a function of a step: whether SIGTERM asks to stop after it.

  A SIGTERM to one of several processes stops all of them after the same step. They must
  call the function after every step.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  received = []
  previous: typing.Any = None
  # Python allows a signal handler in the main thread only.
  if threading.current_thread() is threading.main_thread():
    previous = signal.signal(signal.SIGTERM, lambda *_: received.append(True))
  try:
    yield lambda step: bool(received)
  finally:
    if previous is not None:
      signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Runs work that all processes share.

  Raises:
    ProcessError: in place of JAX's error, if the work fails because of another process.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    connection = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
    if jax.process_count() == 1 or not connection:
      raise
    raise ProcessError(f"{_name()} stops: {_ENDED} ({first_line(error)})") from error


@contextlib.contextmanager
def first_prints() -> Iterator[None]:
  """Hides what other processes than the first print; their errors are shown."""
  with (
    contextlib.nullcontext()
    if is_first()
    else contextlib.redirect_stdout(io.StringIO())
  ):
    yield


def leave(code: int) -> typing.NoReturn:
  """Ends this process with an exit code.

  After an error it does not wait for the other processes, as the end of a Python program
  otherwise does, because they may be waiting for it. The first process coordinates the
  others and leaves last, so that they can report errors of their own.
  """
  if code and not is_alone():
    if is_first():
      time.sleep(_LAST_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


def _name() -> str:
  return f"process {jax.process_index()} of {jax.process_count()}"


def _report_abort(name: str) -> None:
  """Prints a clear line if JAX aborts this process.

  JAX does so, in a thread of its own, when the first process is gone, or when it has
  missed the heartbeats of another. Handlers of Python's `signal` would never run: they
  wait for the main thread, which waits for the devices.
  """

  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def handler(_: int) -> None:
    os.write(2, f"{name} stops: {_ENDED}\n".encode())
    os._exit(1)

  _handlers.append(handler)
  ctypes.CDLL(None).signal(signal.SIGABRT, handler)
