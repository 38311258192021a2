"""A context that grows by batches of points, as a trained model reads it."""

import typing

import jax
import numpy as np

import tca_jax

CROWDED = 0.75  # share of the leaf slots above which a rebuild adds some


class GrowingContext:
  """A context of a model, into which batches of points are inserted.

  If points are refused, because the leaf slots near them are taken, the tree is rebuilt,
  and they are inserted again. If more than `CROWDED` of all leaf slots are taken, the
  rebuilt tree has b times as many, otherwise as many as before.

  Attributes:
    growing: the memories, a batch of one context; None before the first batch.
    num_rebuilds: number of times that the tree was rebuilt.
  """

  def __init__(
    self,
    model: tca_jax.ReTreever,
    params: typing.Any,
    batch_size: int,
    growing: tca_jax.GrowingMemory | None = None,
    num_rebuilds: int = 0,
    capacity: int | None = None,
  ):
    """Continues from a memory, or starts without points.

    Args:
      model: a model of scattered points, whose contexts can grow.
      params: its parameters.
      batch_size: largest number of points in a batch.
      growing: a memory of the same model.
      num_rebuilds: the attribute that belongs to the memory.
      capacity: the smallest number of leaf slots of a new memory; None: twice that of
        the first points.
    """
    self.growing, self.num_rebuilds = growing, num_rebuilds
    self._model, self._batch_size = (model, params), batch_size
    self._capacity = capacity

  @property
  def num_points(self) -> int:
    """Number of points in the memory."""
    return 0 if self.growing is None else int(self.growing.tree.num_valid[0])

  def insert(self, coords: np.ndarray, values: np.ndarray) -> None:
    """Inserts points.

    Args:
      coords: `[K, C]`, K at most the batch size; the first points may be more.
      values: `[K, E]`.
    """
    if self.growing is None:
      self.growing = _index(
        *self._model, coords[None], values[None], capacity=self._capacity
      )
      return
    missing = np.arange(self._batch_size)[None] < len(coords)
    # One compilation for all batches.
    padding = [(0, self._batch_size - len(coords)), (0, 0)]
    new = [np.pad(x, padding)[None] for x in (coords, values)]
    while True:
      self.growing, numbers = _insert(*self._model, self.growing, *new, missing)
      missing &= np.asarray(numbers) < 0
      if not missing.any():
        return
      capacity = self.growing.capacity
      if self.num_points > CROWDED * capacity:
        capacity *= self.growing.tree.branch_factor
      self.growing = _rebuild(*self._model, self.growing, capacity=capacity)
      self.num_rebuilds += 1


def _compiled(method: str, **options: typing.Any) -> typing.Any:
  """A method of models as a function, compiled once for a model and for shapes."""

  def call(model: typing.Any, *inputs: typing.Any, **given: typing.Any) -> typing.Any:
    return model.apply(*inputs, method=method, **given)

  return jax.jit(call, static_argnums=0, **options)


_index = _compiled("index_growing", static_argnames="capacity")
_insert = _compiled("insert", donate_argnums=2)
_rebuild = _compiled("rebuild", static_argnames="capacity")
