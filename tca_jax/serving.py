"""Serve predictions from a cached memory: fixed query sizes, and StableHLO export.

A `predict` function here maps a memory and queries `[B, M, ...]` to a pytree of arrays
`[B, M, ...]`, for example:

  lambda memory, x: model.apply(params, memory, x, method="read").output.mean
"""

from collections.abc import Callable
from collections.abc import Sequence
import typing

import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np

__all__ = ["Predict", "Server", "export_read"]

Predict = Callable[[typing.Any, jax.Array], typing.Any]


class Server:
  """Answers requests of any number of queries with a few compiled sizes.

  Requests are padded to the next size; larger ones are split.

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
    self._predict = jax.jit(
      lambda arrays, x: predict(jax.tree.unflatten(structure, arrays), x)
    )

  def __call__(self, queries: jax.typing.ArrayLike) -> typing.Any:
    """Predicts for queries.

    Args:
      queries: `[B, M, ...]`, M >= 1.

    Returns:
      The result of `predict` as NumPy arrays, `[B, M, ...]`.

    Raises:
      ValueError: if there is no query.
    """
    queries = np.asarray(queries)
    if queries.ndim < 2 or not queries.shape[1]:
      raise ValueError(f"queries must be [B, M, ...], M >= 1, got {queries.shape}")
    parts = []
    for start in range(0, queries.shape[1], self._sizes[-1]):
      part = queries[:, start : start + self._sizes[-1]]
      count = part.shape[1]
      size = next(size for size in self._sizes if size >= count)
      padding = [(0, 0), (0, size - count)] + [(0, 0)] * (part.ndim - 2)
      parts.append((count, self._predict(self._arrays, np.pad(part, padding))))
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
  (num_queries,) = jax_export.symbolic_shape("m")
  shape = (queries.shape[0], num_queries, *queries.shape[2:])

  @jax.jit
  def read(arrays: list[jax.Array], queries: jax.Array) -> typing.Any:
    return predict(jax.tree.unflatten(structure, arrays), queries)

  specs = [jax.ShapeDtypeStruct(jnp.shape(x), x.dtype) for x in arrays]
  program = jax_export.export(read, platforms=platforms)(
    specs, jax.ShapeDtypeStruct(shape, queries.dtype)
  )
  return bytes(program.serialize())
