"""Figures: lines, boxes and labels drawn, and the files written."""

import dataclasses

import matplotlib.colors
import numpy as np
from PIL import Image
import pytest

from experiments.figures import completion
from experiments.figures import curves
from experiments.figures import elevation
from experiments.figures import functions
from experiments.figures import read_times
from experiments.figures import scaling
from experiments.figures import segments
from experiments.figures import style


@pytest.fixture
def drawn(monkeypatch):
  """The figures that a test plots; no file is written."""
  figures = []
  monkeypatch.setattr(style, "save", lambda figure, path: figures.append(figure))
  return figures


def _segment():
  channels = np.full((5, 3), np.nan)
  channels[[0, 2], 0] = channels[:, 1] = 1  # the third channel has no values
  return segments.LabelledSegment(
    time=np.array([0, 0.1, 0.4, 0.5, 2]),
    channels=channels,
    truth=np.array([0, 0, 1, 2, 2]),
    predicted=np.array([0, 1, 1, 2, 0]),
    query=0.4,
    nodes=[(1, np.array([0, 0.1])), (2, np.array([0.4])), (2, np.array([0.5, 2]))],
    depth=2,
  )


def _map_fit():
  coords = np.random.default_rng(0).uniform(-0.5, 0.5, (400, 2))
  truth = 100 * coords[:, 0]
  context = coords[:40]
  return elevation.MapFit(
    unit="m",
    coords=coords,
    truth=truth,
    mean=truth + 1,
    std=np.abs(truth),
    context=context,
    context_values=truth[:40],
    query=coords[50],
    boxes=[(1, context[:20]), (3, context[20:25]), (6, context[30:31])],
    depth=6,
    pixel=1 / 20,
  )


def _completion():
  pixels = np.stack(np.divmod(np.arange(0, 60, 3), 8), axis=-1)
  return completion.Completion(
    truth=np.linspace(0, 1, 64).reshape(8, 8, 1),
    mean=np.linspace(-1, 2, 64).reshape(8, 8, 1),
    std=np.ones((8, 8)),
    pixels=pixels,
    query=np.array([0, 1]),
    boxes=[(1, pixels[:10]), (2, pixels[10:11])],
    depth=2,
  )


def _function_fit():
  x = np.linspace(-2, 2, 50)
  context = np.stack([x[::10], np.sin(x[::10])], axis=-1)
  return functions.FunctionFit(
    x=x,
    truth=np.sin(x),
    mean=np.cos(x),
    std=np.full(50, 0.2),
    exact_mean=np.sin(x),
    exact_std=np.full(50, 0.1),
    context=context,
    queries={-1.0: [(1, context[:3, 0]), (2, context[3:4, 0])], 1.5: []},
    depth=2,
  )


def test_plot_segments_shows_gaps_classes_and_nodes(drawn, tmp_path):
  segment = _segment()
  segments.plot_segments([segment, segment], ("a", "b", "c"), tmp_path / "x.png")
  axes = drawn[0].axes
  assert len(axes) == 6 and len(drawn[0].legends[0].get_patches()) == 3
  shown = [len(line.get_xdata()) for line in axes[0].lines]
  assert shown == [2, 5, 0, 2], "the channels and the line of the query"
  strips = [mesh.get_array().ravel().tolist() for mesh in axes[2].collections]
  assert strips == [segment.truth.tolist(), segment.predicted.tolist()]
  spans = [line.get_xdata() for line in axes[4].lines]
  assert [len(span) for span in spans] == [2, 2, 1, 2, 1], "line, nodes, query"
  np.testing.assert_array_equal(spans[3], [0.5, 2])


def test_plot_completions_draws_a_box_around_the_pixels_of_each_node(drawn, tmp_path):
  item = _completion()
  completion.plot_completions([item], tmp_path / "x.png")
  axes = drawn[0].axes
  assert len(axes) == 5
  wide, single = axes[4].patches
  np.testing.assert_array_equal(wide.get_xy(), [-0.5, -0.5])
  assert (wide.get_width(), wide.get_height()) == (8, 4)
  assert (single.get_width(), single.get_height()) == (1, 1)
  assert (wide.get_fill(), single.get_fill()) == (False, True)
  assert single.get_edgecolor() == style.LEVELS(1.0)
  context = axes[0].images[0].get_array()
  grey = np.repeat(item.truth[tuple(item.pixels.T)], 3, axis=1)
  np.testing.assert_allclose(context[tuple(item.pixels.T)], grey)
  mean = axes[1].images[0].get_array()
  assert (mean.min(), mean.max()) == (0, 1), "clipped to the range of colours"


def test_plot_functions_draws_bars_and_dots_of_each_query(drawn, tmp_path):
  fit = _function_fit()
  functions.plot_functions([fit, fit], tmp_path / "x.png")
  above, _, below, _ = drawn[0].axes
  labels = above.get_legend_handles_labels()[1]
  assert labels == ["mean, 2 std", "exact posterior, 2 std", "truth", "context"]
  lines = [(line.get_marker(), line.get_ydata()[0]) for line in below.lines]
  query_line = ("None", 0)
  assert lines == [query_line, ("|", 0), ("o", 0), ("x", 0), query_line, ("x", 1)]
  np.testing.assert_array_equal(below.lines[1].get_xdata(), fit.context[[0, 2], 0])


