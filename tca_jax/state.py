"""Storage of classes of arrays with `flax.serialization`."""

import dataclasses
import typing

from flax import serialization

__all__ = ["register"]


def register(kind: typing.Any) -> None:
  """Lets `flax.serialization` store a class of arrays, by the names of its fields.

  Args:
    kind: a `chex.dataclass`.
  """
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
