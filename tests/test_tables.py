"""Tables as text and as Markdown."""

import pytest

from experiments.common import tables


def test_table_aligns_columns_and_prints(capsys):
  text = tables.table("title", ("name", "x"), [("a", "1.0"), ("longer", "10.0")])
  assert text == "title\nname       x\na        1.0\nlonger  10.0"
  assert capsys.readouterr().out == f"\n{text}\n\n"


def test_table_row_of_another_length_raises():
  with pytest.raises(ValueError):
    tables.table("title", ("name", "x"), [("a",)])


def test_markdown_row_of_another_length_raises():
  with pytest.raises(ValueError, match="must have 2 cells"):
    tables.markdown(("a", "b"), [("1",)])


def test_quality_missing_metric_returns_empty_text():
  assert tables.quality({"accuracy": 0.5}, "full_") == ""
  assert tables.quality({}) == ""


def test_of_grid_of_a_regression_has_its_log_likelihood():
  result = dict(row="a", log_likelihood=0.1234, full_log_likelihood=-2.0)
  result |= dict(tokens_fraction=0.5, examples=12_000, train_seconds=7.6)
  header, rows = tables.of_grid([result])
  assert rows == [["a", "0.123", "-2.000", "50.0%", "12,000", "8"]]
  assert len(header) == 6
  on_map = dict(map_num_context=1000, map_log_likelihood=2.0, map_rmse=3.456, unit="m")
  header, rows = tables.of_grid([result | on_map])
  assert header[2:4] == ["1,000 points: log-likelihood", "RMSE, m"]
  assert rows[0][2:4] == ["2.000", "3.46"]
