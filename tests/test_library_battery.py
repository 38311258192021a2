"""A battery of wrong and unusual arguments of the library, one case a line."""

import pathlib
import re
import warnings

from flax import serialization
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

import tca_jax
from tca_jax import memory as memory_lib
from tca_jax import retrieval
from tests import models

X = np.random.default_rng(0).normal(size=(2, 9, 2)).astype(np.float32)
TREE = tca_jax.build_tree(X[0])
LEVELS = [np.ones((2**l, 1, 3), np.float32) for l in range(5)]
MEMORY = jax.tree.map(np.asarray, memory_lib.pack(TREE, LEVELS, LEVELS))
QUERY = np.ones((1, 3), np.float32)
TINY = dict(width=4, num_heads=2, hidden=4)
LOGITS = np.zeros((2, 4), np.float32)


def _mean(x, mask):
  return tca_jax.masking.masked_mean(x, mask[..., None], axis=-2)


def _model(read_out=None, head=None, embedder=None, encoder=None):
  return tca_jax.ReTreever(
    embedder or tca_jax.PointEmbedder(4, 1),
    read_out or tca_jax.CrossAttention(**TINY),
    head or tca_jax.GaussianHead(1, hidden=4),
    encoder,
  )


def _init(*, queries=X, **parts):
  return jax.eval_shape(_model(**parts).init, jax.random.key(0), X, X[..., :1], queries)


def _attend(mask):
  ones = np.ones((4, 1, 2), np.float32)
  return tca_jax.cross_attention(ones[0], ones, ones, mask)


def _labels(labels):
  return tca_jax.Categorical(logits=LOGITS).log_prob(labels)


RAISE = [
  # Silent wrong numbers.
  ("float mask", lambda: _attend(np.array([0, 0, -np.inf, 0])), "mask must be bool"),
  ("int mask", lambda: _attend(np.ones(4, int)), "mask must be bool"),
  ("short mask", lambda: _attend(np.ones(3, bool)), r"mask must be \(4,\)"),
  ("softmax mask", lambda: tca_jax.masking.masked_softmax(LOGITS, LOGITS), "mask must be bool"),
  ("mean mask", lambda: tca_jax.masking.masked_mean(LOGITS, LOGITS), "where must be bool"),
  ("more tokens", lambda: tca_jax.aggregate(_mean, TREE, np.ones((12, 3))), r"of the tree, \[9, D\]"),
  ("other depth", lambda: tca_jax.aggregate(_mean, TREE, np.ones((8, 3))), "of depth 4"),
  ("label K", lambda: _labels([0, 4]), r"labels must be in \[0, 4\), got 4"),
  ("label -1", lambda: _labels([0, -1]), r"labels must be in \[0, 4\), got -1"),
  ("label float", lambda: _labels([0.0, 1.0]), "labels must be integers"),
  ("accuracy K", lambda: tca_jax.Categorical(logits=LOGITS).accuracy([0, 4]), "got 4"),
  # Sizes.
  *[(f"{name} {size}", lambda k={name: size}: _init(read_out=tca_jax.CrossAttention(**TINY | k)), f"{name} must be an integer of at least 1, got {size}")
    for name in ("width", "num_heads", "hidden") for size in (0, -2, 1.5)],
  ("dropout", lambda: _init(read_out=tca_jax.CrossAttention(**TINY, dropout=1.5)), r"dropout must be in \[0, 1\)"),
  ("latents", lambda: _init(read_out=tca_jax.PerceiverIO(**TINY, num_latents=0)), "num_latents must be an integer"),
  ("layers", lambda: _init(encoder=tca_jax.Encoder(-1)), "num_layers must be an integer of at least 0, got -1"),
  ("heads", lambda: _init(encoder=tca_jax.Encoder(1, 0)), "num_heads must be an integer"),
  ("embedder", lambda: _init(embedder=tca_jax.PointEmbedder(0)), "width must be an integer"),
  ("depth", lambda: _init(embedder=tca_jax.PointEmbedder(4, 0)), "depth must be an integer"),
  ("frequencies", lambda: _init(embedder=tca_jax.PointEmbedder(4, 1, -1)), "num_frequencies must be"),
  ("placeless", lambda: _init(embedder=tca_jax.PlacelessEmbedder(0)), "width must be an integer"),
  ("sequence", lambda: _init(embedder=tca_jax.SequenceEmbedder(4, 0)), "num_features must be"),
  ("outputs", lambda: _init(head=tca_jax.GaussianHead(0)), "num_outputs must be an integer"),
  ("components", lambda: _init(head=tca_jax.MixtureHead(1, 0)), "num_components must be"),
  ("classes", lambda: _init(head=tca_jax.ClassificationHead(-1)), "num_classes must be"),
  ("min_std", lambda: _init(head=tca_jax.GaussianHead(1, min_std=-1.0)), "min_std must be in"),
  # Shapes and types.
  ("query axes", lambda: _init(queries=X[..., :1]), r"query_coords must be \[2, M, 2\]"),
  ("query batch", lambda: _init(queries=X[:1]), r"query_coords must be \[2, M, 2\]"),
  ("query rank", lambda: _init(queries=X[0]), r"query_coords must be \[2, M, 2\]"),
  ("ragged", lambda: tca_jax.build_tree([[1.0], [1.0, 2.0]]), "coords must be an array or nested lists"),
  ("text", lambda: tca_jax.build_tree("abc"), "coords must be an array or nested lists"),
  ("none", lambda: retrieval.read(None, MEMORY), "query must be an array or nested lists"),
  *[(f"key {key}", lambda key=key: retrieval.attend(QUERY, MEMORY, rng=key), "rng must be a key")
    for key in (3, 1.5, "a", np.ones(2))],
  ("tree key", lambda: tca_jax.build_tree(X[0], order="random", rng=0), "rng must be a key"),
]  # fmt: skip


