"""Preparation of TFDS data sets without TensorFlow."""

import contextlib
import io
import sys

from etils import epath
import tensorflow_datasets as tfds

from experiments.common.errors import DataError


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  """Reports whether a data set is complete and stored as array_record files."""
  return (
    builder.data_path.exists()  # otherwise the next line logs a warning
    and builder.is_prepared()
    and tfds.core.FileFormat.ARRAY_RECORD in builder.info.available_file_formats()
  )


def prepare(
  builder: tfds.core.GeneratorBasedBuilder, manual_dir: epath.PathLike
) -> None:
  """Prepares a data set; files of an interrupted preparation are replaced.

  Args:
    builder: a builder with array_record as its file format.
    manual_dir: the folder of the files that are downloaded by hand.

  Raises:
    DataError: if the files are malformed, or if the data set cannot be written.
  """
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  print(f"preparing {builder.name} in {builder.data_path}; nothing is downloaded")
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
