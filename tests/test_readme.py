"""The README's example runs and prints what it says."""

import pathlib
import re

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text("utf-8")


def test_the_examples_run(capsys):
  blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  assert len(blocks) == 2
  assert len(blocks[0].strip().splitlines()) <= 15
  names = {}  # the second goes on where the first ends
  for code in blocks:
    exec(compile(code, "README.md", "exec"), names)
    for line in capsys.readouterr().out.strip().splitlines():
      assert f"# {line}\n" in code + "\n"
