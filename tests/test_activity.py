"""Human Activity: the parser, segments and splits, watch recordings, missing data."""

import dataclasses
import gzip

import chex
from etils import epath
import numpy as np
from PIL import Image
import pytest

from experiments import activity as activity_task
from experiments.common import config as config_lib
from experiments.common import evaluate
from experiments.common import plots
from experiments.common import train
from experiments.common.config import ConfigError
from experiments.data import activity
from experiments.data import packages
from experiments.data.errors import DataError

START = 633790226051280329
LAYOUTS = {
  name: source for name, source in activity.DATASETS.items() if name != "watch"
}
EVERY_SPLIT = [
  (name, split) for name in activity.DATASETS for split in activity.DATASETS[name].SPLITS
]  # fmt: skip


def _lines(dataset, readings):
  """Lines of a layout, from (sequence, tag, stamp after START, (x, y, z), label)."""
  lines = []
  for i, (sequence, tag, stamp, (x, y, z), label) in enumerate(readings):
    name = activity.TAGS[tag]
    if dataset == "uci":
      date = "27.05.2009 14:03:25:127"
      lines.append(f"{sequence},{name},{START + stamp},{date},{x},{y},{z},{label}\n")
    else:
      lines.append(f"{i},{sequence},{name},{START + stamp},{x},{y},{z},{label}\n")
  if dataset == "uci_excerpt":
    header = "id, sequence_name, tag_indicator, timestamp, x_c, y_c, z_c, activity\n"
    lines.insert(0, header)
  return lines


def _write(folder, dataset, readings):
  text = "".join(_lines(dataset, readings))
  if dataset == "uci":
    (folder / "ConfLongDemo_JSI.txt").write_text(text)
  else:
    path = folder / "person_activity_excerpt.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))


def _parse(dataset, lines):
  source = LAYOUTS[dataset]
  return activity.read_recordings(lines, source.COLUMNS, source.HAS_HEADER, source.FILE)


