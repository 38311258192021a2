"""Human activity: the parser, segments and splits, TFDS builders, missing data."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from experiments.common.errors import DataError
from experiments.data import packages
from experiments.data.human_activity import builders
from experiments.data.human_activity import recordings as recordings_lib
from experiments.data.human_activity import segments as segments_lib
from tests import activity_files
from tests.activity_files import LAYOUTS


def _parse(dataset, lines):
  source = LAYOUTS[dataset]
  return recordings_lib.read_recordings(
    lines, source.COLUMNS, source.HAS_HEADER, source.FILE
  )


def _recordings(lengths, persons):
  """Recordings in which each row has a different value."""
  first = np.concatenate([[0], np.cumsum(lengths)])
  return [
    recordings_lib.Recording(
      person=person,
      time=7 + 3 * np.arange(length),
      values=np.arange(row, row + length, dtype=np.float32)[:, None],
      labels=np.arange(length) % 7,
    )
    for row, length, person in zip(first, lengths, persons, strict=False)
  ]


@pytest.fixture(scope="module")
def watch_dir(tmp_path_factory):
  """The folder of the watch's prepared recordings."""
  path = tmp_path_factory.mktemp("watch")
  builders.load_recordings("watch", path, path)
  return path


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_read_recordings_merges_measurements_of_a_tick(dataset):
  measurements = [
    ("A01", 0, 0, (1, 2, 3), "walking"),
    ("A01", 0, 20_000, (3, 4, 6), "walking"),
    ("B02", 3, 900_000_000, (9, 9, 9), "on all fours"),
    ("A01", 2, 49_999, (7, 8, 9), "walking"),
    ("A01", 1, 150_000, (-1, 0, 1), "falling"),  # 1.5 and 2.5 are both rounded to 2
    ("A01", 3, 250_000, (5, 5, 5), "lying"),
    ("B02", 3, 900_340_000, (8, 8, 8), "on all fours"),
    ("A01", 0, 10_060_000, (0, 0, 0), "sitting down"),
  ]
  first, second = _parse(dataset, activity_files.lines(dataset, measurements))
  assert (first.person, second.person) == (0, 1)
  assert first.time.tolist() == [0, 2, 101] and second.time.tolist() == [0, 3]
  assert first.labels.tolist() == [0, 1, 3] and second.labels.tolist() == [5, 5]
  assert first.values.dtype == np.float32 and first.values.shape == (3, 24)
  none, one = [0, 0, 0], [1, 1, 1]
  assert first.values.tolist() == [
    [2, 3, 4.5, *none, 7, 8, 9, *none, *one, *none, *one, *none],
    [*none, -1, 0, 1, *none, 5, 5, 5, *none, *one, *none, *one],
    [*none, *none, *none, *none, *one, *none, *none, *none],
  ]
  np.testing.assert_array_equal(
    builders.PersonActivity.channels(first.values[2:]), [[0] * 3 + [np.nan] * 9]
  )


def test_read_recordings_maps_every_label_to_its_class():
  expected = {
    "walking": 0,
    "falling": 1,
    "lying down": 2,
    "lying": 2,
    "sitting down": 3,
    "sitting": 3,
    "standing up from lying": 4,
    "standing up from sitting": 4,
    "standing up from sitting on the ground": 4,
    "on all fours": 5,
    "sitting on the ground": 6,
  }
  measurements = [
    ("C01", 0, 100_000 * i, (0, 0, 0), label) for i, label in enumerate(expected)
  ]
  (recording,) = _parse("uci", activity_files.lines("uci", measurements))
  assert recording.labels.tolist() == list(expected.values())
  assert recording.person == 2 and len(recordings_lib.CLASSES) == 7
  assert set(recordings_lib.LABELS) == set(expected)


@pytest.mark.parametrize("dataset", LAYOUTS)
@pytest.mark.parametrize(
  "change, message",
  [
    (("walking", "standing up"), r"label must be one of .*'falling'.*got 'standing up'"),
    (("A01", "F01"), "sequence must be one of A01 ... E05, got 'F01'"),
    (("010-000-024-033", "010"), r"tag must be one of \('010-000-024-033'.*got '010'"),
    ((str(activity_files.START), "noon"), "'noon'"),
    ((",0.5,", ",one,"), "'one'"),
    ((",0.5,", ",nan,"), r"x, y and z must be finite, got \(.*nan"),
    ((",0.5,", ","), r"must contain 8 values \(.*label\), got 7"),
    (("walking", "walking,"), r"must contain 8 values \(.*label\), got 9"),
  ],
)  # fmt: skip
def test_read_recordings_malformed_line_raises_with_its_number(
  dataset, change, message
):
  good = activity_files.lines(dataset, [("A01", 0, 0, (1, 0.5, 2), "walking")] * 2)
  number = len(good)
  bad = [*good[:-1], good[-1].replace(*change), "\n"]
  assert bad[-2] != good[-1]
  name = LAYOUTS[dataset].FILE
  with pytest.raises(DataError, match=f"{name}, line {number}: .*{message}"):
    _parse(dataset, bad)


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_read_recordings_empty_line_is_skipped(dataset):
  lines = activity_files.lines(dataset, [("A01", 0, 0, (1, 0.5, 2), "walking")] * 2)
  (recording,) = _parse(dataset, [*lines, "\n"])
  assert len(recording.time) == 1


