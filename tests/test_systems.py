"""The registry of models: titles, tokens read, and ways to read."""

import typing

import jax
import pytest

from experiments.common import config as config_lib
from experiments.common import systems
from experiments.common.errors import ConfigError
import tca_jax


def test_systems_are_the_values_of_the_option():
  assert tuple(systems.SYSTEMS) == typing.get_args(config_lib.Model)
  assert len(set(systems.TITLES.values())) == len(systems.TITLES)
  assert systems.TITLES["tca_full"] == "ReTreever-Full"


@pytest.mark.parametrize(
  "options, expected",
  [
    (dict(model="tca"), 8),
    (dict(model="tca", num_paths=4), 24),
    (dict(model="tca", branch_factor=4), 13),
    (dict(model="ca"), 128),
    (dict(model="ca", num_paths=4), 128),
    (dict(model="relative_tca", beam_width=1), 8),
    (dict(model="relative_tca", beam_width=4), 24),
    (dict(model="relative_tca", num_paths=4), 24),
    (dict(model="relative_tca", num_paths=4, upper_paths=1), 21),
    (dict(model="relative_ca"), 128),
    (dict(model="perceiver"), 8),
    (dict(model="perceiver", num_paths=4), 8),
    (dict(model="perceiver", num_latents=32), 32),
  ],
)
def test_largest_read_matches_the_model(options, expected):
  """Also of a Perceiver IO that was built: its number of latents."""
  config = config_lib.Config(**options)
  system = systems.SYSTEMS[config.model]
  assert system.largest_read(config, 128) == expected
  read_out = system.build(config, 128)
  assert getattr(read_out, "num_latents", expected) == expected


def test_reader_reads_fewer_queries_together_only_on_a_cpu(monkeypatch):
  (reader,) = systems.SYSTEMS["relative_tca"].readers.values()
  monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
  assert reader.most_queries == 256
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert reader.most_queries == 4096


def test_evaluation_reader_uses_the_beam_width_only_with_a_tree():
  for name, system in systems.SYSTEMS.items():
    reader = system.evaluation_reader(config_lib.Config(model=name, num_paths=4))
    assert reader.options == ({"num_paths": 4} if system.has_tree else {})
    first = next(iter(system.readers.values()))
    assert reader.most_on_cpu == first.most_on_cpu
    assert system.evaluation_reader(config_lib.Config(model=name)) == first
  one, two = (first.along(n) for n in (1, 2))
  assert one.method == two.method == "read"
  assert one.title.endswith(", 1 path") and two.title.endswith(", 2 paths")


@pytest.mark.parametrize("model", ["relative_tca", "relative_ca"])
def test_relative_models_refuse_classifications(model):
  config = config_lib.Config(model=model)
  embedder = systems.build_point_embedder(config, num_frequencies=3)
  head = tca_jax.ClassificationHead(3)
  message = f"model={model} is for regressions; .* tca, ca, perceiver"
  with pytest.raises(ConfigError, match=message):
    systems.build_model(config, 8, embedder, head)


def test_periods_reach_relative_models_and_others_refuse_them():
  head = tca_jax.GaussianHead(1)
  for name, system in systems.SYSTEMS.items():
    config = config_lib.Config(model=name)
    embedder = systems.build_point_embedder(config, num_frequencies=3)
    parts = (config, 8, embedder, head)
    assert systems.build_model(*parts, (0, 0)).read_out == system.build(config, 8)
    if system.is_relative:
      assert systems.build_model(*parts, (1, 0)).read_out.periods == (1, 0)
      continue
    with pytest.raises(ConfigError, match=f"relative model, got model={name} .*1, 0"):
      systems.build_model(*parts, (1, 0))


def test_options_name_the_models_with_a_tree_and_the_relative_ones():
  with_tree = {name for name, system in systems.SYSTEMS.items() if system.has_tree}
  relative = {name for name, system in systems.SYSTEMS.items() if system.is_relative}
  assert set(config_lib._TREES) == with_tree
  assert set(config_lib._RELATIVE) == relative


def test_relative_options_reach_the_read_out():
  options = dict(
    read_layers=2,
    self_layers=1,
    summary_width=5,
    local_units=True,
    sees_scale=False,
    values_in_tokens=False,
    geometry_in_tokens=False,
    geometry_in_logits=False,
    kriged_nodes=9,
  )
  config = config_lib.Config(
    model="relative_tca", num_layers=0, beam_width=7, **options
  )
  built = systems.SYSTEMS["relative_tca"].build(config, 8)
  renamed = {
    "read_layers": "num_layers",
    "self_layers": "num_self_layers",
    "kriged_nodes": "num_kriged",
  }
  for name, value in (options | {"num_paths": 7}).items():
    assert getattr(built, renamed.get(name, name)) == value
  assert not systems.build_point_embedder(config, 3).sees_values


@pytest.mark.parametrize(
  "options, fits",
  [({}, True), (dict(local_units=True), False), (dict(kriged_nodes=0), False)],
)
def test_fits_covariance_reaches_the_read_out_where_it_has_an_effect(options, fits):
  config = config_lib.Config(model="relative_tca", fits_covariance=True, **options)
  built = systems.SYSTEMS["relative_tca"].build(config, 8)
  assert built.fits_covariance == fits
  unused = systems.unused_options(config, ["fits_covariance"], "train")
  assert bool(unused) != fits


@pytest.mark.parametrize("options", [dict(sees_location=True), dict(num_layers=2)])
def test_relative_models_can_see_absolute_locations(options):
  config = config_lib.Config(model="relative_tca", **options)
  embedder = systems.build_point_embedder(config, 3)
  assert isinstance(embedder, tca_jax.PointEmbedder) and embedder.num_frequencies == 3
  assert not systems.unused_options(config, ["position_skip", *options], "train")