def _walks(sequences, length):
  """Readings of one row each, 30 ms apart, that change their label halfway."""
  labels = ("walking", "lying")
  return [
    (sequence, i % 4, 300_000 * i, (i, i / 2, 1), labels[2 * i // length])
    for sequence in sequences
    for i in range(length)
  ]


def _recordings(lengths, persons):
  """Recordings whose rows all hold another number."""
  first = np.concatenate([[0], np.cumsum(lengths)])
  return [
    activity.Recording(
      person=person,
      time=7 + 3 * np.arange(length),
      values=np.arange(row, row + length, dtype=np.float32)[:, None],
      labels=np.arange(length) % 7,
    )
    for row, length, person in zip(first, lengths, persons, strict=False)
  ]


@pytest.fixture(scope="module")
def watch_dir(tmp_path_factory):
  """Holds the watch's recordings, prepared."""
  path = tmp_path_factory.mktemp("watch")
  activity.load_recordings("watch", path, path)
  return path


@pytest.fixture(scope="module")
def uci_dir(tmp_path_factory):
  """Holds a small file in either layout: 5 persons, or 2 sequences, of 600 rows."""
  path = tmp_path_factory.mktemp("uci")
  _write(path, "uci", _walks(("A01", "B03", "C05", "D02", "E04"), 600))
  _write(path, "uci_excerpt", _walks(("A01", "A02"), 600))
  return path


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_readings_of_a_time_are_one_row(dataset):
  readings = [
    ("A01", 0, 0, (1, 2, 3), "walking"),
    ("A01", 0, 20_000, (3, 4, 6), "walking"),
    ("B02", 3, 900_000_000, (9, 9, 9), "on all fours"),
    ("A01", 2, 49_999, (7, 8, 9), "walking"),
    ("A01", 1, 150_000, (-1, 0, 1), "falling"),  # 1.5 and 2.5 are both rounded to 2
    ("A01", 3, 250_000, (5, 5, 5), "lying"),
    ("B02", 3, 900_340_000, (8, 8, 8), "on all fours"),
    ("A01", 0, 10_060_000, (0, 0, 0), "sitting down"),
  ]
  first, second = _parse(dataset, _lines(dataset, readings))
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
    activity.PersonActivity.channels(first.values[2:]), [[0] * 3 + [np.nan] * 9]
  )


def test_every_label_of_the_data_has_its_class():
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
  readings = [
    ("C01", 0, 100_000 * i, (0, 0, 0), label) for i, label in enumerate(expected)
  ]
  (recording,) = _parse("uci", _lines("uci", readings))
  assert recording.labels.tolist() == list(expected.values())
  assert recording.person == 2 and len(activity.CLASSES) == 7
  assert set(activity.LABELS) == set(expected)


@pytest.mark.parametrize("dataset", LAYOUTS)
@pytest.mark.parametrize(
  "change, message",
  [
    (("walking", "standing up"), r"label must be one of .*'falling'.*got 'standing up'"),
    (("A01", "F01"), "sequence must be one of A01 ... E05, got 'F01'"),
    (("010-000-024-033", "010"), r"tag must be one of \('010-000-024-033'.*got '010'"),
    ((str(START), "noon"), "'noon'"),
    ((",0.5,", ",one,"), "'one'"),
    ((",0.5,", ",nan,"), r"x, y and z must be finite, got \(.*nan"),
    ((",0.5,", ","), r"must hold 8 values \(.*label\), got 7"),
    (("walking", "walking,"), r"must hold 8 values \(.*label\), got 9"),
  ],
)  # fmt: skip
def test_a_bad_line_is_named(dataset, change, message):
  good = _lines(dataset, [("A01", 0, 0, (1, 0.5, 2), "walking")] * 2)
  number = len(good)
  bad = [*good[:-1], good[-1].replace(*change), "\n"]
  assert bad[-2] != good[-1]
  name = LAYOUTS[dataset].FILE
  with pytest.raises(DataError, match=f"{name}, line {number}: .*{message}"):
    _parse(dataset, bad)
  assert len(_parse(dataset, [*good, "\n"])[0].time) == 1, "an empty line is none"


@pytest.mark.parametrize(
  "length, count", [(49, 0), (50, 0), (51, 1), (75, 1), (76, 2), (100, 2), (101, 3)]
)
def test_segments_of_a_recording(length, count):
  recordings = _recordings([length, 101], [0, 1])
  owner, start, _ = activity.split_segments(recordings, "random")
  assert np.sum(owner == 0) == count and np.sum(owner == 1) == 3
  segments = activity.cut(recordings, owner, start)
  assert segments.labels.shape == (count + 3, 50)
  np.testing.assert_array_equal(segments.time, [3 * np.arange(50)] * (count + 3))
  first = np.concatenate([25 * np.arange(count), length + 25 * np.arange(3)])
  np.testing.assert_array_equal(segments.values[:, 0, 0], first)
  np.testing.assert_array_equal(np.diff(segments.values[..., 0]), 1)
  np.testing.assert_array_equal(segments.labels[-1], (50 + np.arange(50)) % 7)


@pytest.mark.parametrize("split", activity.SPLITS)
def test_parts_are_apart(split):
  lengths, persons = [700, 1234, 90, 51, 803, 60, 400], [4, 0, 1, 2, 3, 0, 1]
  recordings = _recordings(lengths, persons)
  owner, start, part = activity.split_segments(recordings, split)
  assert len(set(zip(owner.tolist(), start.tolist(), strict=True))) == len(owner)
  total = sum(len(activity.segment_starts(length)) for length in lengths)
  rows, people = [], []
  for i in range(3):
    segments = activity.cut(recordings, owner[part == i], start[part == i])
    rows.append(set(segments.values.ravel().tolist()))
    people.append({persons[i] for i in owner[part == i]})
  counts = np.bincount(part, minlength=3)
  shared = [rows[i] & rows[j] for i, j in ((0, 1), (0, 2), (1, 2))]
  if split == "random":
    assert len(owner) == total and all(shared), "segments overlap, and parts with them"
    expected = np.diff([0, total * 64 // 100, total * 80 // 100, total])
    assert counts.tolist() == expected.tolist()
    again = activity.split_segments(recordings, split)
    np.testing.assert_array_equal(part, again[2])
  elif split == "person":
    assert len(owner) == total and not any(shared)
    assert people == [{0, 1, 2}, {3}, {4}]
  else:
    assert len(owner) < total and counts.all() and not any(shared)
    first, last = (
      (start + offset) / np.array(lengths)[owner] for offset in (0, activity.SEGMENT)
    )
    for i, (low, high) in enumerate(((0, 0.64), (0.64, 0.8), (0.8, 1))):
      assert np.all(first[part == i] > low - 0.02)
      assert np.all(last[part == i] <= high)


def test_an_unknown_split_is_refused():
  with pytest.raises(ValueError, match=r"split must be one of .*got 'fold'"):
    activity.split_segments(_recordings([60], [0]), "fold")


def test_the_watch_holds_ten_persons_at_seven_exercises(watch_dir):
  recordings = activity.load_recordings("watch", watch_dir, "nowhere")
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
  assert np.all((spread > 0.2) & (spread < 5)), "channels have a like scale"
  parts = activity.load_segments("watch", "person", watch_dir, "nowhere")
  for segments in parts.values():
    assert set(segments.labels.ravel()) == set(range(7))
    assert np.all(np.ptp(segments.labels, axis=1) == 0)
  _, _, part = activity.split_segments(recordings, "person")
  assert np.bincount(part).tolist() == [len(parts[p].time) for p in activity.PARTS]


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_missing_files_say_what_to_do(dataset, tmp_path):
  source = LAYOUTS[dataset]
  with pytest.raises(DataError) as error:
    activity.load_recordings(dataset, tmp_path / "data", tmp_path / "manual")
  for part in (
    source.FILE,
    "Localization Data for Person Activity",
    f"--manual_dir={tmp_path / 'manual'}",
    "run the same command again",
  ):
    assert part in str(error.value)
  assert ("archive.ics.uci.edu" in str(error.value)) == (dataset == "uci")


def test_a_missing_package_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _: None)
  with pytest.raises(
    DataError,
    match=r"watch_dataset.npy comes .*not installed; run `pip install seglearn==.*again",
  ):
    activity.load_recordings("watch", tmp_path, tmp_path)
  monkeypatch.undo()
  with pytest.raises(DataError, match=r"data/none comes with .* which lacks the file"):
    packages.find_file("chex", "data/none", "chex==0")


def test_a_bad_file_leaves_nothing_prepared(tmp_path):
  readings = _walks(("A01",), 100)
  _write(tmp_path, "uci", [*readings, ("A01", 0, 0, (0, 0, 0), "flying")])
  for _ in range(2):
    with pytest.raises(DataError, match=r"ConfLongDemo_JSI.txt, line 101: label"):
      activity.load_recordings("uci", tmp_path / "data", tmp_path)
  _write(tmp_path, "uci", readings)
  assert len(activity.load_recordings("uci", tmp_path / "data", tmp_path)) == 1
  (tmp_path / "ConfLongDemo_JSI.txt").unlink()
  (recording,) = activity.load_recordings("uci", tmp_path / "data", tmp_path)
  chex.assert_trees_all_equal(
    dataclasses.asdict(recording),
    dataclasses.asdict(_parse("uci", _lines("uci", readings))[0]),
  )
  with pytest.raises(DataError, match=r"too small for the split 'person'.*'train': 0"):
    activity.load_segments("uci", "person", tmp_path / "data", tmp_path)


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_a_file_that_is_not_whole_or_another_is_named(dataset, tmp_path):
  _write(tmp_path, dataset, _walks(("A01",), 100))
  path = tmp_path / LAYOUTS[dataset].FILE
  whole = path.read_bytes()
  broken = [b"PK\x03\x04\xff\xfe"]
  if path.suffix == ".gz":
    broken += [whole[: len(whole) // 2], whole[:40] + b"?" * 9 + whole[49:]]
  for content in broken:
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path.name} cannot be read \(.*again"):
      activity.load_recordings(dataset, tmp_path / "data", tmp_path)
  path.write_bytes(whole)
  assert len(activity.load_recordings(dataset, tmp_path / "data", tmp_path)) == 1


def test_what_a_stopped_preparation_left_is_not_used(tmp_path):
  _write(tmp_path, "uci", _walks(("A01",), 100))
  left = tmp_path / "data" / "person_activity" / "1.0.0"
  left.mkdir(parents=True)
  (left / "person_activity-recordings.array_record-00000-of-00001").write_bytes(b"half")
  (recording,) = activity.load_recordings("uci", tmp_path / "data", tmp_path)
  assert len(recording.time) == 100


def _task(folder, **options):
  config = activity_task.ActivityConfig(
    data_dir=str(folder / "data"), manual_dir=str(folder), **options
  )
  return activity_task.ActivityTask(config)


def test_batches_are_a_function_of_seed_and_step(uci_dir):
  def task(**options):
    return _task(uci_dir, dataset="uci", batch_size=4, **options)

  a, b = task(seed=3), task(seed=3, eval_seed=8)
  chex.assert_trees_all_equal(a.train_batch(7), b.train_batch(7))
  drawn = [a.train_batch(0), a.train_batch(1), task(seed=4).train_batch(0)]
  assert len({np.asarray(batch.values).tobytes() for batch in drawn}) == 3
  for batch in drawn:
    assert len({row.tobytes() for row in np.asarray(batch.values)}) == 4


def test_a_batch_holds_the_rows_and_asks_for_their_classes(uci_dir):
  task = _task(uci_dir, dataset="uci", split="time", batch_size=5)
  batch = task.train_batch(0)
  assert batch.values.shape == (5, 50, 24) and batch.targets.shape == (5, 50)
  chex.assert_trees_all_equal(batch.coords, batch.query_coords)
  assert batch.coords.shape == (5, 50, 1)
  assert np.all(np.diff(batch.coords[..., 0]) > 0)
  np.testing.assert_array_equal(batch.coords[:, [0, -1], 0], [[-1, 1]] * 5)
  assert np.all(batch.mask) and np.all(batch.query_mask)
  # The file's x is the row's number, at the tag whose turn it is.
  row = np.asarray(batch.values)[..., :12].reshape(5, 50, 4, 3)[..., 0].max(-1)
  np.testing.assert_array_equal(np.diff(row), 1)
  np.testing.assert_array_equal(batch.targets, np.where(row < 300, 0, 2))


@pytest.mark.parametrize("dataset, split", EVERY_SPLIT)
def test_evaluation_sees_every_segment_once(dataset, split, uci_dir, watch_dir):
  options = dict(dataset=dataset, split=split, batch_size=3)
  if dataset == "watch":
    task = activity_task.ActivityTask(
      activity_task.ActivityConfig(data_dir=str(watch_dir), **options)
    )
  else:
    task = _task(uci_dir, **options)
  config = task.config
  parts = activity.load_segments(dataset, split, config.data_dir, config.manual_dir)
  for name in ("validation", "test"):
    own = activity_task.ActivityTask(dataclasses.replace(config, eval_split=name))
    batches = list(own.eval_batches())
    assert {batch.values.shape[:2] for batch in batches} == {(3, 50)}, "one shape"
    kept = [np.asarray(batch.values)[np.any(batch.query_mask, 1)] for batch in batches]
    np.testing.assert_array_equal(np.concatenate(kept), parts[name].values)
  few = activity_task.ActivityTask(dataclasses.replace(config, eval_batches=1))
  assert len(list(few.eval_batches())) == 1


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(split="random"), r"split must be one of \('person',\) for .*'watch', got 'ra"),
    (dict(dataset="uci_excerpt"), r"one of \('random', 'time'\) for .*'uci_excerpt', g"),
    (dict(split="fold"), r"split must be one of \('random', 'person', 'time'\), got"),
    (dict(dataset="mnist"), "dataset must be one of"),
    (dict(eval_split="train"), r"eval_split must be one of \('validation', 'test'\)"),
  ],
)  # fmt: skip
def test_bad_options_are_named(change, message):
  with pytest.raises(ConfigError, match=message):
    activity_task.ActivityConfig(**change)


def test_more_than_there_is_to_train_on_is_refused(uci_dir):
  with pytest.raises(ConfigError, match="at most the 66 segments to train on, got 67"):
    _task(uci_dir, dataset="uci", batch_size=67)


def test_the_paper_recipe_is_the_published_data_and_split():
  config = activity_task.ActivityConfig.paper()
  assert (config.dataset, config.split, config.num_frequencies) == ("uci", "random", 0)
  assert config.routing_weight == 0 and config.baseline == "constant"


@pytest.mark.parametrize("dataset, model", [("watch", "tca"), ("uci", "ca")])
def test_end_to_end(dataset, model, uci_dir, watch_dir, tmp_path):
  config = activity_task.ActivityConfig(
    dataset=dataset,
    model=model,
    data_dir=str(watch_dir if dataset == "watch" else uci_dir / "data"),
    manual_dir=str(uci_dir),
    num_layers=1,
    num_steps=3,
    batch_size=4,
    eval_batches=2,
  )
  task = activity_task.ActivityTask(config)
  workdir = epath.Path(tmp_path / "run")
  train.train(task, workdir)
  result = evaluate.evaluate_workdir(task, workdir)
  assert result["step"] == 3 and result["num_examples"] == 8
  assert 0 <= result["accuracy"] <= 1 and np.isfinite(result["log_likelihood"])
  assert result["tokens_fraction_largest"] == (7 / 50 if model == "tca" else 1)
  figure = workdir / "activity.png"
  assert figure.exists() == (model == "tca")
  if model == "tca":
    assert Image.open(figure).size[0] > 800


@pytest.mark.parametrize("model", ["tca", "ca", "perceiver"])
def test_what_was_trained_on_the_excerpt_restores(model, uci_dir, tmp_path):
  root = epath.Path(__file__).parent.parent
  workdir = root / "checkpoints" / f"activity_excerpt_{model}"
  config = config_lib.load(activity_task.ActivityConfig, workdir)
  here = dict(data_dir=str(uci_dir), manual_dir=str(uci_dir), batch_size=8)
  task = activity_task.ActivityTask(dataclasses.replace(config, **here))
  result = evaluate.evaluate_workdir(task, workdir, epath.Path(tmp_path))
  assert result["step"] == 1000 and result["num_examples"] > 0
  assert 0 <= result["calibration_error"] <= 1


def test_the_figure_shows_gaps_classes_and_nodes(tmp_path, monkeypatch):
  channels = np.full((5, 3), np.nan)
  channels[[0, 2], 0] = channels[:, 1] = 1  # the third channel holds nothing
  segment = plots.LabelledSegment(
    time=np.array([0, 0.1, 0.4, 0.5, 2]),
    channels=channels,
    truth=np.array([0, 0, 1, 2, 2]),
    predicted=np.array([0, 1, 1, 2, 0]),
    query=0.4,
    nodes=[(1, np.array([0, 0.1])), (2, np.array([0.4])), (2, np.array([0.5, 2]))],
    depth=2,
  )
  drawn = []
  monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
  plots.plot_segments([segment, segment], ("a", "b", "c"), tmp_path / "x.png")
  axes = drawn[0].axes
  assert len(axes) == 6 and len(drawn[0].legends[0].get_patches()) == 3
  shown = [len(line.get_xdata()) for line in axes[0].lines]
  assert shown == [2, 5, 0, 2], "the channels, and the query's line"
  strips = [mesh.get_array().ravel().tolist() for mesh in axes[2].collections]
  assert strips == [segment.truth.tolist(), segment.predicted.tolist()]
  spans = [line.get_xdata() for line in axes[4].lines]
  assert [len(span) for span in spans] == [2, 2, 1, 2, 1], "line, nodes, query"
  np.testing.assert_array_equal(spans[3], [0.5, 2])
