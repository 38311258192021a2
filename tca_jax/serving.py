"""Serve predictions from a cached memory: fixed query sizes, StableHLO export, files.

A `predict` function here maps a memory and queries `[B, M, ...]` to a pytree of arrays
`[B, M, ...]`, for example:

  lambda memory, x: model.apply(params, memory, x, method="read").output.mean
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import os
import threading
import typing
import zipfile
import zlib

import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np

from tca_jax import state
from tca_jax import storage
from tca_jax.checks import as_array

__all__ = [
  "Predict",
  "Server",
  "export_read",
  "load_memory",
  "load_read",
  "save_memory",
  "save_read",
]

Predict = Callable[[typing.Any, jax.Array], typing.Any]


# On a CPU, two programs with batched Cholesky factorisations, as in relative models, can
# wait for each other's threads for ever.
_TURN = threading.Lock()


class Server:
  """Answers requests of any number of queries with a few compiled sizes.

  Requests are padded to the next size; larger ones are split. Requests from several
  threads take turns, also those to different servers.

  >>> server = Server(lambda memory, x: memory + x, jnp.ones(()), sizes=(1, 4))
  >>> server(jnp.zeros((1, 6, 2))).shape
  (1, 6, 2)
  """

  def __init__(
    self,
    predict: Predict,
    memory: typing.Any,
    sizes: Sequence[int] = (1, 16, 256, 4096),
  ):
    """Flattens the memory once, which makes each request cheaper.

    Args:
      predict: the prediction function, see the module's docstring.
      memory: the first argument of `predict`.
      sizes: the numbers of queries to compile for; each is compiled when it is first
        needed.

    Raises:
      ValueError: if there is no size, or if one is below 1.
    """
    if not sizes or min(sizes) < 1:
      raise ValueError(f"sizes must be numbers of at least 1, got {tuple(sizes)}")
    self._sizes = sorted(sizes)
    self._arrays, structure = jax.tree.flatten(memory)
    self._structure = structure
    self._predict = jax.jit(
      lambda arrays, x: predict(jax.tree.unflatten(structure, arrays), x)
    )

  def update(self, memory: typing.Any) -> None:
    """Replaces the memory, for the requests that follow.

    A memory with the shapes of the present one, such as a memory that has grown at a
    fixed capacity, is read by the same compiled programs. The others are compiled again.

    The server keeps the arrays of the memory, and no copy of them. A call that donates
    them, such as an insertion, makes the server unusable until its next update.

    Args:
      memory: a memory of the same classes as the present one.

    Raises:
      ValueError: if it is of other classes.
    """
    arrays, structure = jax.tree.flatten(memory)
    if structure != self._structure:
      raise ValueError(
        f"memory must have the structure {self._structure}, got {structure}"
      )
    self._arrays = arrays

  def __call__(self, queries: jax.typing.ArrayLike) -> typing.Any:
    """Predicts for queries.

    Args:
      queries: `[B, M, ...]`, M >= 1.

    Returns:
      The result of `predict` as NumPy arrays, `[B, M, ...]`.

    Raises:
      ValueError: if there is no query, or if the memory was donated.
    """
    queries = np.asarray(queries)
    if queries.ndim < 2 or not queries.shape[1]:
      raise ValueError(f"queries must be [B, M, ...], M >= 1, got {queries.shape}")
    with _TURN:
      return self._answer(queries)

  def _answer(self, queries: np.ndarray) -> typing.Any:
    """The result of `__call__`, while no other thread has its turn."""
    memory = self._arrays  # the same for all parts
    if any(isinstance(x, jax.Array) and x.is_deleted() for x in memory):
      raise ValueError(
        "memory was donated to another call, which has changed its arrays; give the"
        " result of that call to update"
      )
    parts = []
    for start in range(0, queries.shape[1], self._sizes[-1]):
      part = queries[:, start : start + self._sizes[-1]]
      count = part.shape[1]
      size = next(size for size in self._sizes if size >= count)
      padding = [(0, 0), (0, size - count)] + [(0, 0)] * (part.ndim - 2)
      parts.append((count, self._predict(memory, np.pad(part, padding))))
    # Fetch results only after all parts have been dispatched.
    answers = [
      jax.tree.map(lambda x, n=count: np.asarray(x)[:, :n], part)
      for count, part in parts
    ]
    return jax.tree.map(lambda *x: np.concatenate(x, axis=1), *answers)


def export_read(
  predict: Predict,
  memory: typing.Any,
  queries: jax.Array,
  platforms: Sequence[str] | None = None,
) -> bytes:
  """Exports a read as a StableHLO program for any number of queries.

  The program runs with JAX and without this package:

    program = jax.export.deserialize(bytearray(data))
    answer = program.call(arrays, queries)  # arrays: jax.tree.leaves(memory)

  `save_read` and `load_read` keep the program and the memory in a file.

  Args:
    predict: the prediction function, see the module's docstring. It must return arrays
      in tuples, lists or dicts.
    memory: the first argument of `predict`, or its shapes (`jax.ShapeDtypeStruct`).
    queries: example queries, `[B, M, ...]`; the program accepts any M.
    platforms: the platforms of the program, such as ("cpu", "cuda"); None means the
      platform of this process.

  Returns:
    The serialised program. JAX needs the package flatbuffers to write it.
  """
  arrays, structure = jax.tree.flatten(memory)
  queries = as_array("queries", queries)
  (num_queries,) = jax_export.symbolic_shape("m")
  shape = (queries.shape[0], num_queries, *queries.shape[2:])

  @jax.jit
  def read(arrays: list[jax.Array], queries: jax.Array) -> typing.Any:
    return predict(jax.tree.unflatten(structure, arrays), queries)

  specs = [
    x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(jnp.asarray(x))
    for x in arrays
  ]
  specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in specs]
  program = jax_export.export(read, platforms=platforms)(
    specs, jax.ShapeDtypeStruct(shape, queries.dtype)
  )
  return bytes(program.serialize())


def save_read(path: str | os.PathLike[str], program: bytes, memory: typing.Any) -> None:
  """Saves an exported read and a memory in one file.

  The file appears when everything is written, and replaces an existing one.

  Args:
    path: the path of the file.
    program: the result of `export_read`.
    memory: the memory to read, with arrays of any data type, such as bfloat16.

  Raises:
    ValueError: if the path is not one of this machine.
  """
  content = {"program": np.frombuffer(program, np.uint8)}
  _write(path, content | _pack(jax.tree.leaves(memory)))


def load_read(
  path: str | os.PathLike[str],
) -> tuple[jax_export.Exported, list[jax.Array]]:
  """Loads what `save_read` has saved.

  Args:
    path: the path of the file.

  Returns:
    The program and the arrays of the memory: `program.call(arrays, queries)` predicts,
    best under `jax.jit`.

  Raises:
    FileNotFoundError: if there is no file.
    ValueError: if the file is damaged or something else, or if a data type needs
      `jax_enable_x64`.
  """
  with _open(path, "save_read") as content:
    program = jax_export.deserialize(bytearray(content["program"].tobytes()))
    arrays = _unpack(content)
  return program, _on_device(path, arrays)


def save_memory(
  path: str | os.PathLike[str], memory: typing.Any, **info: typing.Any
) -> None:
  """Saves a memory in one file, from which it can be read or can grow.

  The file appears when everything is written, and replaces an existing one.

  Args:
    path: the path of the file.
    memory: a memory of this package, such as a `GrowingMemory`, or a batch of them, with
      arrays of any data type.
    **info: JSON data to keep with it, such as a number of tokens. Tuples are loaded as
      lists.

  Raises:
    ValueError: if the memory has a part of another class, or if info is not JSON data.
  """
  description, arrays = state.describe(memory)
  try:
    text = json.dumps({"memory": description, "info": info}, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise ValueError(f"info must be JSON data: {error}") from error
  _write(path, {"description": np.array(text)} | _pack(arrays))


def load_memory(
  path: str | os.PathLike[str],
) -> tuple[typing.Any, dict[str, typing.Any]]:
  """Loads what `save_memory` has saved.

  Args:
    path: the path of the file.

  Returns:
    The memory and the info.

  Raises:
    FileNotFoundError: if there is no file.
    ValueError: if the file is damaged or something else, or if a data type needs
      `jax_enable_x64`.
  """
  with _open(path, "save_memory") as content:
    text = json.loads(str(content["description"]))
    memory, info = state.build(text["memory"], _unpack(content)), text["info"]
  arrays, structure = jax.tree.flatten(memory)
  return jax.tree.unflatten(structure, _on_device(path, arrays)), info


def _pack(arrays: Sequence[typing.Any]) -> dict[str, np.ndarray]:
  """The contents of a file with arrays."""
  content: dict[str, np.ndarray] = {}
  for i, x in enumerate(map(np.asarray, arrays)):
    # As bytes, because NumPy's format knows only NumPy's data types.
    content[f"bytes_{i}"] = np.frombuffer(x.tobytes(), np.uint8)
    content[f"dtype_{i}"] = np.array(x.dtype.name)
    content[f"shape_{i}"] = np.array(x.shape, np.int64)
  return content


def _unpack(content: Mapping[str, np.ndarray]) -> list[np.ndarray]:
  """The arrays that `_pack` has packed."""
  count = sum(name.startswith("shape_") for name in content)
  return [
    np.frombuffer(
      content[f"bytes_{i}"].tobytes(), jnp.dtype(str(content[f"dtype_{i}"]))
    ).reshape(content[f"shape_{i}"])
    for i in range(count)
  ]


def _check_local(path: str | os.PathLike[str]) -> None:
  """Raises a ValueError unless a path is one of this machine."""
  if storage.scheme(path) is not None:
    raise ValueError(f"path must be that of a file of this machine, got {path}")


def _write(path: str | os.PathLike[str], content: dict[str, np.ndarray]) -> None:
  """Writes a file that appears when it is complete."""
  _check_local(path)
  part = f"{os.fspath(path)}.part-{os.getpid()}"
  try:
    with open(part, "wb") as file:
      np.savez(file, allow_pickle=False, **content)
    os.replace(part, path)
  except BaseException:
    if os.path.exists(part):
      os.remove(part)
    raise


@contextlib.contextmanager
def _open(
  path: str | os.PathLike[str], writer: str
) -> Iterator[Mapping[str, np.ndarray]]:
  """Opens a file; raises ValueError if it is not a complete file of the writer."""
  _check_local(path)
  try:
    with np.load(path, allow_pickle=False) as content:
      yield content
  except FileNotFoundError:
    raise
  except (OSError, ValueError, TypeError, LookupError, EOFError, AttributeError,
          AssertionError, zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
    raise ValueError(f"{path} is damaged or not a file of {writer}: {error}") from error


def _on_device(
  path: str | os.PathLike[str], arrays: Sequence[np.ndarray]
) -> list[jax.Array]:
  """Moves arrays to the device; raises ValueError if a data type is not enabled."""
  for x in arrays:
    if jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
      raise ValueError(f"{path} has an array of {x.dtype}; set jax_enable_x64")
  return [jnp.asarray(x) for x in arrays]
