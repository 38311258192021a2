"""The README: its examples run, and its tables agree with the result files."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def _tables(text):
  """The Markdown tables of a text, each a list of rows by column name."""
  tables, lines = [], text.splitlines()
  for i, line in enumerate(lines):
    if set(line) <= set("|- ") and line.startswith("| --"):
      names = [cell.strip() for cell in lines[i - 1].strip("|").split("|")]
      rows = []
      for row in lines[i + 1 :]:
        if not row.startswith("|"):
          break
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        rows.append(dict(zip(names, cells, strict=True)))
      tables.append(rows)
  return tables


def _table(text, *names):
  """The first table of a text with columns of these names."""
  return next(rows for rows in _tables(text) if set(names) <= set(rows[0]))


def test_readme_is_short():
  assert len(README.splitlines()) <= 200
  assert README.splitlines().index("```python") < 90


def test_readme_examples_run_and_print_their_comments(capsys, monkeypatch):
  monkeypatch.chdir(ROOT)  # one loads a shipped checkpoint
  blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  assert len(blocks) == 3
  assert len(blocks[0].strip().splitlines()) <= 15
  names = {}  # a block uses names of those above
  for code in blocks:
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed
    for line in printed:
      assert f"# {line}\n" in code + "\n"


@pytest.mark.parametrize(
  "page, columns",
  [
    ("results", ("data set", "paper: TCA")),
    ("results", ("context points", "RMSE, m")),
    ("benchmarks", ("queries", "full / TCA", "Perceiver IO")),
  ],
)
def test_readme_tables_are_parts_of_the_generated_pages(page, columns):
  rows = _table(README, *columns)
  generated = _table((ROOT / "docs" / f"{page}.md").read_text("utf-8"), *columns)
  assert len(rows) >= 4
  for row in rows:
    assert row in [{name: other[name] for name in row} for other in generated]


def test_readme_demo_table_agrees_with_its_json():
  rows = _table(README, "copy task, T = 64")
  result = json.loads((ROOT / "results" / "demo.json").read_text())["copy"]
  expected = [
    [
      f"{result[model]['accuracy']:.2%}",
      f"{result[model]['tokens_fraction']:.1%}",
      f"{result[model]['us_per_query']:.2f}",
      f"{result[model]['us_per_query_16384']:.2f}",
    ]
    for model in ("tca", "ca", "perceiver")
  ]
  assert [list(row.values())[1:] for row in rows] == expected


def test_readme_links_exist():
  targets = re.findall(r"\]\(([^)#]+)\)", README)
  local = [target for target in targets if "://" not in target]
  assert len(local) > 8
  for target in local:
    assert (ROOT / target).exists(), target