@pytest.mark.parametrize("name, function, message", RAISE, ids=[x[0] for x in RAISE])
def test_wrong_argument_raises_and_is_named(name, function, message):
  del name
  with pytest.raises((ValueError, TypeError), match=message):
    function()


KNOWN = {
  "coords": {"axes": ["x", "y"], "range": [[0, 1], [-2, 2]], "unit": "km"},
  "values": {"mean": 5.0, "std": 2.0, "unit": "m"},
}
POINT = tca_jax.PointEmbedder(4, 1)
PLACELESS = tca_jax.PlacelessEmbedder(4)

WARN = [
  ("metres", POINT, KNOWN, [431000.0, 0.0], None, r"coordinate x was in \[0, 1\] in training and is in \[431000, 431000\].*unit: km"),
  ("second axis", POINT, KNOWN, [0.5, -4.5], None, r"coordinate y was in \[-2, 2\] .* in \[-4.5, -4.5\]"),
  ("raw values", POINT, KNOWN, [0.5, 0.0], [531.0], r"mean 5.0 and the std 2.0 \(unit: m\) and are in \[0, 531\]"),
  ("relative values", PLACELESS, KNOWN, [0.5, 0.0], [-1e9], r"in \[-1e\+09, 0\] here"),
  ("relative metres", PLACELESS, KNOWN, [431000.0, 0.0], [1.0], None),
  ("inside", POINT, KNOWN, [1.0, -2.0], [3.0], None),
  ("near", POINT, KNOWN, [1.4, -3.9], [29.0], None),
  ("NaN", POINT, KNOWN, [np.nan, 0.0], [np.nan], None),
  ("masked", POINT, KNOWN, [431000.0, 0.0], [531.0], None),
  ("own info", POINT, {"coords": "lon, lat", "values": [1.0]}, [431000.0, 0.0], [531.0], None),
  ("no info", POINT, {}, [431000.0, 0.0], [531.0], None),
]  # fmt: skip


@pytest.mark.parametrize(
  "name, embedder, info, coords, values, message", WARN, ids=[x[0] for x in WARN]
)
def test_inputs_far_outside_the_training_are_told_once(
  name, embedder, info, coords, values, message, monkeypatch
):
  monkeypatch.setattr(tca_jax.checkpoint, "_warned", set())
  mask = np.array([[False, name != "masked"]])
  values = None if values is None else np.array([[[0.0], values]], np.float32)
  inputs = (np.array([[[0.5, 0.0], coords]], np.float32), values, mask)
  model = _model(embedder=embedder)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
      tca_jax.warn_outside_range(model, info, *inputs)
  assert len(caught) == (message is not None)
  if message is not None:
    assert re.search(message, str(caught[0].message))
    assert caught[0].filename == __file__