def test_plot_map_draws_all_panels_and_nodes(drawn, tmp_path):
  fit = _map_fit()
  elevation.plot_map(fit, tmp_path / "x.png")
  panels = drawn[0].axes[:5]
  assert panels[1].get_title() == "context, 40 of 400 points"
  assert len(panels[4].patches) == 2 and len(panels[4].lines) == 2
  corner = fit.context[:20].min(0)
  np.testing.assert_array_equal(panels[4].patches[0].get_xy(), corner)
  limits = np.array([panels[0].get_xlim(), panels[0].get_ylim()])
  expected = np.stack([fit.coords.min(0) - 1 / 40, fit.coords.max(0) + 1 / 40], axis=1)
  np.testing.assert_allclose(limits, expected)


@pytest.mark.parametrize("unit, colours", [("m", "terrain"), ("grey levels", "gray")])
def test_plot_map_unit_is_at_the_colour_bars(unit, colours, drawn, tmp_path):
  fit = dataclasses.replace(_map_fit(), unit=unit)
  elevation.plot_map(fit, tmp_path / "x.png")
  labels = [axes.get_ylabel() for axes in drawn[0].axes[5:]]
  assert labels == [f"mean, {unit}", f"std, {unit}"]
  assert drawn[0].axes[0].images[0].get_cmap().name == colours


def test_plot_scaling_beam_widths_have_different_line_styles(drawn, tmp_path):
  titles = {"tca": "TCA", "tca_2": "TCA, 2 paths", "ca": "Cross Attention", "x": "X"}
  titles |= {"linear": "Linear interpolation"}
  rows = [
    dict(
      system=name,
      num_context=size,
      log_likelihood=-size,
      rmse=size / 2,
      coverage_90=0.8,
      us_per_query=size**2,
    )
    for size in (10, 100)
    for name in ("tca", "tca_2", "ca")
  ]
  rows += [
    dict(system="linear", num_context=n, rmse=n / 3, us_per_query=n) for n in (10, 100)
  ]
  scaling.plot_scaling(rows, titles, "m", tmp_path / "x.png")
  first, rmse, coverage, seconds = drawn[0].axes
  assert rmse.get_ylabel() == "RMSE, m"
  assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
    "TCA",
    "TCA, 2 paths",
    "Cross Attention",
    "Linear interpolation",
  ]
  assert len({line.get_linestyle() for line in first.lines[:2]}) == 2
  colours = [matplotlib.colors.to_hex(line.get_color()) for line in first.lines]
  assert colours[:2] == [style.RED] * 2 and colours[2] != style.RED
  np.testing.assert_array_equal(first.lines[0].get_ydata(), [-10, -100])
  np.testing.assert_allclose(rmse.lines[-1].get_ydata(), [10 / 3, 100 / 3])
  assert coverage.lines[-1].get_ydata() == [0.9, 0.9]
  assert seconds.get_yscale() == "log"


def test_plot_read_times_marks_the_crossover(drawn, tmp_path):
  rows = [
    dict(system=name, num_queries=count, num_tokens=n, us_per_query=n / 7)
    for name in ("full", "tca", "gather_floor")
    for count in (1, 4096)
    for n in (64, 128)
  ]
  read_times.plot_read_times(rows, {1: None, 4096: 128}, tmp_path / "x.png")
  one, many = drawn[0].axes
  assert one.get_title() == "1 query" and len(one.lines) == 3
  assert many.get_title() == "4,096 queries: TCA faster from 128 tokens"
  assert [line.get_linestyle() for line in many.lines] == ["-", "-", "--", ":"]
  assert many.lines[1].get_color() == style.RED and many.lines[-1].get_xdata()[0] == 128


def test_plot_curves_leaves_out_curves_of_another_reward(drawn, tmp_path):
  curve = [(i, 2 * i, i / 40) for i in range(1, 41)]
  results = [
    dict(row=name, curve=curve, accuracy=1, config=dict(reward=reward))
    for name, reward in (("a", "accuracy"), ("b", "likelihood"), ("c", "accuracy"))
  ]
  curves.plot_curves(results, tmp_path / "x.png")
  by_examples, by_seconds = drawn[0].axes
  assert [line.get_label() for line in by_examples.lines] == ["a", "c"]
  np.testing.assert_array_equal(by_seconds.lines[0].get_xdata(), range(2, 81, 2))
  smooth = by_examples.lines[0].get_ydata()
  np.testing.assert_allclose(smooth[:3], [1 / 40, 1.5 / 40, 2.5 / 40])


@pytest.mark.parametrize(
  "plot, min_width",
  [
    (lambda path: completion.plot_completions([_completion()] * 4, path), 500),
    (lambda path: functions.plot_functions([_function_fit()] * 2, path), 800),
    (lambda path: segments.plot_segments([_segment()] * 2, tuple("abc"), path), 800),
    (lambda path: elevation.plot_map(_map_fit(), path), 1500),
  ],
)
def test_plot_writes_a_png_file(plot, min_width, tmp_path):
  plot(tmp_path / "x.png")
  width, height = Image.open(tmp_path / "x.png").size
  assert width > min_width and height > 300


def test_plot_map_picture_is_wide(tmp_path):
  elevation.plot_map(_map_fit(), tmp_path / "x.png")
  width, height = Image.open(tmp_path / "x.png").size
  assert width > 3 * height > 900


def test_raster_averages_values_and_marks_empty_pixels():
  coords = np.array([[0, 0], [0.1, 0.1], [2, 1], [1, 0]], float)
  values = np.array([1.0, 3.0, 5.0, 7.0])
  expected = [[2, 7, np.nan], [np.nan, np.nan, 5]]
  np.testing.assert_array_equal(elevation.raster(coords, values, 1), expected)
