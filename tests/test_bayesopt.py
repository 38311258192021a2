"""Acquisition functions, test functions, and Bayesian optimisation with a reader."""

import json

from absl import flags
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bayesopt
from experiments import black_box
from experiments import surrogates
from experiments.common import acquisition
from experiments.common.errors import CheckpointError
from experiments.common.errors import ConfigError
from experiments.common.errors import DataError
from experiments.data import random_functions
from experiments.data.benchmark_functions import FUNCTIONS
from experiments.figures import regret
from experiments.figures import style
from experiments.report_pages import bayesopt as page
from experiments.report_pages import runs
import tca_jax
from tests import untrained

TINY = black_box.BlackBoxConfig(
  num_steps=1, batch_size=2, eval_batches=1, num_context=32, read_layers=1,
  kriged_nodes=4, beam_width=2, num_inputs=6,
)  # fmt: skip


def _mixture(rng, size):
  weights = rng.dirichlet(np.ones(3), (size, 1))
  return tca_jax.GaussianMixture(
    log_weights=jnp.asarray(np.log(weights), jnp.float32),
    means=jnp.asarray(rng.normal(size=(size, 1, 3)), jnp.float32),
    stds=jnp.asarray(rng.uniform(0.1, 2, (size, 1, 3)), jnp.float32),
  )


# --- Acquisition functions and candidates.


def test_expected_improvement_is_the_integral_of_the_improvement():
  output = _mixture(np.random.default_rng(0), 8)
  best = 0.3
  y = np.linspace(-15, best, 8_001)
  density = np.exp(jax.vmap(output.log_prob, in_axes=0)(
    jnp.asarray(np.broadcast_to(y[:, None, None], (len(y), 8, 1)), jnp.float32)
  ))  # fmt: skip
  expected = np.trapezoid((best - y)[:, None] * density, y, axis=0)
  found = acquisition.expected_improvement(output, best)
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_expected_improvement_of_a_hopeless_candidate_is_not_negative():
  one = jnp.ones((3, 1, 1))
  output = tca_jax.GaussianMixture(
    log_weights=0 * one,
    means=jnp.array([3.0, 6.0, 1e4])[:, None, None],
    stds=one,
  )
  found = np.asarray(acquisition.expected_improvement(output, 0.0))
  assert found[0] > found[1] >= found[2] == 0


def test_marginal_thompson_has_the_moments_of_the_mixture():
  output = _mixture(np.random.default_rng(1), 4)
  draw = jax.vmap(lambda rng: -acquisition.marginal_thompson(rng, output))
  draws = np.asarray(draw(jax.random.split(jax.random.key(0), 20_000)))
  np.testing.assert_allclose(draws.mean(axis=0), output.mean[:, 0], atol=0.05)
  np.testing.assert_allclose(draws.std(axis=0), output.std[:, 0], rtol=0.03)
  correlation = np.corrcoef(draws.T)  # the candidates are independent
  assert np.abs(correlation - np.eye(4)).max() < 0.05


def test_candidates_are_in_the_cube_of_the_inputs_and_half_are_near_the_best():
  used = jnp.array([True, True, False])
  best = jnp.array([0.99, 0.5, 0.0])
  found = acquisition.draw_candidates(jax.random.key(0), best, used, 400)
  assert found.shape == (400, 3) and found.dtype == jnp.float32
  assert np.all((found >= 0) & (found <= 1)) and np.all(found[:, 2] == 0)
  distance = np.linalg.norm(found - best, axis=-1)
  assert np.median(distance[:200]) > 0.3 and np.median(distance[200:]) < 0.1
  assert distance[200:].min() < 5e-3 and distance[200:].max() > 0.3


# --- Functions.


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_function_has_its_minimum_at_the_minimisers_only(function):
  low, high = np.array(function.low), np.array(function.high)
  at = (np.array(function.minimisers) - low) / (high - low)
  np.testing.assert_allclose(function(at), function.minimum, atol=1e-6)
  rng = np.random.default_rng(0)
  around = at[:, None] + 0.01 * rng.normal(size=(len(at), 1000, len(low)))
  anywhere = rng.random((20_000, len(low)))
  for points in (np.clip(around, 0, 1).reshape(-1, len(low)), anywhere):
    assert function(points).min() > function.minimum - 1e-9


