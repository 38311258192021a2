"""Results of runs, found by the configs that their JSON files contain."""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import json
import statistics
import typing

from etils import epath

from experiments import published

MODELS = ("tca", "ca", "perceiver")  # in the order of the tables

Options = Mapping[str, typing.Any]

# Keys of result files that were renamed, by their old name: when all maps were of
# elevations, keys named metres.
_RENAMED = {
  "rmse_metres": "rmse",
  "interpolation_rmse_metres": "interpolation_rmse",
  "elevation_std": "value_std",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """A row of the main table: the runs of one data set.

  Attributes:
    title: the name of the data set in tables.
    options: values of options that the configs of the runs have.
    metric: "accuracy" or "log_likelihood".
    published: the key of the paper's numbers in `published.RESULTS`, or None.
    note: a sentence about the data, for readers who compare rows.
  """

  title: str
  options: Options
  metric: published.Metric
  published: str | None = None
  note: str = ""


ROWS = (
  Row(title="Copy, T = 64", options=dict(sequence_length=64), metric="accuracy"),
  *(
    Row(
      title=f"Copy, T = {length}",
      options=dict(sequence_length=length),
      metric="accuracy",
      published=f"copy_{length}",
    )
    for length in (256, 512, 1024)
  ),
  Row(
    title="GP, RBF kernel",
    options=dict(kernel="rbf", num_steps=100_000),
    metric="log_likelihood",
    published="gp_rbf",
  ),
  Row(
    title="GP, Matern-5/2 kernel",
    options=dict(kernel="matern52", num_steps=100_000),
    metric="log_likelihood",
    published="gp_matern52",
    note="The models are trained on functions of the RBF kernel only.",
  ),
  Row(
    title="CelebA, 32x32",
    options=dict(dataset="celeba"),
    metric="log_likelihood",
    published="celeba",
  ),
  Row(
    title="Photo patches, 32x32",
    options=dict(dataset="photos"),
    metric="log_likelihood",
    note=(
      "Colour patches of photographs, split by photograph. Their numbers cannot be"
      " compared with those of CelebA."
    ),
  ),
  Row(
    title="EMNIST, classes 0-9 (seen)",
    options=dict(dataset="emnist", unseen=False),
    metric="log_likelihood",
    published="emnist_seen",
  ),
  Row(
    title="EMNIST, classes 10-46 (unseen)",
    options=dict(dataset="emnist", unseen=True),
    metric="log_likelihood",
    published="emnist_unseen",
  ),
  Row(
    title="MNIST, digits 0-4 (seen)",
    options=dict(dataset="mnist", unseen=False, num_steps=5_000),
    metric="log_likelihood",
    note="MNIST digits. Their numbers cannot be compared with those of EMNIST.",
  ),
  Row(
    title="MNIST, digits 5-9 (unseen)",
    options=dict(dataset="mnist", unseen=True, num_steps=5_000),
    metric="log_likelihood",
    note="The models are trained on digits 0-4 only.",
  ),
  Row(
    title="UCI Human Activity",
    options=dict(dataset="uci", split="random"),
    metric="accuracy",
    published="human_activity",
  ),
  Row(
    title="Human Activity excerpt, random split",
    options=dict(dataset="uci_excerpt", split="random"),
    metric="accuracy",
    note=(
      "Recordings of one person only, which are not shipped. Segments overlap, so most"
      " test segments share rows with training segments: the number measures recall"
      " as much as recognition."
    ),
  ),
  Row(
    title="Human Activity excerpt, split by time",
    options=dict(dataset="uci_excerpt", split="time"),
    metric="accuracy",
    note=(
      "The test part is the end of each recording. Some of its activities are rare or"
      " missing in the training part, so no model can reach 100 %."
    ),
  ),
  Row(
    title="Smart watch, split by person",
    options=dict(dataset="watch", split="person"),
    metric="accuracy",
    note="Shoulder exercises; the label is constant within a recording.",
  ),
  Row(
    title="Elevation (fault), windows",
    options=dict(dataset="fault", whole_map=0.1),
    metric="log_likelihood",
    note="Not a task of the paper; see Large contexts.",
  ),
  Row(
    title="Elevation (airports), windows",
    options=dict(dataset="airports", whole_map=0.5),
    metric="log_likelihood",
    note="Not a task of the paper; see Large contexts.",
  ),
  Row(
    title="Photograph (retina), windows",
    options=dict(dataset="retina"),
    metric="log_likelihood",
    note="Not a task of the paper; see Large contexts.",
  ),
)


@dataclasses.dataclass(frozen=True)
class File:
  """A JSON file of results.

  Attributes:
    path: its path under the results folder, with forward slashes.
    content: the JSON, with the present names of keys.
  """

  path: str
  content: typing.Any

  @property
  def config(self) -> dict[str, typing.Any]:
    """The config of the run; {} for a file without one."""
    return self.content.get("config", {}) if isinstance(self.content, dict) else {}

  def matches(self, options: Options) -> bool:
    """Checks whether the config has all values of some options."""
    config = self.config
    return all(
      name in config and config[name] == value for name, value in options.items()
    )


class Results:
  """All JSON files of a results folder, read once.

  Attributes:
    folder: the results folder.
    files: all files, in the order of their paths.
  """

  def __init__(self, folder: epath.PathLike):
    self.folder = epath.Path(folder)
    paths = [
      f"{prefix}{path.name}"
      for prefix in ("", "ablation/", "benchmarks/")
      for path in self.folder.glob(f"{prefix}*.json")
    ]
    self.files = [
      File(path, json.loads((self.folder / path).read_text(), object_hook=_renamed))
      for path in sorted(paths)
    ]

  def content(self, path: str) -> typing.Any:
    """The content of a file, by its path under the results folder; None without one."""
    return next((file.content for file in self.files if file.path == path), None)

  def runs(self, options: Options, model: str, num_latents: int = 0) -> list[File]:
    """Finds the evaluations of a model, one for each seed.

    Args:
      options: values of options that the configs of the runs have.
      model: the name of the model.
      num_latents: the option of this name: 0 for the default.

    Returns:
      The files, in the order of their seeds.

    Raises:
      ValueError: if several runs have the same seed.
    """
    options = {**options, "model": model}
    by_seed: dict[int, File] = {}
    for file in self.evaluations():
      config = file.config
      if not file.matches(options) or config.get("num_latents", 0) != num_latents:
        continue
      seed = config.get("seed", 0)
      if seed in by_seed:
        raise ValueError(
          f"{by_seed[seed].path} and {file.path} are both runs of {options} with"
          f" num_latents={num_latents} and seed {seed}: keep one, or select by more"
          " options"
        )
      by_seed[seed] = file
    return [by_seed[seed] for seed in sorted(by_seed)]

  def evaluations(self) -> list[File]:
    """Finds the evaluations of one trained model along one path."""
    return [
      file
      for file in self.files
      if file.config and "step" in file.content and "rows" not in file.content
      if file.config.get("num_paths", 1) in (0, 1)  # 0: as in training
    ]

  def latents(self, options: Options) -> list[int]:
    """Lists the numbers of latents of Perceiver IO's runs, in ascending order."""
    options = {**options, "model": "perceiver"}
    return sorted(
      {
        file.config.get("num_latents", 0)
        for file in self.evaluations()
        if file.matches(options)
      }
    )

  def with_rows(self, key: str) -> list[File]:
    """Finds the files whose "rows" have a key, as "num_context" or "num_paths"."""
    return [
      file
      for file in self.files
      if file.config and file.content.get("rows") and key in file.content["rows"][0]
    ]

  def under(self, prefix: str) -> list[File]:
    """Finds the files whose paths start with a prefix."""
    return [file for file in self.files if file.path.startswith(prefix)]


def _renamed(content: dict[str, typing.Any]) -> dict[str, typing.Any]:
  """Replaces old names of keys."""
  return {_RENAMED.get(name, name): value for name, value in content.items()}


def title(file: File) -> str:
  """Names the data set of a file: the first row whose options its config has."""
  return next((row.title for row in ROWS if file.matches(row.options)), file.path)


def cell(files: Iterable[File], metric: str) -> str:
  """Formats the mean of a metric over seeds, and its standard deviation if there are 2.

  Log-likelihoods have three decimals; shares are in per cent, with two decimals.

  >>> cell([File("a", {"accuracy": 0.5}), File("b", {"accuracy": 0.7})], "accuracy")
  '60.00 ± 14.14 (2 seeds)'
  """
  scale, digits = (1, 3) if metric.endswith("log_likelihood") else (100, 2)
  values = [scale * file.content[metric] for file in files if metric in file.content]
  if not values:
    return ""
  text = f"{statistics.mean(values):.{digits}f}"
  if len(values) > 1:
    text += f" ± {statistics.stdev(values):.{digits}f} ({len(values)} seeds)"
  return text


def mean(files: Iterable[File], metric: str) -> float | None:
  """The mean of a metric over the files that have it; None if none has."""
  values = [file.content[metric] for file in files if metric in file.content]
  return statistics.mean(values) if values else None


def levels(contents: Iterable[Mapping[str, typing.Any]]) -> list[int]:
  """Lists the levels of the intervals whose coverage some results have, in per cent.

  >>> levels([{"coverage_90": 0.9, "coverage_50": 0.5}, {"accuracy": 1.0}])
  [50, 90]
  """
  prefix = "coverage_"
  names = {name for content in contents for name in content if name.startswith(prefix)}
  return sorted(int(name.removeprefix(prefix)) for name in names)
