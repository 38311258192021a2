"""Bayesian optimisation with a trained reader whose context grows, beside baselines.

  python -m experiments.bayesopt

minimises test functions (`data/benchmark_functions.py`). Ten random points are known at
the start. In every step, an acquisition function scores candidates by what the surrogate
predicts there, the function is evaluated at the best candidate, and the surrogate
observes the value. Half of the candidates are uniform, and half are near the best point.

  reader  the model of `experiments.black_box`: nothing is fitted, and the observation is
          inserted into the memory in O(log N) time
  gp      the Gaussian process of scikit-learn, up to --num_gp observations: its time
          grows with their cube
  random  uniform points

The regret of a run is the smallest value found minus the known minimum. Every finished
run is kept in --out, and the same command goes on from there; with more --num_seeds or
--num_observations, only the missing runs are made. The "sessions" of the file are the
commands that made it.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import itertools
import statistics
import sys
import time
import typing

from absl import app
from absl import flags
from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from experiments import surrogates
from experiments.common import acquisition
from experiments.common import flags as flags_lib
from experiments.common import launch
from experiments.common import provenance
from experiments.common import workdir as workdir_lib
from experiments.common.errors import ConfigError
from experiments.data import benchmark_functions
from experiments.data.benchmark_functions import Function
from experiments.figures import regret
from experiments.report_pages.bayesopt import TITLES
import tca_jax

READER = epath.Path(__file__).parent.parent / "checkpoints/black_box"
NUM_START = 10  # random points that are known at the start
SIZES = (10, 30, 100, 300, 1000, 3000, 10_000)  # numbers of observations in a row
_NUM_CANDIDATES = 128

Score = Callable[[jax.Array, tca_jax.GaussianMixture, jax.Array], jax.Array]
Start = Callable[[np.ndarray, np.ndarray], surrogates.Surrogate]

# For each acquisition function a score of candidates, from a random key, the predicted
# distributions and the best value.
ACQUISITIONS: dict[str, Score] = {
  "ei": lambda rng, output, best: acquisition.expected_improvement(output, best),
  "thompson": lambda rng, output, best: acquisition.marginal_thompson(rng, output),
}

Row = dict[str, typing.Any]


def compare(
  functions: Sequence[str],
  methods: Sequence[str],
  acquisitions: Sequence[str],
  num_observations: int,
  num_gp: int,
  num_seeds: int,
  model_folder: epath.PathLike,
  out: epath.PathLike,
) -> dict[str, typing.Any]:
  """Minimises functions by several methods, and writes the result after each run.

  Args:
    functions: keys of `benchmark_functions.FUNCTIONS`.
    methods: keys of `TITLES`.
    acquisitions: keys of `ACQUISITIONS`.
    num_observations: number of evaluations of a function in a run.
    num_gp: the largest number for the Gaussian process.
    num_seeds: number of runs of each kind.
    model_folder: folder of the saved model.
    out: the JSON file. Its runs with at least as many observations are kept.

  Returns:
    The content of the file: "rows", one for each run, with its "function", "method",
    "acquisition", "seed" and "session" and the entries of `minimise`; "settings"; and
    "sessions", the origin of each call.

  Raises:
    CheckpointError: if the folder has no model.
    ConfigError: if a name is unknown, if a number is too small, or if the file has runs
      of other settings.
    DataError: if scikit-learn is needed and not installed.
  """
  flags_lib.check_names("function", functions, benchmark_functions.FUNCTIONS)
  flags_lib.check_names("methods", methods, TITLES)
  flags_lib.check_names("acquisition", acquisitions, ACQUISITIONS)
  for name, number in (("num_observations", num_observations), ("num_gp", num_gp)):
    if number < NUM_START:
      raise ConfigError(
        f"{name} must be at least {NUM_START}, the points at the start, got {number}"
      )
  reader = surrogates.TrainedReader(model_folder)
  for name in functions:
    if benchmark_functions.FUNCTIONS[name].num_inputs > reader.num_axes:
      raise ConfigError(
        f"model must have the inputs of the function {name}; it has {reader.num_axes}"
      )
  starts = {"reader": reader.start, "gp": surrogates.GaussianProcess, "random": None}
  if "gp" in methods:
    surrogates.check_sklearn()
  settings = {
    "model": epath.Path(model_folder).name,
    "model_step": reader.step,
    "num_candidates": _NUM_CANDIDATES,
    "num_start": NUM_START,
  }
  content = _load(epath.Path(out), settings)
  rows = content["rows"]
  content["sessions"].append(provenance.provenance())
  for seed, name, method in itertools.product(range(num_seeds), functions, methods):
    function = benchmark_functions.FUNCTIONS[name]
    most = min(num_observations, num_gp) if method == "gp" else num_observations
    for line in [""] if method == "random" else acquisitions:
      kind = {"function": name, "method": method, "seed": seed}
      kind |= {"acquisition": line} if line else {}
      old = [row for row in rows if kind.items() <= row.items()]
      if any(row["curve"][-1]["num_observations"] >= most for row in old):
        continue
      found = minimise(
        function, starts[method], ACQUISITIONS.get(line), seed, most, reader.num_axes
      )
      found["session"] = len(content["sessions"]) - 1
      rows[:] = [row for row in rows if row not in old] + [kind | found]
      workdir_lib.write_json(out, content)
      last = found["curve"][-1]
      print(
        f"{name}, {TITLES[method]} {line}, seed {seed}, {most:,} observations: regret"
        f" {last['regret']:.3g}, {last['seconds']:.1f} s",
        flush=True,
      )
  return content


def _load(out: epath.Path, settings: Row) -> dict[str, typing.Any]:
  """The content of a result file; without rows if it does not exist."""
  if not out.exists():
    return {"settings": settings, "sessions": [], "rows": []}
  content = workdir_lib.read_json(out)
  if content.get("settings") != settings:
    raise ConfigError(
      f"{out} must have runs of the settings {settings}, got {content.get('settings')};"
      " choose another --out"
    )
  return content


def minimise(
  function: Function,
  start: Start | None,
  score: Score | None,
  seed: int,
  num_observations: int,
  num_axes: int,
) -> Row:
  """Minimises a function.

  Args:
    function: the function.
    start: makes the surrogate of the first observations, `[n, C]` and `[n]`. None:
      random search.
    score: a value of `ACQUISITIONS`; None for random search.
    seed: random seed of the first points and of all candidates.
    num_observations: number of evaluations of the function, at least `NUM_START`.
    num_axes: number of axes of the candidates, at least that of the function's inputs;
      the coordinates of the other axes are 0.

  Returns:
    "curve", a dictionary for each of `SIZES`: "num_observations"; "regret"; "seconds",
    of the whole run until then; and "step_seconds", the median of the steps since the
    dictionary before. And what is known of the surrogate.
  """
  clock = time.perf_counter
  used = np.arange(num_axes) < function.num_inputs
  rng = np.random.default_rng(seed)
  coords = np.zeros((num_observations, num_axes))
  coords[:NUM_START, used] = rng.random((NUM_START, function.num_inputs))
  values = np.empty(num_observations)
  values[:NUM_START] = function(coords[:NUM_START, used])
  started = clock()
  known = coords[:NUM_START], values[:NUM_START]
  surrogate = start(*known) if start else None
  best = int(np.argmin(values[:NUM_START]))
  key = jax.random.key(seed)
  curve, laps = [], []
  for n in range(NUM_START, num_observations + 1):
    if n in SIZES or n == num_observations:
      entry = {
        "num_observations": n,
        "regret": float(values[best] - function.minimum),
        "seconds": clock() - started,
      }
      curve.append(entry | ({"step_seconds": statistics.median(laps)} if laps else {}))
      laps = []
    if n == num_observations:
      break
    began = clock()
    candidates, score_rng = _draw(key, n, coords[best], used)
    chosen = 0  # a uniform candidate
    if surrogate and score:
      output = surrogate.predict(candidates)
      chosen = int(_choose(score, score_rng, output, values[best]))
    coords[n] = candidates[chosen]
    values[n] = function(coords[n : n + 1, used])[0]
    if values[n] < values[best]:
      best = n
    if surrogate:
      surrogate.observe(coords[n], values[n])
    laps.append(clock() - began)
  return {"curve": curve, **(surrogate.description if surrogate else {})}


@jax.jit
def _draw(
  key: jax.Array, n: jax.Array, best: jax.Array, used: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The candidates of a step, and the key of its scores."""
  candidate_rng, score_rng = jax.random.split(jax.random.fold_in(key, n))
  best = best.astype(jnp.float32)
  return acquisition.draw_candidates(
    candidate_rng, best, used, _NUM_CANDIDATES
  ), score_rng