def test_random_functions_are_observed_by_searches():
  sample = jax.jit(random_functions.sample, static_argnums=(1, 2, 3, 4, 5))
  batch = jax.device_get(sample(jax.random.key(0), 40, 64, 16, 0.5, 3))
  assert batch.coords.shape == (40, 64, 3) and batch.targets.shape == (40, 16, 1)
  coords = np.concatenate([batch.query_coords, batch.coords], axis=1)
  values = np.concatenate([batch.targets, batch.values], axis=1)
  assert coords.min() >= 0 and coords.max() <= 1
  np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-3)
  np.testing.assert_allclose(values.std(axis=1), 1, rtol=1e-3)
  num_inputs = np.sum(np.any(coords != 0, axis=1), axis=1)
  assert set(num_inputs) == {1, 2, 3}
  # Points crowd together in some functions only, and those near others are low.
  full = batch.coords[(num_inputs == 3) & (batch.mask.sum(axis=1) == 64)]
  gaps = np.linalg.norm(full[:, :, None] - full[:, None], axis=-1)
  nearest = np.median(np.sort(gaps, axis=-1)[..., 1], axis=-1)
  assert nearest.min() < 0.08 < nearest.max()


def test_searches_are_around_low_values():
  used = jnp.ones(2, bool)

  def bowl(x):
    return jnp.sum((x - 0.3) ** 2, axis=-1)

  search = jax.jit(
    lambda rng: random_functions._search(rng, bowl, jnp.arange(300) >= 100, used)
  )
  found = np.asarray(jax.vmap(search)(jax.random.split(jax.random.key(0), 20)))
  distance = np.median(np.linalg.norm(found - 0.3, axis=-1), axis=1)
  assert np.all((found >= 0) & (found <= 1))
  assert distance.min() < 0.2 and distance.max() > 0.35


# --- The surrogates.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The saved model of a tiny task, untrained."""
  task = black_box.BlackBoxTask(TINY)
  params = untrained.params(task)
  path = tmp_path_factory.mktemp("black_box") / "model"
  tca_jax.save(path, task.model, params, task="black_box", step=1, **task.inputs)
  return path


@pytest.fixture(scope="module")
def loaded(folder):
  return surrogates.TrainedReader(folder)


@pytest.fixture
def reader(loaded, monkeypatch):
  """The model with a small memory; whoever loads it shares the compiled functions."""
  monkeypatch.setattr(surrogates, "_CAPACITY", 16)
  monkeypatch.setattr(surrogates, "TrainedReader", lambda folder: loaded)
  return loaded


@pytest.mark.slow
def test_growing_reader_contains_every_observation(reader):
  rng = np.random.default_rng(0)
  coords = rng.random((30, 6))
  coords[10:] = 0.5 + 0.01 * coords[10:]  # all in one part of the tree
  values = np.sum(coords, axis=1)
  grown = reader.start(coords[:10], values[:10])
  for x, y in zip(coords[10:], values[10:], strict=True):
    grown.observe(x, y)
  assert grown.num_observations == 30
  assert grown.description == {"num_rebuilds": 1, "capacity": 32}
  known = grown._context.growing
  found = np.asarray(known.coords[0])[np.asarray(known.mask[0])]
  np.testing.assert_array_equal(found, coords.astype(np.float32))
  start = reader.start(coords[:10], values[:10])
  output = start.predict(jnp.zeros((128, 6)))  # as many as in a step
  assert output.means.shape == (128, 1, 3) and np.all(np.isfinite(output.means))


def test_reader_of_another_task_is_refused():
  shipped = epath.Path(__file__).parent.parent / "checkpoints"
  with pytest.raises(
    CheckpointError, match=r"experiments.black_box, got .* 'surfaces'"
  ):
    surrogates.TrainedReader(shipped / "surfaces_relative_tca")
  with pytest.raises(CheckpointError, match="has no saved model"):
    surrogates.TrainedReader(shipped / "none")


