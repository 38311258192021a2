"""Files and folders of this machine, and of buckets such as "gs://bucket/folder".

A bucket has objects instead of files. An object appears when it is complete. It cannot
be appended to, and a folder cannot be renamed. Orbax and others need these, so they
write to a temporary folder of this machine, whose files are then copied to the bucket.

Paths are those of the package etils. It accesses buckets through the packages fsspec and
gcsfs or s3fs, or through TensorFlow if that is installed.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import hashlib
import importlib.util
import os
import re
import tempfile
import typing

__all__ = [
  "SCHEMES",
  "absolute",
  "check_files",
  "copy_files",
  "file_digests",
  "files",
  "in_bucket",
  "local_copy",
  "make_folder",
  "replace_folder",
  "scheme",
  "temporary_folder",
  "to_path",
]

#: The package that fsspec needs for each kind of bucket.
SCHEMES = {"gs": "gcsfs", "s3": "s3fs"}

# Two letters or more, because "C:/models" is a path of Windows.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def scheme(path: typing.Any) -> str | None:
  """Returns the scheme of a path, such as "gs"; None for a path of this machine.

  Args:
    path: a string or a path object.

  >>> scheme("gs://bucket/model"), scheme("file:/model"), scheme("runs/model")
  ('gs', 'file', None)
  """
  found = _SCHEME.match(os.fspath(path))
  return found[1] if found else None


def in_bucket(path: typing.Any) -> bool:
  """Reports whether a path is in a bucket.

  Args:
    path: a string or a path object.
  """
  return scheme(path) in SCHEMES


def to_path(path: typing.Any) -> typing.Any:
  """Converts a user's path to an `epath.Path`.

  Args:
    path: a string or a path object.

  Raises:
    ModuleNotFoundError: if a package is missing; the message names it.
    ValueError: if the path is neither of this machine nor of a bucket.
  """
  name, text = scheme(path), os.fspath(path)
  if name is not None and not re.match(f"({'|'.join(SCHEMES)})://[^/]", text):
    allowed = " or ".join(f"{x}://bucket/name" for x in SCHEMES)
    raise ValueError(
      f"a path must be that of this machine, such as runs/name, or {allowed}; got {text}"
    )
  if name is not None and importlib.util.find_spec("tensorflow") is None:
    _check_packages(name)
  from etils import epath  # noqa: PLC0415

  return epath.Path(path)


def _check_packages(name: str) -> None:
  """Raises an error if fsspec cannot access a kind of bucket."""
  try:
    import fsspec  # noqa: PLC0415

    fsspec.get_filesystem_class(name)
  except ImportError:
    raise ModuleNotFoundError(
      f"{name}:// needs the package {SCHEMES[name]}; install it with pip install fsspec"
      f" {SCHEMES[name]}",
      name=SCHEMES[name],
    ) from None


def absolute(path: typing.Any) -> typing.Any:
  """Returns the absolute path of a file or a folder.

  Args:
    path: an `epath.Path`.
  """
  return path if in_bucket(path) else path.resolve()


@contextlib.contextmanager
def temporary_folder() -> Iterator[typing.Any]:
  """A new folder of this machine, deleted at the end; an `epath.Path`."""
  with tempfile.TemporaryDirectory(prefix="tca_jax-") as folder:
    yield to_path(folder)


@contextlib.contextmanager
def local_copy(folder: typing.Any) -> Iterator[typing.Any]:
  """A folder itself, or a temporary copy of a folder in a bucket.

  Args:
    folder: an `epath.Path`.
  """
  if not in_bucket(folder):
    yield folder
    return
  with temporary_folder() as copy:
    copy_files(folder, copy)
    yield copy


def files(folder: typing.Any) -> Iterator[typing.Any]:
  """Yields the paths of all files in a folder and the folders in it.

  Args:
    folder: an `epath.Path`.
  """
  for path in folder.iterdir():
    if path.is_dir():
      yield from files(path)
    else:
      yield path


def make_folder(folder: typing.Any) -> None:
  """Creates a folder if it does not exist; in a bucket, files need no folder.

  Args:
    folder: an `epath.Path`.
  """
  if not in_bucket(folder):  # there, a misspelt bucket would be created
    folder.mkdir(parents=True, exist_ok=True)


def copy_files(source: typing.Any, target: typing.Any, last: str = "") -> None:
  """Copies all files of a folder, over files of the same names.

  Args:
    source: the folder, an `epath.Path`.
    target: the folder to copy to, an `epath.Path`; other files in it stay.
    last: the name of a file that is copied after all others; empty: in any order.

  Raises:
    OSError: if a file cannot be copied, whatever error the package of a bucket raises.
  """
  for file in sorted(files(source), key=lambda file: file == source / last):
    copy = target / file.relative_to(source)
    make_folder(copy.parent)
    try:
      file.copy(copy, overwrite=True)
    except OSError:
      raise
    except Exception as error:
      reason = f"{type(error).__name__}: {error}"
      raise OSError(f"{copy} cannot be written: {reason}") from None


def replace_folder(source: typing.Any, target: typing.Any, last: str) -> None:
  """Copies a folder, and deletes what was there.

  The file `last` is deleted first and copied last. A target that has it is complete, even
  if the process was killed.

  Args:
    source: the folder, an `epath.Path`.
    target: the folder to write, an `epath.Path`.
    last: the name of the file that marks a complete folder.
  """
  if target.exists():
    (target / last).unlink(missing_ok=True)
    target.rmtree(missing_ok=True)  # in a bucket, an empty folder does not exist
  copy_files(source, target, last)


def file_digests(folder: typing.Any) -> dict[str, str]:
  """Computes the checksums of all files in a folder.

  Args:
    folder: a path object.

  Returns:
    SHA-256 as a hexadecimal number, by the path of the file relative to the folder.
  """
  return {
    file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
    for file in sorted(files(folder))
  }


def check_files(
  folder: typing.Any, digests: Mapping[str, str], original: typing.Any = None
) -> None:
  """Raises an error unless files are as they were when their checksums were computed.

  Args:
    folder: a path object.
    digests: the result of `file_digests`. Other files in the folder are not checked.
    original: the folder to name in errors, if this one is a copy.

  Raises:
    ValueError: if a file is missing, or if it has another checksum.
  """
  for name, digest in digests.items():
    file, named = folder / name, (original or folder) / name
    if not file.exists() or file.is_dir():
      raise ValueError(f"{named} is missing")
    if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
      raise ValueError(f"{named} is damaged or of another model")
