"""Storage of classes of arrays: by `flax.serialization`, or as JSON data and arrays."""

from collections.abc import Sequence
import dataclasses
import typing

from flax import serialization
import jax

__all__ = ["build", "describe", "register"]

_KINDS: dict[str, typing.Any] = {}  # the registered classes, by name


def register(kind: typing.Any) -> None:
  """Lets `flax.serialization` and `describe` store a class of arrays.

  Args:
    kind: a `chex.dataclass`, whose fields are arrays, None, or of registered classes.
  """
  _KINDS[kind.__name__] = kind
  names = [field.name for field in dataclasses.fields(kind)]

  def to_state(x: typing.Any) -> dict[str, typing.Any]:
    return {name: serialization.to_state_dict(getattr(x, name)) for name in names}

  def from_state(x: typing.Any, state: dict[str, typing.Any]) -> typing.Any:
    parts = {
      name: serialization.from_state_dict(getattr(x, name), state[name], name=name)
      for name in names
    }
    return dataclasses.replace(x, **parts)

  serialization.register_serialization_state(kind, to_state, from_state)


def describe(x: typing.Any) -> tuple[typing.Any, list[jax.Array]]:
  """Describes an object by the names of its class and of its fields.

  Args:
    x: an object of a registered class.

  Returns:
    JSON data, in which a number stands for an array; and the arrays.

  Raises:
    ValueError: if a part of x is neither of a registered class nor an array.

  >>> from tca_jax.memory import FlatMemory
  >>> describe(FlatMemory(keys=jax.numpy.ones(1), values=jax.numpy.ones(2), mask=None))[0]
  {'class': 'FlatMemory', 'fields': {'keys': 0, 'values': 1, 'mask': None}}
  """
  arrays: list[jax.Array] = []

  def visit(x: typing.Any) -> typing.Any:
    if x is None:
      return None
    name = type(x).__name__
    if _KINDS.get(name) is type(x):
      fields = [field.name for field in dataclasses.fields(x)]
      return {
        "class": name,
        "fields": {field: visit(getattr(x, field)) for field in fields},
      }
    if not hasattr(x, "dtype"):
      raise ValueError(
        f"a memory must have parts of the classes {', '.join(sorted(_KINDS))}, and"
        f" arrays, got {name}"
      )
    arrays.append(x)
    return len(arrays) - 1

  return visit(x), arrays


def build(description: typing.Any, arrays: Sequence[typing.Any]) -> typing.Any:
  """Builds the object that `describe` has described.

  Raises:
    KeyError: if a class has another name, as in a description of a newer version.
    TypeError: if a class has other fields.
  """
  if description is None:
    return None
  if isinstance(description, int):
    return arrays[description]
  fields = description["fields"]
  parts = {name: build(part, arrays) for name, part in fields.items()}
  return _KINDS[description["class"]](**parts)