def test_gaussian_process_predicts_a_smooth_function():
  pytest.importorskip("sklearn")
  rng = np.random.default_rng(0)
  coords = np.pad(rng.random((30, 2)), [(0, 0), (0, 1)])  # an axis that is not used
  values = 100 + np.sum(coords, axis=1)
  process = surrogates.GaussianProcess(coords[:20], values[:20])
  for x, y in zip(coords[20:25], values[20:25], strict=True):
    process.observe(x, y)
  output = process.predict(jnp.array([[0.4, 0.5, 0.0]], jnp.float32))
  assert output.mean.item() == pytest.approx(100.9, abs=0.02)
  assert 0 < output.std.item() < 0.1
  assert process.description["num_fits"] == 3  # with 20, 22 and 25


# --- The program.


def _compare(folder, out, **changes):
  options = dict(
    functions=["branin"],
    methods=["reader", "random"],
    acquisitions=["ei", "thompson"],
    num_observations=12,
    num_gp=11,
    num_seeds=1,
    model_folder=folder,
    out=out,
  )
  return bayesopt.compare(**options | changes)


def test_compare_keeps_finished_runs_and_makes_missing_ones(
  reader, folder, tmp_path, monkeypatch
):
  out = tmp_path / "bayesopt.json"
  content = _compare(folder, out)
  assert content == json.loads(out.read_text())
  kinds = [(row["method"], row.get("acquisition")) for row in content["rows"]]
  assert kinds == [("reader", "ei"), ("reader", "thompson"), ("random", None)]
  for row in content["rows"]:
    first, last = row["curve"]
    assert (first["num_observations"], last["num_observations"]) == (10, 12)
    assert first["regret"] >= last["regret"] >= 0 and last["step_seconds"] > 0
  made = []

  def minimise(function, start, score, seed, most, num_axes):
    made.append((function.title, score, seed, most))
    return {"curve": [{"num_observations": most, "regret": 0.5, "seconds": 1.0}]}

  monkeypatch.setattr(bayesopt, "minimise", minimise)
  assert _compare(folder, out)["rows"] == content["rows"] and not made
  content = _compare(folder, out, methods=["random"], num_observations=30, num_seeds=2)
  title = FUNCTIONS["branin"].title
  assert made == [(title, None, 0, 30), (title, None, 1, 30)]
  assert len(content["rows"]) == 4 and content["rows"][-1]["session"] == 1
  out.write_text(json.dumps(content | {"settings": {}}))
  with pytest.raises(ConfigError, match=r"must have runs of the settings .* choose"):
    _compare(folder, out)


def test_minimise_stays_in_the_cube_and_beats_random_search():
  seen = []

  class Bowl(surrogates.Surrogate):
    """Knows the function, with a small error."""

    def predict(self, coords):
      mean = jnp.sum((coords - 0.5) ** 2, axis=-1)[:, None, None]
      return tca_jax.GaussianMixture(
        log_weights=0 * mean, means=mean, stds=0 * mean + 0.01
      )

    def observe(self, coords, value):
      seen.append((coords, value))

  ackley, score = FUNCTIONS["ackley"], bayesopt.ACQUISITIONS["ei"]
  known = bayesopt.minimise(ackley, lambda x, y: Bowl(), score, 0, 40, 6)
  blind = bayesopt.minimise(ackley, None, None, 0, 40, 6)
  assert [entry["num_observations"] for entry in known["curve"]] == [10, 30, 40]
  assert known["curve"][0]["regret"] == blind["curve"][0]["regret"]  # one start design
  assert known["curve"][-1]["regret"] < blind["curve"][-1]["regret"] / 2
  coords = np.array([x for x, _ in seen])
  assert coords.shape == (30, 6) and np.all((coords >= 0) & (coords <= 1))
  assert np.all(coords[:, 5] == 0)
  np.testing.assert_allclose([y for _, y in seen], ackley(coords[:, :5]))


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(functions=["sphere"]), "function must have names of branin, .*'sphere'"),
    (dict(methods=[]), "methods must have names of reader, gp, random, got ''"),
    (dict(acquisitions=["ucb"]), "acquisition must have names of ei, .*, got 'ucb'"),
    (dict(num_observations=9), "num_observations must be at least 10, .*, got 9"),
    (dict(num_gp=3), "num_gp must be at least 10, .*, got 3"),
  ],
)
def test_bad_options_are_found_before_the_work(
  changes, message, reader, folder, tmp_path
):
  with pytest.raises(ConfigError, match=message):
    _compare(folder, tmp_path / "out.json", **changes)
  assert not (tmp_path / "out.json").exists()


