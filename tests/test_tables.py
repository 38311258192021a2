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