@pytest.mark.parametrize(
  "length, count", [(49, 0), (50, 0), (51, 1), (75, 1), (76, 2), (100, 2), (101, 3)]
)
def test_cut_segments_start_every_25_rows(length, count):
  recordings = _recordings([length, 101], [0, 1])
  owner, start, _ = segments_lib.split_segments(recordings, "random")
  assert np.sum(owner == 0) == count and np.sum(owner == 1) == 3
  segments = segments_lib.cut(recordings, owner, start)
  assert segments.labels.shape == (count + 3, 50)
  np.testing.assert_array_equal(segments.time, [3 * np.arange(50)] * (count + 3))
  first = np.concatenate([25 * np.arange(count), length + 25 * np.arange(3)])
  np.testing.assert_array_equal(segments.values[:, 0, 0], first)
  np.testing.assert_array_equal(np.diff(segments.values[..., 0]), 1)
  np.testing.assert_array_equal(segments.labels[-1], (50 + np.arange(50)) % 7)


@pytest.mark.parametrize("split", segments_lib.SPLITS)
def test_split_segments_parts_have_the_documented_sizes_and_overlaps(split):
  lengths, persons = [700, 1234, 90, 51, 803, 60, 400], [4, 0, 1, 2, 3, 0, 1]
  recordings = _recordings(lengths, persons)
  owner, start, part = segments_lib.split_segments(recordings, split)
  assert len(set(zip(owner.tolist(), start.tolist(), strict=True))) == len(owner)
  total = sum(len(segments_lib.segment_starts(length)) for length in lengths)
  rows, people = [], []
  for i in range(3):
    segments = segments_lib.cut(recordings, owner[part == i], start[part == i])
    rows.append(set(segments.values.ravel().tolist()))
    people.append({persons[i] for i in owner[part == i]})
  counts = np.bincount(part, minlength=3)
  shared = [rows[i] & rows[j] for i, j in ((0, 1), (0, 2), (1, 2))]
  if split == "random":
    assert len(owner) == total and all(shared), "segments of two parts overlap"
    expected = np.diff([0, total * 64 // 100, total * 80 // 100, total])
    assert counts.tolist() == expected.tolist()
    again = segments_lib.split_segments(recordings, split)
    np.testing.assert_array_equal(part, again[2])
  elif split == "person":
    assert len(owner) == total and not any(shared)
    assert people == [{0, 1, 2}, {3}, {4}]
  else:
    assert len(owner) < total and counts.all() and not any(shared)
    first, last = (
      (start + offset) / np.array(lengths)[owner]
      for offset in (0, segments_lib.SEGMENT)
    )
    for i, (low, high) in enumerate(((0, 0.64), (0.64, 0.8), (0.8, 1))):
      assert np.all(first[part == i] > low - 0.02)
      assert np.all(last[part == i] <= high)


def test_split_segments_unknown_split_raises():
  with pytest.raises(ValueError, match=r"split must be one of .*got 'fold'"):
    segments_lib.split_segments(_recordings([60], [0]), "fold")


def test_load_recordings_watch_has_ten_persons_and_seven_exercises(watch_dir):
  recordings = builders.load_recordings("watch", watch_dir, "nowhere")
  assert len(recordings) == 140
  persons, counts = np.unique([r.person for r in recordings], return_counts=True)
  assert len(persons) == 10 and set(counts) == {14}
  labels = [np.unique(recording.labels) for recording in recordings]
  assert all(len(found) == 1 for found in labels), "the label is constant"
  assert set(np.concatenate(labels)) == set(range(7))
  for recording in recordings:
    assert recording.values.shape == (len(recording.time), 6)
    assert np.all(np.diff(recording.time) == 10), "10 Hz"
  spread = np.concatenate([recording.values for recording in recordings]).std(0)
  assert np.all((spread > 0.2) & (spread < 5)), "channels have similar scales"


def test_load_segments_watch_has_all_classes_in_every_part(watch_dir):
  recordings = builders.load_recordings("watch", watch_dir, "nowhere")
  parts = builders.load_segments("watch", "person", watch_dir, "nowhere")
  for segments in parts.values():
    assert set(segments.labels.ravel()) == set(range(7))
    assert np.all(np.ptp(segments.labels, axis=1) == 0)
  _, _, part = segments_lib.split_segments(recordings, "person")
  sizes = [len(parts[name].time) for name in segments_lib.PARTS]
  assert np.bincount(part).tolist() == sizes


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_load_recordings_missing_file_raises_with_instructions(dataset, tmp_path):
  source = LAYOUTS[dataset]
  with pytest.raises(DataError) as error:
    builders.load_recordings(dataset, tmp_path / "data", tmp_path / "manual")
  for part in (
    source.FILE,
    "Localization Data for Person Activity",
    f"--manual_dir={tmp_path / 'manual'}",
    "run the same command again",
  ):
    assert part in str(error.value)
  assert ("archive.ics.uci.edu" in str(error.value)) == (dataset == "uci")


def test_load_recordings_missing_package_raises_with_instructions(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(
    DataError,
    match=r"watch_dataset.npy comes .*not installed; run `pip install seglearn==.*again",
  ):
    builders.load_recordings("watch", tmp_path, tmp_path)


def test_load_recordings_malformed_file_leaves_nothing_prepared(tmp_path):
  measurements = activity_files.walks(("A01",), 100)
  bad = [*measurements, ("A01", 0, 0, (0, 0, 0), "flying")]
  activity_files.write(tmp_path, "uci", bad)
  for _ in range(2):
    with pytest.raises(DataError, match=r"ConfLongDemo_JSI.txt, line 101: label"):
      builders.load_recordings("uci", tmp_path / "data", tmp_path)
  activity_files.write(tmp_path, "uci", measurements)
  assert len(builders.load_recordings("uci", tmp_path / "data", tmp_path)) == 1
  (tmp_path / "ConfLongDemo_JSI.txt").unlink()
  (recording,) = builders.load_recordings("uci", tmp_path / "data", tmp_path)
  chex.assert_trees_all_equal(
    dataclasses.asdict(recording),
    dataclasses.asdict(_parse("uci", activity_files.lines("uci", measurements))[0]),
  )
  with pytest.raises(DataError, match=r"too small for the split 'person'.*'train': 0"):
    builders.load_segments("uci", "person", tmp_path / "data", tmp_path)


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_load_recordings_truncated_or_other_file_raises(dataset, tmp_path):
  activity_files.write(tmp_path, dataset, activity_files.walks(("A01",), 100))
  path = tmp_path / LAYOUTS[dataset].FILE
  whole = path.read_bytes()
  broken = [b"PK\x03\x04\xff\xfe"]
  if path.suffix == ".gz":
    broken += [whole[: len(whole) // 2], whole[:40] + b"?" * 9 + whole[49:]]
  for content in broken:
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path.name} cannot be read \(.*again"):
      builders.load_recordings(dataset, tmp_path / "data", tmp_path)
  path.write_bytes(whole)
  assert len(builders.load_recordings(dataset, tmp_path / "data", tmp_path)) == 1


def test_load_recordings_interrupted_preparation_is_repeated(tmp_path):
  activity_files.write(tmp_path, "uci", activity_files.walks(("A01",), 100))
  left = tmp_path / "data" / "person_activity" / "1.0.0"
  left.mkdir(parents=True)
  (left / "person_activity-recordings.array_record-00000-of-00001").write_bytes(b"half")
  (recording,) = builders.load_recordings("uci", tmp_path / "data", tmp_path)
  assert len(recording.time) == 100


@pytest.fixture(scope="module")
def uci_parts(tmp_path_factory):
  """The segments of a small file of UCI's layout, split by time."""
  path = tmp_path_factory.mktemp("uci")
  activity_files.write_small_data_sets(path)
  return builders.load_segments("uci", "time", path, path)


def test_sample_segments_of_a_batch_are_distinct():
  recordings = _recordings([160], [0])
  owner, start = np.zeros(5, int), segments_lib.segment_starts(160)
  segments = segments_lib.cut(recordings, owner, start)
  sample = jax.jit(segments_lib.sample, static_argnums=2)
  first_rows = []
  for seed in range(3):
    batch = sample(jax.random.key(seed), segments, 4)
    first_rows.append(np.asarray(batch.values[:, 0, 0]).tolist())
    assert len(set(first_rows[-1])) == 4 and set(first_rows[-1]) <= set(start)
  assert len(set(map(tuple, first_rows))) == 3


def test_take_has_the_rows_as_context_and_their_classes_as_targets(uci_parts):
  batch = segments_lib.take(uci_parts["train"], np.array([0, 3, 9, 17, 20]))
  assert batch.values.shape == (5, 50, 24) and batch.targets.shape == (5, 50)
  chex.assert_trees_all_equal(batch.coords, batch.query_coords)
  assert batch.coords.shape == (5, 50, 1)
  assert np.all(np.diff(batch.coords[..., 0]) > 0)
  np.testing.assert_array_equal(batch.coords[:, [0, -1], 0], [[-1, 1]] * 5)
  assert np.all(batch.mask) and np.all(batch.query_mask)
  # In the file, x is the number of the row; each row measures one of the tags.
  row = np.asarray(batch.values)[..., :12].reshape(5, 50, 4, 3)[..., 0].max(-1)
  np.testing.assert_array_equal(np.diff(row), 1)
  np.testing.assert_array_equal(batch.targets, np.where(row < 300, 0, 2))
