"""The README's example runs and prints what it says."""

import pathlib
import re

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_the_library_example_runs(capsys):
  (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  assert len(code.strip().splitlines()) <= 15
  exec(compile(code, "README.md", "exec"), {})
  assert f"# {capsys.readouterr().out.strip()}" in code
