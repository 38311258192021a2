"""The example scripts run and print plausible results; the diagram is current."""

import pathlib
import re
import runpy

import pytest

from experiments.figures import diagram

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


def _run(name: str, capsys, **kwargs) -> str:
  """Runs the `main` of an example, and returns the text that it prints."""
  runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](**kwargs)
  return capsys.readouterr().out


@pytest.mark.slow
def test_quickstart_untrained_reads_logarithmically_many_nodes(capsys):
  assert "nodes read: 11 of 1000" in _run("quickstart", capsys, num_steps=1)


@pytest.mark.slow
def test_quickstart_trained_predicts_sines(capsys):
  rmse = float(re.match(r"RMSE ([\d.]+),", _run("quickstart", capsys)).group(1))
  assert rmse < 0.25  # the std of the targets is 0.7


@pytest.mark.slow
def test_drop_in_layer_both_layers_give_the_same_shape(capsys):
  assert _run("drop_in_layer", capsys).splitlines() == [
    "CrossAttention: output (2, 8, 1)",
    "TreeCrossAttention: output (2, 8, 1)",
    "gradients finite: True",
  ]


@pytest.mark.slow
def test_custom_aggregator_nodes_read_have_the_weight_of_all_tokens(capsys):
  printed = _run("custom_aggregator", capsys)
  root, total = re.search(
    r"weight ([\d.]+), sum of all weights ([\d.]+)", printed
  ).groups()
  (covered,) = re.search(r"weight of the nodes read: ([\d.]+)", printed).groups()
  assert float(root) == pytest.approx(float(total), abs=0.2)
  assert float(covered) == pytest.approx(float(total), abs=0.2)
  assert "read 16 nodes of 1000 tokens" in printed


def test_restore_checkpoint_completes_a_digit(capsys, tmp_path, monkeypatch):
  (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
  monkeypatch.chdir(tmp_path)  # the data set is prepared there
  lines = _run("restore_checkpoint", capsys).splitlines()
  start = lines.index("60 pixels given, at most 7 nodes read per pixel")
  context, predicted, truth = zip(
    *(line.split(" | ") for line in lines[start + 2 :]), strict=True
  )
  assert len(truth) == 28
  dark, bright = " .", "#%@"
  cells = list(zip("".join(predicted), "".join(truth), strict=True))
  background = [p for p, t in cells if t == " "]
  strokes = [p for p, t in cells if t in bright]
  assert sum(p in dark for p in background) > 0.7 * len(background)
  assert sum(p not in dark for p in strokes) > 0.7 * len(strokes)
  assert sum(c != " " for c in "".join(context)) < 60


@pytest.mark.slow
def test_serving_exported_program_agrees_with_server(capsys):
  assert _run("serving", capsys).splitlines() == [
    "1 queries: mean (1, 1, 1), std (1, 1, 1)",
    "10 queries: mean (1, 10, 1), std (1, 10, 1)",
    "100 queries: mean (1, 100, 1), std (1, 100, 1)",
    "exported program agrees: True",
  ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_short_and_has_a_test(name):
  lines = (ROOT / "examples" / f"{name}.py").read_text("utf-8").splitlines()
  assert len(lines) <= 70
  assert f'_run("{name}"' in pathlib.Path(__file__).read_text("utf-8")


def test_plot_diagram_writes_the_stored_file(tmp_path):
  diagram.plot_diagram(tmp_path / "diagram.svg")
  assert (tmp_path / "diagram.svg").read_bytes() == diagram.PATH.read_bytes()