def test_shipped_model_far_outside_its_training_is_told(monkeypatch):
  monkeypatch.setattr(tca_jax.checkpoint, "_warned", set())
  folder = pathlib.Path(__file__).parent.parent / "checkpoints" / "gp_tca"
  model, _, info = tca_jax.load(folder)
  metres = np.linspace(431000, 432000, 5)[None, :, None]
  with pytest.warns(UserWarning, match=r"x was in \[-2, 2\] in training"):
    tca_jax.warn_outside_range(model, info, metres)
  with pytest.raises(ValueError, match="coords must have 1 axes as in training, got 2"):
    tca_jax.warn_outside_range(model, info, X)
  with pytest.raises(
    ValueError, match=r"must be \[\[low, high\], ...\], .* got \[0, 1\]"
  ):
    tca_jax.warn_outside_range(model, {"coords": {"range": [0, 1]}}, metres)
  jax.jit(lambda x: tca_jax.warn_outside_range(model, info, x))(metres)


def _lists(x):
  return jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), x)


ACCEPT = [
  ("cross_attention", lambda f: tca_jax.cross_attention(*f((QUERY, LEVELS[2], LEVELS[2]))).output),
  ("mask", lambda f: _attend(f(np.array([True, False, True, True]))).output),
  ("build_tree", lambda f: tca_jax.build_tree(f(X[0])).leaf_index),
  ("aggregate", lambda f: tca_jax.aggregate(_mean, TREE, f(X[0]))[0]),
  ("tree_attention", lambda f: tca_jax.tree_attention(f(QUERY), [f(x) for x in LEVELS], [f(x) for x in LEVELS], TREE).output),
  ("read", lambda f: retrieval.read(f(QUERY), MEMORY).output),
  ("beam", lambda f: retrieval.read(f(QUERY), MEMORY, num_paths=2).output),
  ("attend", lambda f: retrieval.attend(f(QUERY), MEMORY).output),
  ("subtree_mass", lambda f: tca_jax.subtree_mass(f(np.ones(4, np.float32)), 2)[0]),
  ("gaussian", lambda f: tca_jax.Gaussian(mean=f(X), std=f(X**2 + 1)).log_prob(f(X))),
  ("coverage", lambda f: tca_jax.Gaussian(mean=f(X), std=f(X**2 + 1)).interval_coverage(f(X), 0.5)),
  ("labels", lambda f: tca_jax.Categorical(logits=f(LOGITS)).log_prob(f(np.array([1, 2])))),
]  # fmt: skip


@pytest.mark.parametrize("name, function", ACCEPT, ids=[x[0] for x in ACCEPT])
def test_lists_and_numpy_arrays_give_the_result_of_jax_arrays(name, function):
  del name
  expected = function(lambda x: jax.tree.map(jnp.asarray, x))
  for convert in (lambda x: x, _lists):
    np.testing.assert_allclose(function(convert), expected, rtol=1e-5)


def test_models_take_lists(rng):
  del rng
  model = _model()
  params = models.draw(model.init, X, X[..., :1], X)
  expected = model.apply(params, X, X[..., :1], X).output.mean
  found = model.apply(params, X.tolist(), X[..., :1].tolist(), X.tolist()).output.mean
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  with pytest.raises(
    ValueError, match=r"query_coords \(2, 9, 1\) must have the numbers"
  ):
    memory = model.apply(params, X, X[..., :1], method="index")
    model.apply(params, memory, X[..., :1], method="read")


@pytest.mark.parametrize("rng", [jax.random.key(1), jax.random.PRNGKey(1)])
def test_keys_of_both_styles_are_accepted(rng):
  expected = retrieval.attend(QUERY, MEMORY, rng=jax.random.key(1)).path
  np.testing.assert_array_equal(retrieval.attend(QUERY, MEMORY, rng=rng).path, expected)


def test_label_outside_under_jit_is_nan():
  if jax.config.jax_debug_nans:
    pytest.skip("the NaN is meant")
  if jax.config.jax_disable_jit:
    pytest.skip("labels are known without jit, and an error names them")
  labels = jnp.array([0, 4, -1])
  logits = jnp.zeros((3, 4))
  for method in ("log_prob", "accuracy"):
    found = jax.jit(
      lambda x, m=method: getattr(tca_jax.Categorical(logits=logits), m)(x)
    )
    assert np.isnan(found(labels)).tolist() == [False, True, True]


