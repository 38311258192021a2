"""Preparation of TFDS data sets without TensorFlow."""

import sys

from etils import epath
import tensorflow_datasets as tfds


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
  """
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=manual_dir, download_mode=tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
    )
  )
