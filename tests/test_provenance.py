"""The origin of results: command, commit, device, cores and versions."""

import platform
import subprocess
import sys

from etils import epath
import flax
import jax
import pytest

from experiments.common import provenance
from experiments.common.errors import ConfigError
import tca_jax


def test_provenance_has_command_device_cores_and_versions(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["/somewhere/terrain.py", "--model=ca", "--seed=1"])
  found = provenance.provenance()
  assert found["command"] == "terrain --model=ca --seed=1"
  assert found["device"].startswith(f"{jax.device_count()} x ")
  assert found["processes"] == 1 and found["cores"] >= 1
  assert found["versions"] == {
    "python": platform.python_version(),
    "jax": jax.__version__,
    "flax": flax.__version__,
    "tca_jax": tca_jax.__version__,
  }
  assert set(found) == {"command", "commit", "device", "processes", "cores", "versions"}


@pytest.mark.parametrize("changed, suffix", [("", ""), (" M file.py\n", "-dirty")])
def test_git_commit_marks_changed_files(changed, suffix, monkeypatch):
  def run(command, **_):
    text = changed if "status" in command else "0123abcd\n"
    return subprocess.CompletedProcess(command, 0, stdout=text)

  monkeypatch.setattr(subprocess, "run", run)
  assert provenance.git_commit() == "0123abcd" + suffix


@pytest.mark.parametrize(
  "error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")]
)
def test_git_commit_without_git_returns_none(error, monkeypatch):
  def run(*_, **__):
    raise error

  monkeypatch.setattr(subprocess, "run", run)
  assert provenance.git_commit() is None


def test_record_training_adds_sessions_and_replaces_those_that_saved_nothing(tmp_path):
  workdir = epath.Path(tmp_path)
  assert provenance.training_sessions(workdir) == []
  for first_step in (0, 0, 40, 20):
    provenance.record_training(workdir, first_step)
  sessions = provenance.training_sessions(workdir)
  assert [session["first_step"] for session in sessions] == [0, 20]
  assert sessions[1] == {"first_step": 20} | provenance.provenance()


@pytest.mark.parametrize(
  "text, message",
  [
    ("{", "training.json cannot be read"),
    ("[]", "training.json must contain a JSON object, got list"),
    ("{}", "training.json is damaged: it must list sessions, each with first_step"),
    ('{"sessions": [{}]}', "training.json is damaged"),
  ],
)
def test_training_sessions_damaged_record_raises(text, message, tmp_path):
  (tmp_path / "training.json").write_text(text)
  with pytest.raises(ConfigError, match=message):
    provenance.training_sessions(epath.Path(tmp_path))