@pytest.mark.parametrize("value", [TREE, MEMORY], ids=["Tree", "TreeMemory"])
def test_flax_serialization_round_trips(value):
  blank = jax.tree.map(np.zeros_like, value)
  found = serialization.from_bytes(blank, serialization.to_bytes(value))
  assert type(found) is type(value)
  jax.tree.map(np.testing.assert_array_equal, found, value)


# --- Several devices: all of this process; test_strict_modes starts one with eight.

ROWS = np.random.default_rng(1).normal(size=(8, 9, 2)).astype(np.float32)
SHARDED = {
  "build_tree": lambda x: tca_jax.build_tree(x).leaf_index,
  "aggregate": lambda x: tca_jax.aggregate(_mean, tca_jax.build_tree(x), x)[0],
  "node_statistics": lambda x: (
    tca_jax.node_statistics(tca_jax.build_tree(x), x, x[:, :1]).levels[0].mean
  ),
  "cross_attention": lambda x: (
    tca_jax.cross_attention(x[:1, :1] * QUERY, LEVELS[2], LEVELS[2]).output
  ),
  "tree_attention": lambda x: (
    tca_jax.tree_attention(x[:1, :1] * QUERY, LEVELS, LEVELS, TREE).output
  ),
  "sampled": lambda x: (
    tca_jax.tree_attention(
      x[:1, :1] * QUERY, LEVELS, LEVELS, TREE, rng=jax.random.key(0)
    ).output
  ),
  "attend": lambda x: retrieval.attend(x[:1, :1] * QUERY, MEMORY).output,
  "read": lambda x: retrieval.read(x[:1, :1] * QUERY, MEMORY).output,
  "beam": lambda x: retrieval.read(x[:1, :1] * QUERY, MEMORY, num_paths=2).output,
}
FAST = ("build_tree",)


def _sharded(function, *in_specs):
  """A compiled function whose arguments are divided among all devices."""
  mesh = Mesh(np.array(jax.devices()), ("d",))
  specs = dict(in_specs=in_specs, out_specs=PartitionSpec("d"))
  return jax.jit(jax.shard_map(function, mesh=mesh, **specs))


@pytest.mark.parametrize(
  "name",
  [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in SHARDED
  ],
)
def test_shard_map_with_its_checks_gives_the_same(name):
  function = jax.vmap(SHARDED[name])
  found = _sharded(function, PartitionSpec("d"))(ROWS)
  np.testing.assert_allclose(found, jax.jit(function)(ROWS), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.READ_OUTS + models.RELATIVE)
def test_models_under_shard_map_predict_and_learn_the_same(name):
  model = models.model(name)
  params = models.params(model)

  def predict(params, x):
    memory = model.apply(params, x, x[..., :1], method="index")
    return model.apply(params, memory, x[:, :3], method="read").output.mean

  def gradient(params, x):
    """The gradient of each example, whose sum is that of the batch."""

    def loss(params, x):
      rngs = {"policy": jax.random.key(0)}
      x = x[None]
      found = model.apply(params, x, x[..., :1], x[:, :3], train=True, rngs=rngs)
      return found.output.log_prob(x[:, :3, :1]).mean()

    found = jax.vmap(jax.grad(loss), (None, 0))(params, x)
    return jnp.stack([jnp.sum(g**2) for g in jax.tree.leaves(found)])[None]

  specs = (PartitionSpec(), PartitionSpec("d"))
  found = _sharded(predict, *specs)(params, ROWS)
  expected = jax.jit(predict)(params, ROWS)
  np.testing.assert_allclose(found, expected, **models.ROUNDED)
  assert np.isfinite(_sharded(gradient, *specs)(params, ROWS)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", models.READ_OUTS + models.RELATIVE)
def test_models_of_arrays_on_several_devices_predict_the_same(name):
  model = models.model(name)
  params = models.params(model)
  mesh = Mesh(np.array(jax.devices()), ("d",))
  rows = jax.device_put(ROWS, NamedSharding(mesh, PartitionSpec("d")))
  apply = jax.jit(lambda params, x: model.apply(params, x, x[..., :1], x[:, :3]))
  found, expected = apply(params, rows), apply(params, ROWS)
  np.testing.assert_allclose(found.output.mean, expected.output.mean, **models.ROUNDED)
  assert len(found.output.mean.sharding.device_set) == len(jax.devices())
