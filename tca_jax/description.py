"""Descriptions of Flax modules as JSON data, and modules from descriptions.

A module is described by the name of its class and by its fields; a data type and an
activation function by a name:

  {"class": "MLP",
   "fields": {"features": [64, 64], "activation": {"function": "elu"},
              "dtype": {"dtype": "float32"}}}

The names are looked up in fixed tables, and in the classes that a caller gives. No code
in a description is executed.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
import types
import typing

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tca_jax.modules import embedders
from tca_jax.modules import growing
from tca_jax.modules import heads
from tca_jax.modules import interface
from tca_jax.modules import layers
from tca_jax.modules import read_outs
from tca_jax.modules import relative
from tca_jax.modules import retreever

__all__ = ["build", "describe", "is_plain"]

_Classes = Mapping[str, type[nn.Module]]

# The classes, functions and data types that a description may name.
_CLASSES: _Classes = {
  name: thing
  for module in (
    embedders, growing, heads, interface, layers, read_outs, relative, retreever
  )
  for name in module.__all__
  if isinstance(thing := getattr(module, name), type) and issubclass(thing, nn.Module)
}  # fmt: skip
_FUNCTIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
  **{
    name: getattr(nn, name)
    for name in (
      "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu",
      "log_sigmoid", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign",
      "softplus", "tanh",
    )
  },
  "cos": jnp.cos,
  "sin": jnp.sin,
}  # fmt: skip
_DTYPES: Mapping[str, typing.Any] = {
  name: getattr(jnp, name)
  for name in (
    "bfloat16", "float16", "float32", "float64", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64",
  )
}  # fmt: skip


def describe(module: nn.Module, where: str = "model") -> dict[str, typing.Any]:
  """Describes a module and its fields.

  A field is left out if it cannot be described and has the default of its class, such
  as the initialiser of `nn.Dense`.

  Args:
    module: the module, of any class. Its fields may be modules, numbers, strings, None,
      data types, activation functions of `jax.nn`, and sequences of these.
    where: the name of the module in error messages.

  Returns:
    JSON data, from which `build` makes the same module. Sequences become tuples.

  Raises:
    ValueError: if a field cannot be described, or if `build` would refuse its value.

  >>> describe(layers.Encoder(num_layers=2))["fields"]["num_layers"]
  2
  """
  if not isinstance(module, nn.Module):
    raise ValueError(f"{where} must be a flax.linen.Module, got {_shown(module)}")
  classes = dict(_CLASSES)
  description = _describe(module, where, classes)
  _build(description, where, classes)
  return description


def build(
  description: typing.Any,
  modules: Iterable[type[nn.Module]] = (),
  where: str = "model",
) -> nn.Module:
  """Builds the module that `describe` has described.

  Args:
    description: JSON data.
    modules: the classes that the description may name, beside those of this package.
    where: the name of the module in error messages.

  Returns:
    The module.

  Raises:
    ValueError: if modules contains something else than modules or a name twice; if the
      description has an unknown class, field, function or data type, or a value of
      another type than that of its field.

  >>> build({"class": "Encoder", "fields": {"num_layers": 2}}).num_layers
  2
  """
  classes = dict(_CLASSES)
  for kind in modules:
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
      raise ValueError(
        f"modules must be classes of flax.linen.Module, got {_shown(kind)}"
      )
    _add_class(kind, classes)
  try:
    module = _build(description, where, classes)
  except RecursionError:
    raise ValueError(f"{where} is nested too deeply") from None
  if not isinstance(module, nn.Module):
    raise ValueError(f"{where} must describe a module, got {_shown(module)}")
  return module


def is_plain(x: typing.Any) -> bool:
  """Returns whether a value is a JSON value without parts: finite, if it is a number."""
  if isinstance(x, float):
    return math.isfinite(x)
  return x is None or isinstance(x, bool | int | str)


def _add_class(kind: type[nn.Module], classes: dict[str, type[nn.Module]]) -> None:
  if classes.setdefault(kind.__name__, kind) is not kind:
    raise ValueError(f"two classes of modules have the name {kind.__name__}")


def _describe(
  x: typing.Any, where: str, classes: dict[str, type[nn.Module]]
) -> typing.Any:
  """Describes a module or the value of a field; adds the classes of modules."""
  if isinstance(x, nn.Module):
    _add_class(type(x), classes)
    fields = {}
    for field in _fields(type(x)).values():
      value = getattr(x, field.name)
      if field.name == "name" and value is None:
        continue
      try:
        fields[field.name] = _describe(value, f"{where}.{field.name}", classes)
      except ValueError:
        if value is not field.default:
          raise
    return {"class": type(x).__name__, "fields": fields}
  if is_plain(x):
    return x
  if isinstance(x, list | tuple):
    return [_describe(part, f"{where}[{i}]", classes) for i, part in enumerate(x)]
  for name, function in _FUNCTIONS.items():
    if x is function:
      return {"function": name}
  for name, dtype in _DTYPES.items():
    if x is dtype or (_is_dtype(x) and jnp.dtype(x) == dtype):
      return {"dtype": name}
  raise ValueError(
    f"{where} must be a module, a finite number, a string, None, a data type, one of the"
    f" functions {', '.join(_FUNCTIONS)}, or a sequence of these; got {_shown(x)}"
  )


def _is_dtype(x: typing.Any) -> bool:
  return isinstance(x, np.dtype) or (isinstance(x, type) and issubclass(x, np.generic))


def _build(x: typing.Any, where: str, classes: _Classes) -> typing.Any:
  """Builds a module or the value of a field."""
  if is_plain(x):
    return x
  if isinstance(x, list):
    return tuple(_build(part, f"{where}[{i}]", classes) for i, part in enumerate(x))
  match x:
    case {"class": str(name), "fields": dict(fields), **rest} if not rest:
      return _build_module(
        _named(name, "class", classes, where), fields, where, classes
      )
    case {"dtype": str(name), **rest} if not rest:
      return _named(name, "dtype", _DTYPES, where)
    case {"function": str(name), **rest} if not rest:
      return _named(name, "function", _FUNCTIONS, where)
  raise ValueError(f"{where} must describe a module or a value, got {_shown(x)}")


def _named(
  name: str, kind: str, table: Mapping[str, typing.Any], where: str
) -> typing.Any:
  if name in table:
    return table[name]
  hint = "; pass the class in modules" if kind == "class" else ""
  raise ValueError(f"{where} has the unknown {kind} {name!r}{hint}")


def _build_module(
  kind: type[nn.Module], described: dict[str, typing.Any], where: str, classes: _Classes
) -> nn.Module:
  fields, hints = _fields(kind), _type_hints(kind)
  values = {}
  for name, part in described.items():
    if name not in fields:
      raise ValueError(
        f"{where} has the unknown field {name!r}; {kind.__name__} has {', '.join(fields)}"
      )
    values[name] = _build(part, f"{where}.{name}", classes)
    if name in hints and not _fits(values[name], hints[name]):
      raise ValueError(
        f"{where}.{name} must be {_readable(hints[name])}, got {_shown(values[name])}"
      )
  for name, field in fields.items():
    required = field.default is field.default_factory is dataclasses.MISSING
    if required and name not in values:
      raise ValueError(f"{where} lacks the field {name!r} of {kind.__name__}")
  try:
    return kind(**values)
  except Exception as error:
    reason = " ".join(str(error).split())
    raise ValueError(f"{where}: {kind.__name__} cannot be built: {reason}") from error


def _fields(kind: type[nn.Module]) -> dict[str, dataclasses.Field]:
  """The fields that a module is made from; Flax adds the parent itself."""
  fields = {x.name: x for x in dataclasses.fields(kind) if x.init}
  del fields["parent"]
  return fields


@functools.cache
def _type_hints(kind: type[nn.Module]) -> dict[str, typing.Any]:
  """The types of the fields of this package's classes; others may have loose ones."""
  return typing.get_type_hints(kind) if _CLASSES.get(kind.__name__) is kind else {}


def _fits(x: typing.Any, hint: typing.Any) -> bool:
  """Whether a value has the type of a field."""
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Literal:
    return x in arguments
  if origin in (typing.Union, types.UnionType):
    return any(_fits(x, argument) for argument in arguments)
  if origin is Sequence:
    return isinstance(x, tuple) and all(_fits(part, arguments[0]) for part in x)
  if origin is Callable:
    return callable(x) and not isinstance(x, type)
  if hint in (int, float):
    return isinstance(x, int | hint) and not isinstance(x, bool)
  checkable = isinstance(hint, type) and hint is not typing.Any
  return isinstance(x, hint) if checkable else True


def _readable(hint: typing.Any) -> str:
  return hint.__name__ if isinstance(hint, type) else str(hint)


def _shown(x: typing.Any) -> str:
  """A value in one line of an error message."""
  return " ".join(repr(x).split())[:100]