def test_missing_sklearn_is_found_before_the_work(
  reader, folder, tmp_path, monkeypatch
):
  monkeypatch.setattr(surrogates.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(DataError, match="pip install scikit-learn"):
    _compare(folder, tmp_path / "out.json", methods=["gp"])


def test_black_box_task_is_for_relative_models():
  with pytest.raises(ConfigError, match="relative_ca for functions, got 'tca'"):
    black_box.BlackBoxConfig(model="tca")


def test_flags_have_the_defaults_of_the_full_comparison():
  values = flags.FlagValues()
  bayesopt.define_flags(values)
  values(["bayesopt", "--function=branin,ackley"])
  assert values.function == ["branin", "ackley"]
  assert values.methods == ["reader", "gp", "random"]
  assert values.num_observations == bayesopt.SIZES[-1] == 10_000


# --- The figure and the section of the report.


def _rows():
  """Rows of two functions, of which one has no Gaussian process."""
  rows = []
  for function in ("branin", "ackley"):
    for method in ("reader", "gp", "random"):
      if (function, method) == ("ackley", "gp"):
        continue
      for seed in (0, 1):
        row = {"function": function, "method": method, "seed": seed, "session": 0}
        row |= {} if method == "random" else {"acquisition": "ei"}
        curve = [
          {"num_observations": 10, "regret": 5.0 + seed, "seconds": 0.0},
          {
            "num_observations": 30,
            "regret": {"reader": 0.5, "gp": 0.25, "random": 4.0}[method] + seed,
            "seconds": 2.0,
            "step_seconds": 0.1,
          },
        ]
        rows.append(row | {"curve": curve})
  return rows


def test_plot_regret_draws_medians_of_the_seeds(monkeypatch):
  figures = []
  monkeypatch.setattr(style, "save", lambda figure, path: figures.append(figure))
  titles = {name: function.title for name, function in FUNCTIONS.items()}
  regret.plot_regret(_rows(), titles, page.TITLES, "unused.png")
  (branin, ackley), times = np.reshape(figures[0].axes, (2, 2))
  lines = {line.get_label(): line for line in branin.lines}
  assert list(lines) == ["Trained reader, ei", "Gaussian process, ei", "Random search"]
  assert lines["Gaussian process, ei"].get_ydata() == pytest.approx([5.5, 0.75])
  assert len(ackley.lines) == 2 and len(times[0].lines) == 3


def test_report_tells_where_the_gaussian_process_is_better(tmp_path):
  origin = {"device": "1 x cpu", "cores": 2, "command": "bayesopt", "commit": "abc"}
  content = {
    "settings": {"model_step": 9, "num_candidates": 128, "num_start": 10},
    "sessions": [origin],
    "rows": _rows(),
  }
  (tmp_path / "bayesopt.json").write_text(json.dumps(content))
  text = page.section(runs.Results(tmp_path))
  assert "| Branin, 2 inputs | Gaussian process, ei | 2 | 5.5 | 0.75 |" in text
  assert "| Ackley, 5 inputs | Random search | 2 |  | 100.0 |" in text
  assert "| Ackley, 5 inputs | Random search | 2 | 0.0 | 2.0 |" in text
  assert "the Gaussian process has the smaller regret for Branin at 30" in text
  assert "the reader has the smaller" not in text
  assert page.section(runs.Results(tmp_path / "none")) == ""
