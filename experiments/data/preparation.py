"""Preparation of TFDS data sets without TensorFlow."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import io
import sys
import typing

from etils import epath
import tensorflow_datasets as tfds

from experiments.common.errors import DataError
from tca_jax.checkpoint import first_line

BuilderType = typing.TypeVar("BuilderType", bound=tfds.core.DatasetBuilder)


def build(make: Callable[[], BuilderType], folder: epath.PathLike) -> BuilderType:
  """Makes a builder, which reads the description of a prepared data set.

  Args:
    make: makes the builder.
    folder: the folder of the data set, for the error.

  Raises:
    DataError: if the description is damaged.
  """
  try:
    return make()
  except Exception as error:  # TFDS has no error of its own for damaged files
    raise _damaged(folder, "its description", error) from error


def records(
  builder: tfds.core.DatasetBuilder, split: str
) -> Iterator[dict[str, typing.Any]]:
  """Reads the records of a prepared data set.

  Args:
    builder: a builder with a prepared data set.
    split: the TFDS split.

  Raises:
    DataError: if a file is missing or damaged.
  """
  try:
    yield from builder.as_data_source(split)
  except Exception as error:  # array_record has no error of its own
    files = sorted(builder.info.splits[split].filenames)
    names = f"{files[0]} ... {files[-1]}" if len(files) > 1 else files[0]
    raise _damaged(builder.data_path, names, error) from error


def check(builder: tfds.core.DatasetBuilder) -> None:
  """Checks that the files of all splits exist and are whole; reads little of them.

  Args:
    builder: a builder with a prepared data set.

  Raises:
    DataError: if a file is missing or cut short.
  """
  for split, info in builder.info.splits.items():
    if info.num_examples:
      next(records(builder, f"{split}[{info.num_examples - 1}:]"))


def _damaged(folder: epath.PathLike, what: str, error: Exception) -> DataError:
  return DataError(
    f"{folder}: {what} cannot be read ({first_line(error)}); delete this folder and run"
    " the same command again, which prepares the data set again"
  )


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  """Reports whether a data set is complete and stored as array_record files."""
  return (
    builder.data_path.exists()  # otherwise the next line logs a warning
    and builder.is_prepared()
    and tfds.core.FileFormat.ARRAY_RECORD in builder.info.available_file_formats()
  )


def prepare(
  builder: tfds.core.GeneratorBasedBuilder, manual_dir: epath.PathLike, source: str
) -> None:
  """Prepares a data set; files of an interrupted preparation are replaced.

  Args:
    builder: a builder with array_record as its file format.
    manual_dir: the folder of the files that are downloaded by hand.
    source: the files or packages that are read, for the user.

  Raises:
    DataError: if the files are malformed, or if the data set cannot be written.
  """
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  folder = builder.data_path
  print(f"preparing {builder.name} in {folder} from {source}; nothing is downloaded")
  try:
    # TFDS would print that it downloads.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
          manual_dir=manual_dir, download_mode=tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
        )
      )
  except OSError as error:
    raise DataError(
      f"{builder.name} cannot be prepared in {builder.data_path}: {error}"
    ) from error