@functools.partial(jax.jit, static_argnums=0)
def _choose(
  score: Score, rng: jax.Array, output: tca_jax.GaussianMixture, best: jax.Array
) -> jax.Array:
  return jnp.argmax(score(rng, output, best))


def main(argv: list[str]) -> None:
  """Compares what the flags name, and draws the figure."""
  del argv
  logging.set_verbosity(logging.WARNING)
  values = flags.FLAGS

  def program() -> None:
    out = workdir_lib.writable_file(values.out, "--out")
    content = compare(
      values.function,
      values.methods,
      values.acquisition,
      values.num_observations,
      values.num_gp,
      values.num_seeds,
      values.model,
      out,
    )
    titles = {
      name: function.title for name, function in benchmark_functions.FUNCTIONS.items()
    }
    regret.plot_regret(content["rows"], titles, TITLES, out.with_suffix(".png"))
    print(out)

  sys.exit(launch.report(program))


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of the program."""
  for name, default, text in (
    ("function", [*benchmark_functions.FUNCTIONS], "Functions to minimise"),
    ("methods", [*TITLES], "Methods"),
    ("acquisition", [*ACQUISITIONS], "Acquisition functions of reader and gp"),
  ):
    named = f"{text}, separated by commas: {', '.join(default)}."
    flags.DEFINE_list(name, default, named, flag_values=values)
  for name, default, text in (
    ("num_observations", SIZES[-1], "Number of evaluations of a function in a run."),
    ("num_gp", 300, "Largest number of observations of the Gaussian process."),
    ("num_seeds", 1, "Number of runs of each kind."),
  ):
    flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)
  for name, default, text in (
    ("model", str(READER), "Folder of a model of experiments.black_box."),
    ("out", "results/bayesopt.json", "JSON file to write, or to continue."),
  ):
    flags.DEFINE_string(name, default, text, flag_values=values)


if __name__ == "__main__":
  define_flags(flags.FLAGS)
  app.run(main)
