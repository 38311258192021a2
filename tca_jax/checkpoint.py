"""Save a model with its parameters in a folder, and load both from the folder alone.

The folder contains two things:

  model.json   the modules and their fields, the names, shapes and dtypes of the
               parameters, the checksums of their files, and data of the caller
  parameters/  the parameters, an Orbax checkpoint

The file names classes, functions and data types, and `load` looks these names up in
fixed tables. Nothing is pickled, and no code in the file is executed.

This module needs the extra `tca-jax[checkpoint]`. Folders may be in a bucket, such as
"gs://bucket/model" or "s3://bucket/model", see `tca_jax.storage`.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import json
import secrets
import typing
import warnings

from flax import linen as nn
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from tca_jax import checks
from tca_jax import description
from tca_jax import storage
from tca_jax.modules.embedders import PlacelessEmbedder

__all__ = [
  "FILE",
  "check_path",
  "first_line",
  "load",
  "save",
  "warn_outside_range",
]

#: The file of a saved model that describes it. A folder with this file is complete.
FILE = "model.json"

_FORMAT = {"format": "tca_jax model", "version": 1}
_PARAMETERS = "parameters"  # the folder of the Orbax checkpoint
_PART = "params"  # the name of the parameters in the Orbax checkpoint
_LARGEST_VALUE = 30.0  # the largest of the shipped models' data is 29
_warned: set[str] = set()
_KEYS = {*_FORMAT, "model", "parameters", "files", "info"}


def save(
  folder: typing.Any,
  model: nn.Module,
  params: Mapping[str, typing.Any],
  *,
  overwrite: bool = False,
  **info: typing.Any,
) -> None:
  """Saves a model and its parameters in a new folder.

  The folder appears when everything is written. If saving fails, it is not created, and
  a folder to be overwritten stays as it is. After `jax.distributed.initialize`, all
  processes call the function together, with the same arguments.

  Args:
    folder: the path of the folder: a string or a path object. "~" is the home folder.
    model: a module of this package, or of a class of your own. Its fields may be
      modules, numbers, strings, None, data types, activation functions of `jax.nn`, and
      sequences of these. A list is loaded as a tuple.
    params: the variables of the model, such as the result of `model.init`: a dict of
      arrays, or of such dicts.
    overwrite: whether an existing folder is replaced. Only a saved model or an empty
      folder is replaced, with all files in it.
    **info: JSON data that a user of the model needs, such as the mean and the standard
      deviation of the values. Tuples are loaded as lists.

  Raises:
    FileExistsError: if the folder exists and must not be replaced.
    ModuleNotFoundError: if Orbax is not installed.
    ValueError: if a field of the model, a parameter or an item of info cannot be
      stored, or if the path has a character that Orbax takes for a pattern; the message
      names it.
  """
  ocp, path = _orbax(folder)
  check_path(path)
  arrays = _checked_arrays(params, "params")
  content = {
    **_FORMAT,
    "model": description.describe(model),
    "parameters": _signatures(arrays),
    "info": _checked_json(info, "info"),
  }
  if path.exists():
    if not overwrite:
      raise FileExistsError(f"{path} exists; overwrite=True replaces a saved model")
    if not path.is_dir() or not _is_ours(path):
      raise FileExistsError(f"{path} is not replaced, because it has no {FILE}")

  if storage.in_bucket(path):
    if jax.process_count() > 1:
      raise ValueError(f"{path} is in a bucket, where only a single process can save")
    with storage.temporary_folder() as part:
      _write(ocp, part, arrays, content)
      storage.replace_folder(part, path, last=FILE)
    return

  # The suffixes are random, so that no other folder is in the way, and those of the first
  # process for all.
  number = multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))
  suffix, is_first = f"{int(number):08x}", jax.process_index() == 0
  part, old = (path.with_name(f"{path.name}.{x}-{suffix}") for x in ("part", "old"))
  try:
    if is_first:
      part.mkdir(parents=True)
    _write(ocp, part, arrays, content)
    if not is_first:
      return
    if path.exists():
      path.rename(old)
    part.rename(path)
  except BaseException:
    if old.exists() and not path.exists():
      old.rename(path)
    if part.exists():
      part.rmtree()
    raise
  if old.exists():
    old.rmtree()


def _write(
  ocp: typing.Any,
  folder: typing.Any,
  arrays: typing.Any,
  content: Mapping[str, typing.Any],
) -> None:
  """Writes a saved model into an empty folder, which is about to be moved."""
  checkpoint = folder / _PARAMETERS
  if arrays:  # Orbax refuses an empty dict
    ocp.save_checkpointables(checkpoint, {_PART: arrays})
  if jax.process_index() > 0:
    return  # the first process writes the rest
  # Orbax writes the present path into the files that mark a complete checkpoint. It only
  # checks that they exist.
  for marked in (checkpoint, checkpoint / _PART):
    if (marked / "commit_success.txt").exists():
      (marked / "commit_success.txt").write_text("committed\n")
  content = {**content, "files": storage.file_digests(folder)}
  (folder / FILE).write_text(json.dumps(content, indent=2) + "\n")


def _is_ours(path: typing.Any) -> bool:
  """Reports whether a folder is a saved model, empty, or in a bucket and half-written."""
  names = {x.name for x in path.iterdir()}
  return FILE in names or names <= ({_PARAMETERS} if storage.in_bucket(path) else set())


def load(
  folder: typing.Any, modules: Iterable[type[nn.Module]] = ()
) -> tuple[nn.Module, dict[str, typing.Any], dict[str, typing.Any]]:
  """Loads a model that `save` has written.

  The parameters are checked against the description before they are read. They are
  placed on JAX's default device, whatever the devices of the process that saved them.
  After `jax.distributed.initialize`, all processes call the function together.

  A model of `PointEmbedder` or `SequenceEmbedder` knows only the locations of its
  training. Give its inputs to `warn_outside_range`, too.

  Args:
    folder: the path of the folder: a string or a path object. It may be read-only.
    modules: the classes of modules in the model that are not of this package, such as
      your own embedder.

  Returns:
    The model, its parameters as nested dicts of `jax.Array`, and the info.

  Raises:
    FileNotFoundError: if there is no folder, or no saved model in it.
    ModuleNotFoundError: if Orbax is not installed.
    ValueError: if the folder has another format version, if a file in it is damaged,
      missing or of another model, or if a class, a field or a parameter in the
      description is unknown; the message names it.
  """
  ocp, path = _orbax(folder)
  content = _read(path)
  model = description.build(content["model"], modules, f"{path / FILE}: model")
  with storage.local_copy(path) as local:
    params = _restore(ocp, path, local, content)
  return model, params, content["info"]


def warn_outside_range(
  model: nn.Module,
  info: Mapping[str, typing.Any],
  coords: typing.Any,
  values: typing.Any = None,
  mask: typing.Any = None,
) -> None:
  """Warns if inputs are far from those of a model's training.

  Such a model predicts wrong values, with a spread that is too small. The info of all
  shipped models contains what their training had:

    {"coords": {"axes": ["x"], "range": [[-2, 2]], "unit": "none"},
     "values": {"mean": 0.0, "std": 1.0, "unit": "none"}}

  A coordinate is far outside if its distance to the range of its axis is more than half
  of the width of the range. A value is far outside if it is not in [-30, 30]; the values
  of a model are (value - mean) / std. Each of the two warnings appears once in a process
  for each range or scale. Nothing is checked that the info does not contain. Coordinates
  are not checked if the model has a `PlacelessEmbedder`, because it sees locations
  relative to the query only. Nothing is checked in compiled functions.

  Args:
    model: a model of `load`.
    info: the info of the model.
    coords: `[..., C]`, coordinates of a context or of queries.
    values: `[..., E]`, values of the context as the model receives them; None: no check.
    mask: `[...]` bool, True at valid tokens; None: all are valid.

  Raises:
    ValueError: if the range in the info is not one pair for each axis, or if coords has
      another number of axes.
  """
  arrays = [x for x in (coords, values, mask) if x is not None]
  if checks.is_traced(*arrays):
    return
  known, scale = (
    part if isinstance(part := info.get(name), Mapping) else {}
    for name in ("coords", "values")
  )
  placeless = isinstance(getattr(model, "embedder", None), PlacelessEmbedder)
  if "range" in known and not placeless:
    limits = np.asarray(known["range"], np.float64)
    if limits.ndim != 2 or limits.shape[1] != 2:
      raise ValueError(
        "the range in the info must be [[low, high], ...], one pair for each axis, got"
        f" {known['range']!r}"
      )
    found = _extremes(coords, mask)
    if len(found) != len(limits):
      raise ValueError(
        f"coords must have {len(limits)} axes as in training, got {len(found)}"
      )
    axes = known.get("axes") or range(len(limits))
    for axis, (low, high), (least, most) in zip(axes, limits, found, strict=True):
      slack = (high - low) / 2
      if least < low - slack or most > high + slack:
        _warn_once(
          f"The coordinate {axis} was in [{low:g}, {high:g}] in training",
          f" and is in [{least:g}, {most:g}] here. The model sees absolute locations and"
          " cannot predict there: scale coordinates as in training (unit:"
          f" {known.get('unit')}), or use a relative model.",
        )
        break
  if values is not None and {"mean", "std"} <= scale.keys():
    found = _extremes(values, mask)
    least, most = found[:, 0].min(initial=0), found[:, 1].max(initial=0)
    if max(-least, most) > _LARGEST_VALUE:
      _warn_once(
        "The values of the model are (value - mean) / std with the mean"
        f" {scale['mean']} and the std {scale['std']} (unit: {scale.get('unit')})",
        f" and are in [{least:g}, {most:g}] here, far from those of its training.",
      )


def _extremes(x: typing.Any, mask: typing.Any) -> np.ndarray:
  """The smallest and largest finite numbers of valid rows `[..., C]`, as `[C, 2]`."""
  x = np.asarray(x, np.float64)
  valid = np.isfinite(x)
  if mask is not None:
    valid &= np.asarray(mask)[..., None]
  axes = tuple(range(x.ndim - 1))
  least = np.min(x, axis=axes, where=valid, initial=np.inf)
  most = np.max(x, axis=axes, where=valid, initial=-np.inf)
  return np.stack([least, most], axis=-1)


def _warn_once(known: str, received: str) -> None:
  """Warns, unless the same range or scale has been named before."""
  if known not in _warned:
    _warned.add(known)
    warnings.warn(known + received, stacklevel=3)


def check_path(path: typing.Any) -> None:
  """Raises an error if Orbax cannot save in a folder because of the folder's path.

  Args:
    path: the absolute path of the folder.

  Raises:
    ValueError: if the path contains one of the characters [ * ? or a backslash, which
      Orbax takes for a pattern or a separator.
  """
  if any(character in str(path) for character in "[*?\\"):
    raise ValueError(
      f"the path of a checkpoint must not contain any of [ * ? \\, got {path}"
    )


def first_line(error: BaseException) -> str:
  """Returns the first line of an error's message, without the errors that it caused.

  Orbax raises errors of other errors, with messages of many lines.

  Args:
    error: the error.

  >>> first_line(OSError(28, "No space left on device", "runs/copy"))
  "[Errno 28] No space left on device: 'runs/copy'"
  """
  while error.__cause__ is not None:
    error = error.__cause__
  return (str(error).strip() or repr(error)).splitlines()[0][:600]


# --- Folders and files.


def _orbax(folder: typing.Any) -> tuple[typing.Any, typing.Any]:
  """Orbax, and the folder as the absolute `epath.Path` that Orbax needs."""
  try:
    import etils.epath  # noqa: F401, PLC0415
    from orbax.checkpoint import v1 as ocp  # noqa: PLC0415
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f"a model is saved and loaded with the package {error.name}; install it with"
      ' pip install "tca-jax[checkpoint]"',
      name=error.name,
    ) from None
  return ocp, storage.absolute(storage.to_path(folder).expanduser())


def _read(path: typing.Any) -> dict[str, typing.Any]:
  """Reads the description of a saved model, and checks its outermost level."""
  file = path / FILE
  if not file.exists():
    problem = (
      f"has no {FILE}: it is not a saved model" if path.exists() else "is missing"
    )
    raise FileNotFoundError(f"{path} {problem}")
  try:
    content = json.loads(file.read_text(), parse_constant=_refuse_constant)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{file} is damaged: {error}") from None
  if not isinstance(content, dict) or content.get("format") != _FORMAT["format"]:
    raise ValueError(f"{file} does not describe a model of tca_jax")
  if content.get("version") != _FORMAT["version"]:
    raise ValueError(
      f"{file} has the format version {content.get('version')!r}; this version of"
      f" tca_jax reads the format version {_FORMAT['version']}"
    )
  if content.keys() != _KEYS:
    raise ValueError(
      f"{file} is damaged: it must have the keys {sorted(_KEYS)}, got {sorted(content)}"
    )
  for key in ("parameters", "files", "info"):
    if not isinstance(content[key], dict):
      raise ValueError(f"{file} is damaged: {key} must be an object")
  return content


def _refuse_constant(name: str) -> typing.NoReturn:
  raise ValueError(f"{name} is not JSON")


def _restore(
  ocp: typing.Any,
  path: typing.Any,
  local: typing.Any,
  content: Mapping[str, typing.Any],
) -> dict[str, typing.Any]:
  """Restores the parameters from a local copy, if they and their files are as described."""
  described, checkpoint = content["parameters"], path / _PARAMETERS
  if not described and not (local / _PARAMETERS).exists():
    return {}
  # First, because Orbax logs what goes wrong with a damaged file.
  storage.check_files(local, content["files"], original=path)
  try:
    stored = ocp.checkpointables_metadata(local / _PARAMETERS).metadata[_PART]
    if stored is None:
      raise ValueError("its metadata is damaged")
    found = _signatures(stored)
  except Exception as error:
    raise ValueError(f"{checkpoint} cannot be read: {first_line(error)}") from error
  for name in [*described, *found]:
    if name not in found:
      raise ValueError(f"{checkpoint} lacks the parameter {name}")
    if name not in described:
      raise ValueError(f"{checkpoint} has the unexpected parameter {name}")
    if found[name] != described[name]:
      raise ValueError(
        f"{checkpoint} has the parameter {name} as {found[name]}, the model needs"
        f" {described[name]}"
      )
  for x in jax.tree.leaves(stored):
    if jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
      raise ValueError(f"{checkpoint} has parameters of {x.dtype}; set jax_enable_x64")
  # Views of one number: shapes and dtypes without memory.
  like = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), stored)
  try:
    arrays = ocp.load_checkpointables(local / _PARAMETERS, {_PART: like})[_PART]
  except Exception as error:
    raise ValueError(f"{checkpoint} cannot be read: {first_line(error)}") from error
  return jax.tree.map(jnp.asarray, arrays)


# --- Parameters and info.


def _signatures(tree: typing.Any) -> dict[str, str]:
  """Dtype and shape of each array, by its path."""
  return {
    jax.tree_util.keystr(keys, simple=True, separator="/"): (
      f"{np.dtype(x.dtype).name}{list(x.shape)}"
    )
    for keys, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def _checked_arrays(x: typing.Any, where: str) -> typing.Any:
  """Nested dicts of NumPy arrays, or a ValueError."""
  if isinstance(x, Mapping):
    for name in x:
      if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"{where} must have names without '/' as keys, got {name!r}")
    return {name: _checked_arrays(part, f"{where}/{name}") for name, part in x.items()}
  if isinstance(x, jax.Array | np.ndarray | np.generic) and (
    jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool
  ):
    return np.asarray(x)
  raise ValueError(f"{where} must be an array of numbers, got {type(x).__name__}")


def _checked_json(x: typing.Any, where: str) -> typing.Any:
  """JSON data, or a ValueError."""
  if isinstance(x, dict) and all(isinstance(name, str) for name in x):
    return {name: _checked_json(part, f"{where}[{name!r}]") for name, part in x.items()}
  if isinstance(x, list | tuple):
    return [_checked_json(part, f"{where}[{i}]") for i, part in enumerate(x)]
  if description.is_plain(x):
    return x
  raise ValueError(
    f"{where} must be JSON data: None, a bool, a finite number, a string, a list, or a"
    f" dict with strings as keys; got {type(x).__name__} {str(x)[:100]!r}"
  )
