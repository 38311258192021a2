"""TFDS data sets that are prepared on first use, without TensorFlow."""

import sys

from etils import epath
import tensorflow_datasets as tfds


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  """Whether a data set is there as a whole, in the format that is read here."""
  return (
    builder.data_path.exists()  # else the next line warns of it
    and builder.is_prepared()
    and tfds.core.FileFormat.ARRAY_RECORD in builder.info.available_file_formats()
  )


def prepare(
  builder: tfds.core.GeneratorBasedBuilder, manual_dir: epath.PathLike
) -> None:
  """Writes a data set; what a preparation that was stopped has left is made again.

  Args:
    builder: with array_record as its file format.
    manual_dir: holds the files that are downloaded by hand.
  """
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(
      manual_dir=manual_dir, download_mode=tfds.GenerateMode.REUSE_CACHE_IF_EXISTS
    )
  )
