"""Relative reads: the nearest nodes, local units, features, and their invariances."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tca_jax
from tca_jax import covariance_fit
from tca_jax import node_memory
from tca_jax import relative
from tca_jax import statistics
from tca_jax import tree as tree_lib
from tca_jax import walk
from tests import cases
from tests import models
from tests import reference

_PERIODS = (None, (5.0, 0.0))
_LARGEST = ((33, 2), (10, 3), (17, 4))  # of `cases.SHAPES`


@functools.partial(jax.jit, static_argnames=("branch_factor", "keep_border"))
def _memory(coords, values, mask, branch_factor=2, keep_border=False):
  tree = tree_lib.build_tree(coords, mask, branch_factor=branch_factor)
  found = statistics.node_statistics(tree, coords, values, keep_border=keep_border)
  summaries = [jnp.zeros((len(level.count), 0)) for level in found.levels]
  return node_memory.pack_nodes(tree, found, summaries)


@functools.partial(jax.jit, static_argnames=("num_paths", "periods", "upper_paths"))
def _read(memory, query, num_paths, periods=None, upper_paths=None):
  query = query - memory.domain.origin
  nodes, slots = relative.nearest_nodes(query, memory, num_paths, periods, upper_paths)
  read = node_memory.slot_nodes(memory, slots)
  offset = relative.offset_between(query[None], read.centroid, periods)
  frame = relative.local_frame(offset, read, memory.domain)
  return nodes, read, offset, frame, relative.node_features(offset, read, frame)


def _inputs(rng, n, layout="random", kind="all"):
  coords, mask = cases.coords(layout, n, rng), cases.mask(kind, n, rng)
  values = rng.normal(size=(n, 1)).astype(np.float32)
  return coords, values, mask


def _nodes(found):
  """The set of (level, index) of the valid nodes read."""
  valid = np.asarray(found.mask)
  return set(
    zip(
      np.asarray(found.level)[valid].tolist(),
      np.asarray(found.index)[valid].tolist(),
      strict=True,
    )
  )


@pytest.mark.parametrize("n, b", cases.SHAPES)
def test_nearest_nodes_equal_the_reference(n, b, rng):
  options = list(itertools.product((1, 3), _PERIODS))
  if (n, b) not in _LARGEST:  # each combination is compiled
    options = [options[0], options[-1]]
  for kind, (num_paths, periods) in itertools.product(cases.MASKS, options):
    coords, values, mask = _inputs(rng, n, kind=kind)
    query = rng.normal(size=2).astype(np.float32)
    memory = _memory(coords, values, mask, b)
    found, *_ = _read(memory, query, num_paths, periods)
    root = reference.build(coords, mask, b)
    expected = reference.nearest_nodes(
      query,
      root,
      reference.node_statistics(root, coords, values),
      num_paths,
      periods,
    )
    assert _nodes(found) == expected


@pytest.mark.parametrize("n, b", [(300, 2), (128, 2), (1000, 3), (20, 2)])
@pytest.mark.parametrize("num_paths, upper_paths", [(8, 4), (3, 1), (2, 5)])
def test_nearest_nodes_of_a_narrower_upper_beam(n, b, num_paths, upper_paths, rng):
  for kind in ("all", "random"):
    coords, values, mask = _inputs(rng, n, kind=kind)
    memory = _memory(coords, values, mask, b)
    root = reference.build(coords, mask, b)
    statistics = reference.node_statistics(root, coords, values)
    slots = walk.num_read_slots(n, b, num_paths, upper_paths)
    for query in rng.normal(size=(3, 2)).astype(np.float32):
      found, read, *_ = _read(memory, query, num_paths, upper_paths=upper_paths)
      assert _nodes(found) == reference.nearest_nodes(
        query, root, statistics, num_paths, upper_paths=upper_paths
      )
      assert int(read.count.sum()) == mask.sum()
      assert found.mask.shape == (slots,)


@pytest.mark.parametrize("n, b", cases.SHAPES)
def test_nearest_nodes_cover_every_token_once(n, b, rng):
  paths = (1, 2, 8) if (n, b) in _LARGEST else (1, 8)
  for layout, num_paths in itertools.product(cases.LAYOUTS, paths):
    coords, values, mask = _inputs(rng, n, layout, "random")
    found, read, *_ = _read(_memory(coords, values, mask, b), coords[0], num_paths)
    levels = reference.nodes_by_level(reference.build(coords, mask, b))
    tokens = [t for level, index in _nodes(found) for t in levels[level][index].tokens]
    assert sorted(tokens) == np.flatnonzero(mask).tolist()
    assert int(read.count.sum()) == mask.sum()
    slots = walk.num_read_slots(n, b, num_paths)
    assert found.mask.shape == (slots,) and found.num_read == len(_nodes(found))


def test_nearest_nodes_path_leads_to_the_nearest_leaf_on_the_beam(rng):
  coords, values, mask = _inputs(rng, 64)
  memory = _memory(coords, values, mask)
  for query in rng.normal(size=(20, 2)).astype(np.float32):
    found, *_ = _read(memory, query, 64)
    leaf = int("".join(map(str, np.asarray(found.path))), 2)
    nearest = np.argmin(np.sum((coords - query) ** 2, axis=1))
    assert memory.tree.leaf_index[leaf] == nearest


def test_nearest_nodes_bad_query_raises(rng):
  memory = _memory(*_inputs(rng, 8))
  for query, message in (
    (jnp.ones(3), r"query must be \(2,\), got shape \(3,\)"),
    (jnp.ones(2, jnp.int32), "query must be floating point"),
  ):
    with pytest.raises(ValueError, match=message):
      relative.nearest_nodes(query, memory)
  with pytest.raises(ValueError, match="num_paths must be at least 1, got 0"):
    relative.nearest_nodes(jnp.ones(2), memory, 0)
  with pytest.raises(ValueError, match="upper_paths must be an integer of at least 1"):
    relative.nearest_nodes(jnp.ones(2), memory, 8, upper_paths=0)


def test_offset_between_takes_the_short_way_on_periodic_axes(rng):
  start, end = rng.uniform(-180, 180, size=(2, 50, 2)).astype(np.float32)
  found = np.asarray(relative.offset_between(start, end, (360.0, 0.0)))
  steps = (end - start)[:, :1] + [[-360, 0, 360]]
  expected = np.take_along_axis(steps, np.abs(steps).argmin(1)[:, None], axis=1)[:, 0]
  np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-4)
  np.testing.assert_array_equal(found[:, 1], (end - start)[:, 1])


@pytest.mark.parametrize("kind", cases.MASKS)
def test_local_frame_equals_the_reference(kind, rng):
  for n in (1, 2, 5, 40):
    coords, values, mask = _inputs(rng, n, kind=kind)
    query = rng.normal(size=2).astype(np.float32)
    memory = _memory(coords, values, mask)
    found, read, offset, frame, _ = _read(memory, query, 2)
    valid = np.asarray(found.mask)
    rows = [np.asarray(x, np.float64)[valid] for x in (offset, read.count)]
    rows += [np.asarray(x[:, 0], np.float64)[valid] for x in (read.mean, read.variance)]
    spread = float(memory.domain.value_spread[0]) or 1.0
    length, reference_value, slope, local = reference.local_frame(*rows, spread)
    np.testing.assert_allclose(frame.length, length, rtol=1e-5)
    np.testing.assert_allclose(frame.reference, [reference_value], rtol=0, atol=1e-5)
    np.testing.assert_allclose(frame.slope[:, 0], slope, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(frame.spread, [local], rtol=1e-3, atol=1e-6)


def test_local_frame_of_a_plane_is_almost_the_plane(rng):
  coords, _, mask = _inputs(rng, 200)
  values = (3 + coords @ [[2.0], [-1.0]]).astype(np.float32)
  query = np.array([0.1, 0.2], np.float32)
  memory = _memory(coords, values, mask)
  *_, frame, _ = _read(memory, query, 8)
  found = frame.reference + memory.domain.value_origin
  np.testing.assert_allclose(found, [3 + 2 * 0.1 - 0.2], atol=2e-2)


def _degenerate(name, rng):
  """Coordinates, values and a query where units could be 0."""
  coords, values, _ = _inputs(rng, 9)
  if name == "on a context point":
    return coords, values, coords[3]
  if name == "contradicting duplicates":
    return np.ones_like(coords), values, coords[0]
  if name == "all on the query":
    return np.ones_like(coords), values, np.ones(2, np.float32)
  if name == "constant values":
    return coords, np.ones_like(values), coords[1]
  return coords[:1], values[:1], coords[0]


DEGENERATE = (
  "on a context point",
  "contradicting duplicates",
  "all on the query",
  "constant values",
  "one token",
)


@pytest.mark.parametrize("name", DEGENERATE)
def test_features_of_degenerate_contexts_and_their_gradients_are_finite(name, rng):
  coords, values, query = _degenerate(name, rng)
  mask = np.ones(len(coords), bool)

  def total(coords, values, query):
    memory = _memory(coords, values, mask)
    *_, frame, features = _read(memory, query, 2)
    return sum(x.sum() for x in jax.tree.leaves((frame, features)))

  found = jax.value_and_grad(total, argnums=(0, 1, 2))(coords, values, query)
  chex.assert_tree_all_finite(found)


@functools.partial(jax.jit, static_argnames=("num_paths", "num_tokens", "periods"))
def _split(memory, query, num_paths, num_tokens, periods=None):
  query = query - memory.domain.origin
  nodes, slots = relative.nearest_nodes(query, memory, num_paths, periods)
  read = node_memory.slot_nodes(memory, slots)
  return nodes, relative.split_off_border(query, read, num_tokens, periods)


@pytest.mark.parametrize("periods, num_tokens", [(None, 1), (None, 3), ((5.0, 0.0), 2)])
@pytest.mark.parametrize("n, b", [(2, 2), *_LARGEST])
def test_split_off_border_equals_the_reference(n, b, periods, num_tokens, rng):
  for kind in ("all", "random"):
    coords, values, mask = _inputs(rng, n, kind=kind)
    memory = _memory(coords, values, mask, branch_factor=b, keep_border=True)
    origin, value_origin = memory.domain.origin, memory.domain.value_origin
    members = {
      (node.level, node.index): node.tokens
      for level in reference.nodes_by_level(reference.build(coords, mask, b))
      for node in level
    }
    for query in rng.normal(size=(3, 2)).astype(np.float32):
      read, found = _split(memory, query, 2, num_tokens, periods)
      shape = (1 + num_tokens, len(read.mask))
      parts = jax.tree.map(
        lambda x, shape=shape: np.asarray(x).reshape(*shape, *x.shape[1:]), found
      )
      for i, node in enumerate(
        zip(read.level.tolist(), read.index.tolist(), strict=True)
      ):
        tokens = members[node] if read.mask[i] else []
        nearest, others = reference.split_off_border(
          query, coords, tokens, num_tokens, periods
        )
        expected = [others, *([token] for token in nearest)]
        assert np.sum(parts.count[:, i]) == len(tokens)
        for k, tokens in enumerate(expected):
          part = jax.tree.map(lambda x, k=k, i=i: x[k, i], parts)
          assert part.count == len(tokens)
          if tokens:
            x, y = coords[tokens], values[tokens]
            moments = (x.mean(0), y.mean(0), y.var(0))
            got = (part.centroid + origin, part.mean + value_origin, part.variance)
            for a, e in zip(got, moments, strict=True):
              np.testing.assert_allclose(a, e, rtol=0, atol=2e-4)
            assert np.all(part.low <= part.high + 1e-4)
            if len(tokens) == 1:
              np.testing.assert_allclose(part.low + origin, x[0], rtol=0, atol=2e-4)
              np.testing.assert_allclose(part.low, part.high)


def test_split_off_border_of_a_memory_without_border_raises(rng):
  memory = _memory(*_inputs(rng, 4))
  with pytest.raises(ValueError, match="memory must keep the border of its nodes"):
    _split(memory, np.zeros(2, np.float32), 1, 1)


def test_split_off_border_box_of_evenly_spread_tokens_is_that_of_the_rest():
  coords = np.arange(16, dtype=np.float32)[:, None]
  memory = _memory(coords, coords, np.ones(16, bool), keep_border=True)
  read, found = _split(memory, np.float32([-1]), 1, 2)
  (at,) = np.flatnonzero((np.asarray(read.level) == 1) & np.asarray(read.mask))
  np.testing.assert_allclose(found.low[at] + memory.domain.origin, 9)
  np.testing.assert_allclose(found.high[at] + memory.domain.origin, 14)


@pytest.mark.parametrize("keep_border", [False, True])
def test_child_features_are_relative_to_the_parent(keep_border, rng):
  coords, values, _ = _inputs(rng, 8)

  @jax.jit
  def levels(coords, values):
    tree = tca_jax.build_tree(coords)
    return statistics.node_statistics(tree, coords, values, keep_border=keep_border)

  _, parents, children, _ = levels(coords, values).levels
  features = np.asarray(relative.child_features(parents, children))
  assert features.shape == (4, 21 if keep_border else 7)
  up = np.arange(4) // 2
  side = np.max(parents.high - parents.low, axis=1, keepdims=True)[up]
  spread = np.sqrt(parents.variance)[up]
  expected = [
    (children.centroid - parents.centroid[up]) / side,
    (children.high - children.low) / side,
    (children.mean - parents.mean[up]) / spread,
    np.sqrt(children.variance) / spread,
    (children.count / parents.count[up])[:, None],
  ]
  if keep_border:
    where, what = np.split(np.asarray(children.border), [2], axis=-1)
    where = (where - parents.centroid[up][:, None]) / side[:, None]
    what = (what - parents.mean[up][:, None]) / spread[:, None]
    expected.append(np.concatenate([where, what], axis=-1).reshape(4, 12))
    expected += [np.log(side), np.log(spread)]
  np.testing.assert_allclose(features, np.hstack(expected), rtol=1e-4, atol=1e-5)


# --- The read-outs.


_FREE = (*models.RELATIVE, "border")


def _free_model(name):
  if name == "border":
    return models.model("relative_tca", sees_scale=False, border_tokens=2)
  return models.model(name, sees_scale=False)


@pytest.fixture(params=_FREE)
def free_model(request):
  """A model whose predictions follow shifts, scales and affine maps."""
  return _free_model(request.param)


@pytest.fixture(params=[*_FREE, "fitted"])
def any_model(request):
  if request.param == "fitted":
    return models.model("relative_tca", **models.FITTED)
  return _free_model(request.param)


def _predict(model, coords, values, query_coords, mask):
  out = models.compiled(model)(
    models.params(model), coords, values, query_coords, mask
  ).output
  return np.asarray(out.mean, np.float64), np.asarray(out.std, np.float64)


def test_predictions_follow_shift_scale_and_affine_maps(free_model, rng):
  # Dyadic numbers, so that an offset of 5e6 loses no digit of the coordinates.
  coords, values, query_coords, mask = models.inputs(rng)
  coords, query_coords = (np.round(64 * x) / 2 for x in (coords, query_coords))
  coords, query_coords = coords.astype(np.float32), query_coords.astype(np.float32)
  mean, std = _predict(free_model, coords, values, query_coords, mask)
  for offset, scale, shift, slope in (
    (5e6, 1, 0, 1),
    (0, 1000, 0, 1),
    (-3, 0.01, 0, 1),
    (0, 1, 50, 1),
    (0, 1, 0, 1e-3),
    (7, 4, -20, 300),
  ):
    moved = [(scale * x + offset).astype(np.float32) for x in (coords, query_coords)]
    mapped = (slope * values + shift).astype(np.float32)
    new_mean, new_std = _predict(free_model, moved[0], mapped, moved[1], mask)
    np.testing.assert_allclose((new_mean - shift) / slope, mean, rtol=0, atol=2e-3)
    np.testing.assert_allclose(new_std / slope, std, rtol=2e-3)


def test_predictions_do_not_depend_on_the_order_of_the_context(any_model, rng):
  coords, values, query_coords, mask = models.inputs(rng)
  expected = _predict(any_model, coords, values, query_coords, mask)
  order = rng.permutation(coords.shape[1])
  found = _predict(
    any_model, coords[:, order], values[:, order], query_coords, mask[:, order]
  )
  np.testing.assert_allclose(found, expected, **models.ROUNDED)


@pytest.mark.parametrize("name", DEGENERATE)
def test_gradients_of_degenerate_contexts_are_finite(any_model, name, rng):
  inputs = [x[None] for x in _degenerate(name, rng)]
  inputs[2] = inputs[2][:, None]
  chex.assert_tree_all_finite(
    _loss_and_gradient(any_model)(models.params(any_model), *inputs)
  )


@functools.cache
def _loss_and_gradient(model):
  def loss(params, *inputs):
    out = model.apply(params, *inputs, train=True).output
    return out.mean.sum() + jnp.log(out.std).sum()

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))


@pytest.mark.parametrize("options", [{}, models.FITTED])
def test_relative_tree_read_of_all_paths_equals_all_leaves_and_full_attention(
  options, rng
):
  tree_model, flat_model = (
    models.model(name, summary_width=0, **options) for name in models.RELATIVE
  )
  params = models.params(tree_model)
  coords, values, query_coords, mask = models.inputs(rng)
  memory = models.compiled(tree_model, "index")(params, coords, values, mask)
  leaves = models.compiled(tree_model, "read_leaves")(params, memory, query_coords)
  read = models.compiled(tree_model, "read", num_paths=16)
  full = models.compiled(flat_model)(params, coords, values, query_coords, mask)
  for found in (leaves, read(params, memory, query_coords)):
    np.testing.assert_allclose(found.output.mean, full.output.mean, **models.ROUNDED)
    np.testing.assert_array_equal(found.reading.num_read, full.reading.num_read)


def test_border_tokens_read_of_all_paths_equals_all_leaves(rng):
  model = models.model("relative_tca", summary_width=0, border_tokens=2)
  params = models.params(model)
  coords, values, query_coords, mask = models.inputs(rng)
  memory = models.compiled(model, "index")(params, coords, values, mask)
  leaves = models.compiled(model, "read_leaves")(params, memory, query_coords)
  read = models.compiled(model, "read", num_paths=16)
  found = read(params, memory, query_coords)
  np.testing.assert_allclose(found.output.mean, leaves.output.mean, **models.ROUNDED)


def test_relative_tree_read_out_reads_num_paths_also_in_training(rng):
  model = models.model("relative_tca", num_paths=2)
  params = models.params(model)
  coords, values, query_coords, mask = models.inputs(rng)
  memory = models.compiled(model, "index")(params, coords, values, mask)
  trained = models.compiled(model, "read", train=True)(params, memory, query_coords)
  assert type(trained) is tca_jax.Prediction
  same = models.compiled(model, "read", num_paths=2)(params, memory, query_coords)
  np.testing.assert_array_equal(trained.output.mean, same.output.mean)
  wider = models.compiled(model, "read", num_paths=3)(params, memory, query_coords)
  assert wider.reading.num_read.sum() > same.reading.num_read.sum()


def test_relative_tree_read_out_narrows_the_upper_beam_only_in_evaluation(rng):
  plain = models.model("relative_tca", num_paths=4)
  model = models.model("relative_tca", num_paths=4, upper_paths=1)
  params = models.params(plain)
  coords, values = (rng.normal(size=(1, 128, n)).astype("f") for n in (2, 1))
  query_coords, mask = coords[:, :3] + 0.1, np.ones((1, 128), bool)
  memory = models.compiled(plain, "index")(params, coords, values, mask)

  def count(model, **options):
    read = models.compiled(model, "read", **options)
    return read(params, memory, query_coords).reading.walk.mask.shape[-1]

  assert count(model) == tca_jax.num_read_slots(128, 2, 4, 1)
  assert count(model) < count(plain) == count(model, train=True)
  assert count(model, num_paths=1) == count(plain, num_paths=1)


def test_relative_cross_attention_in_chunks_equals_at_once(rng, monkeypatch):
  model = models.model("relative_ca")
  params, inputs = models.params(model), models.inputs(rng)
  expected = models.compiled(model)(params, *inputs).output
  monkeypatch.setattr("tca_jax.modules.relative_layers._MAX_TOKENS", 3 * 3 * 11)
  found = jax.jit(model.apply)(params, *inputs).output
  chex.assert_trees_all_close(found, expected, **models.ROUNDED)


@pytest.mark.parametrize("name", models.RELATIVE)
def test_relative_read_out_needs_values_and_query_coords(name, rng):
  layer = models.read_out(name)
  coords, values, query_coords, mask = models.inputs(rng)
  tokens, queries = (
    np.ones((*x.shape[:2], models.WIDTH), "f") for x in (coords, query_coords)
  )
  apply = functools.partial(layer.apply, models.params(layer))
  with pytest.raises(ValueError, match="values must be given to a relative read-out"):
    apply(tokens, coords, mask, method="index")
  index = models.compiled(layer, "index")
  memory = index(models.params(layer), tokens, coords, mask, values=values)
  with pytest.raises(ValueError, match="query_coords must be given to a relative"):
    apply(memory, queries, method="read")
  for bad, message in (
    (query_coords[..., :1], r"query_coords must be \[3, M, 2\], got shape \(3, 4, 1\)"),
    (query_coords[:, :2], r"query_coords must be \(3, 4\) \+ \(C,\) to match"),
    *(
      (np.full_like(query_coords, x), "query_coords must be finite")
      # JAX itself stops at NaN in its mode for NaN.
      for x in ([np.inf] if jax.config.jax_debug_nans else [np.inf, np.nan])
    ),
  ):
    with pytest.raises(ValueError, match=message):
      apply(memory, queries, query_coords=bad, method="read")
  for bad, message in (
    (np.full_like(values, np.inf), "values must be finite at valid tokens"),
    (values[:, :3], "values must be"),
  ):
    with pytest.raises(ValueError, match=message):
      apply(tokens, coords, values=bad, method="index")


def test_fitted_covariance_is_that_of_the_whole_context(rng):
  """Values far from the query tell how the values near it vary."""
  model = models.model("relative_tca", num_paths=1, **models.FITTED)
  params = models.params(model)
  coords, values, query_coords, mask = models.inputs(rng)
  memory = models.compiled(model, "index")(params, coords, values, mask)
  assert memory.evidence.shape == (len(coords), covariance_fit.NUM_CANDIDATES)
  read = models.compiled(model, "read")
  found = read(params, memory, query_coords).output.std
  flipped = dataclasses.replace(memory, evidence=-memory.evidence)
  assert not np.allclose(read(params, flipped, query_coords).output.std, found)
  without = dataclasses.replace(memory, evidence=None)
  with pytest.raises(ValueError, match="index the context by a model with fits_cov"):
    read(params, without, query_coords)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(num_layers=0), "num_layers must be at least 1, got 0"),
    (dict(node_width=6), "node_width must be a multiple of num_heads=4, got 6"),
    (dict(num_paths=0), "num_paths must be at least 1, got 0"),
    (dict(border_tokens=-1), "border_tokens must be at least 0, got -1"),
    (
      dict(summary_width=0, values_in_tokens=False, geometry_in_tokens=False),
      "summary_width must be at least 1 without values_in_tokens",
    ),
    (
      dict(fits_covariance=True),
      "fits_covariance needs .* local_units=False; got num_kriged=32, local_units=True",
    ),
    (
      models.FITTED | dict(num_kriged=0),
      "fits_covariance needs num_kriged of at least 1",
    ),
  ],
)
def test_relative_read_out_bad_option_raises(options, message):
  layer = models.read_out("relative_tca", **options)
  with pytest.raises(ValueError, match=message):
    models.params(layer)


def test_relative_without_local_units_keeps_the_bound_of_the_std(rng):
  """Where neighbours agree, the std is small in local units."""
  coords, _, query_coords, mask = models.inputs(rng)
  values = np.full((*coords.shape[:2], 1), 2.0, np.float32)
  head = tca_jax.GaussianHead(num_outputs=1, min_std=0.05)
  for local_units in (False, True):
    model = models.model("relative_tca", local_units=local_units).clone(head=head)
    output = models.compiled(model)(
      models.params(model), coords, values, query_coords, mask
    ).output
    assert (output.std.min() >= 0.05) != local_units


@pytest.mark.parametrize(
  "options",
  [
    dict(num_self_layers=1),
    dict(local_units=False, border_tokens=2),
    models.FITTED,
    dict(num_kriged=0),
    dict(periods=(2.0, 0.0)),
    *(
      pytest.param(options, marks=pytest.mark.slow)
      for options in (
        dict(num_kriged=3),
        dict(values_in_tokens=False),
        dict(geometry_in_logits=False),
        dict(geometry_in_tokens=False),
      )
    ),
  ],
)
def test_relative_options_change_the_prediction(options, rng):
  inputs = models.inputs(rng)
  plain, model = (models.model("relative_tca", **x) for x in ({}, options))
  # Compiles faster.
  plain, model = (
    x.clone(read_out=x.read_out.clone(num_layers=1)) for x in (plain, model)
  )
  mean, _ = _predict(model, *inputs)
  assert np.isfinite(mean).all()
  assert not np.array_equal(mean, _predict(plain, *inputs)[0])
