"""The Flax modules: masks, batches, interfaces, options and errors, for all systems."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tca_jax
from tca_jax import modules
from tca_jax import retrieval
from tca_jax import tree as tree_lib
from tests import cases
from tests import reference

B, N, M, C, E = 3, 11, 4, 2, 1
READ_OUTS = {
  "tca": lambda **k: tca_jax.TreeCrossAttention(width=16, hidden=8, **k),
  "ca": lambda **k: tca_jax.CrossAttention(width=16, hidden=8, **k),
  "perceiver": lambda **k: tca_jax.PerceiverIO(width=16, hidden=8, num_latents=3, **k),
}


def _model(name, num_layers=1, dtype=jnp.float32, **kwargs):
  return tca_jax.ReTreever(
    embedder=tca_jax.PointEmbedder(16, dtype=dtype),
    encoder=tca_jax.Encoder(num_layers, hidden=8, dtype=dtype),
    read_out=READ_OUTS[name](dtype=dtype, **kwargs),
    head=tca_jax.GaussianHead(E, hidden=8, dtype=dtype),
  )


def _inputs(rng, n=N):
  coords = rng.normal(size=(B, n, C)).astype(np.float32)
  values = rng.normal(size=(B, n, E)).astype(np.float32)
  query_coords = rng.normal(size=(B, M, C)).astype(np.float32)
  mask = np.stack([cases.mask("random", n, rng) for _ in range(B)])
  return coords, values, query_coords, mask


def _params(model, inputs):
  return jax.jit(model.init)(jax.random.key(0), *inputs)


def _apply(model, params, *inputs, method=None, **kwargs):
  """`model.apply`, in one compilation rather than one an operation."""
  run = lambda params, inputs: model.apply(params, *inputs, method=method, **kwargs)  # noqa: E731
  return jax.jit(run)(params, inputs)


@pytest.mark.parametrize("name", READ_OUTS)
def test_masked_equals_truncated_and_masked_tokens_never_matter(name, rng):
  model, inputs = _model(name), _inputs(rng)
  coords, values, query_coords, mask = inputs
  params = _params(model, inputs)
  apply = jax.jit(model.apply)
  out = apply(params, *inputs)
  for junk in (np.nan, 1e30):
    hidden = [
      np.where(mask[..., None], x, junk).astype(np.float32) for x in (coords, values)
    ]
    chex.assert_trees_all_equal(apply(params, *hidden, query_coords, mask), out)
  for i in range(B):
    keep = mask[i]
    alone = _apply(
      model,
      params,
      coords[i : i + 1, keep],
      values[i : i + 1, keep],
      query_coords[i : i + 1],
    )
    np.testing.assert_allclose(
      alone.output.mean[0], out.output.mean[i], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
      alone.output.std[0], out.output.std[i], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", READ_OUTS)
def test_examples_and_queries_are_independent(name, rng):
  model, inputs = _model(name), _inputs(rng)
  params = _params(model, inputs)
  out = jax.jit(model.apply)(params, *inputs).output.mean
  coords, values, query_coords, mask = inputs
  one = _apply(
    model, params, coords[1:2], values[1:2], query_coords[1:2, 2:3], mask[1:2]
  )
  np.testing.assert_allclose(one.output.mean[0, 0], out[1, 2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", READ_OUTS)
def test_an_empty_context_is_read_as_nothing_under_jit(name, rng):
  model, inputs = _model(name), _inputs(rng)
  params = _params(model, inputs)
  coords, values, query_coords, mask = inputs
  empty = np.zeros_like(mask)

  def loss(params, coords, values):
    out = model.apply(
      params,
      coords,
      values,
      query_coords,
      empty,
      train=True,
      rngs={"policy": jax.random.key(0)},
    )
    return out.output.mean.sum() + out.output.std.sum(), out

  (value, out), grads = jax.jit(
    jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
  )(params, coords, values)
  assert np.isfinite(value)
  chex.assert_tree_all_finite(grads)
  assert not np.any(out.reading.num_read)
  other = jax.jit(loss)(params, coords + 1, values + 1)[1]
  chex.assert_trees_all_equal(other.output, out.output)
  with pytest.raises(ValueError, match="at least one valid token"):
    model.apply(params, coords, values, query_coords, empty)


@pytest.mark.parametrize("name", READ_OUTS)
def test_index_once_and_read_often_equals_the_layer(name, rng):
  layer = READ_OUTS[name]()
  coords, _, _, mask = _inputs(rng)
  tokens = rng.normal(size=(B, N, 16)).astype(np.float32)
  queries = rng.normal(size=(B, M, 16)).astype(np.float32)
  params = jax.jit(layer.init)(jax.random.key(0), queries, tokens, coords, mask)
  whole = _apply(layer, params, queries, tokens, coords, mask)
  assert whole.shape == queries.shape
  memory = _apply(layer, params, tokens, coords, mask, method="index")
  for i in range(M):
    part = _apply(layer, params, memory, queries[:, i : i + 1], method="read")
    np.testing.assert_allclose(part.output[:, 0], whole[:, i], rtol=1e-5, atol=1e-5)


def test_numbers_read(rng):
  inputs = _inputs(rng)
  mask = inputs[-1]
  for name, expected in (("ca", mask.sum(-1)), ("perceiver", np.full(B, 3))):
    model = _model(name, 0)
    reading = _apply(model, _params(model, inputs), *inputs).reading
    np.testing.assert_array_equal(reading.num_read, np.tile(expected[:, None], M))
  model = _model("tca", 0)
  reading = _apply(model, _params(model, inputs), *inputs).reading
  assert reading.leaf_output is None
  assert np.all(reading.num_read <= tca_jax.num_read_slots(N))
  np.testing.assert_array_equal(reading.num_read, reading.walk.mask.sum(-1))


def test_tca_of_few_tokens_reads_all_of_them_and_equals_cross_attention(rng):
  """With at most two tokens S is the context, and both systems are one."""
  tca, ca = READ_OUTS["tca"](), READ_OUTS["ca"]()
  tokens = rng.normal(size=(B, 2, 16)).astype(np.float32)
  queries = rng.normal(size=(B, M, 16)).astype(np.float32)
  coords = rng.normal(size=(B, 2, C)).astype(np.float32)
  params = jax.jit(tca.init)(jax.random.key(0), queries, tokens, coords)
  shared = {k: v for k, v in params["params"].items() if k != "aggregator"}
  np.testing.assert_allclose(
    _apply(tca, params, queries, tokens, coords),
    _apply(ca, {"params": shared}, queries, tokens, coords),
    rtol=1e-5,
    atol=1e-5,
  )


def test_training_reads_the_leaves_too(rng):
  model, inputs = _model("tca"), _inputs(rng)
  params = _params(model, inputs)
  rngs = {"policy": jax.random.key(1)}
  out = jax.jit(lambda p: model.apply(p, *inputs, train=True, rngs=rngs))(params)
  coords, values, query_coords, mask = inputs
  memory = _apply(model, params, coords, values, mask, method="index")
  full = _apply(model, params, memory, query_coords, method="read_leaves")
  np.testing.assert_allclose(
    out.leaf_output.mean, full.output.mean, rtol=1e-5, atol=1e-5
  )
  assert np.all(full.reading.num_read == mask.sum(-1, keepdims=True))
  targets = np.asarray(out.reading.routing_targets)
  counted = np.asarray(out.reading.walk.counted)
  mass = targets.sum(-1)
  np.testing.assert_allclose(mass[..., 0][counted[..., 0]], 1, rtol=1e-5)
  path = np.asarray(out.reading.walk.path)
  below = np.take_along_axis(targets, path[..., None], -1)[..., 0]
  np.testing.assert_allclose(below[..., :-1], mass[..., 1:], rtol=1e-5, atol=1e-7)


def _leaf_weights(model, memory, queries):
  """`[B, M, H, L]`, the leaf attention."""
  read_out = model.read_out
  projected = read_out._queries(model.embedder.queries(queries), len(queries))
  return modules._attend_all(projected, modules._leaves(memory)).weights


def test_the_best_leaf_is_found_by_reading_it_alone(rng):
  model, inputs = _model("tca"), _inputs(rng)
  params = _params(model, inputs)
  read = jax.jit(
    lambda p, key: model.apply(p, *inputs, train=True, rngs={"policy": key}).reading
  )
  coords, values, query_coords, mask = inputs

  memory = _apply(model, params, coords, values, mask, method="index")
  weights = model.apply(params, memory, query_coords, method=_leaf_weights)
  best = weights.mean(2).argmax(-1)
  found = []
  for seed in range(4):
    out = read(params, jax.random.key(seed))
    walk = out.walk
    alone = (walk.level == memory.tree.depth) & (walk.index == best[..., None])
    np.testing.assert_array_equal(out.best_leaf_read, (alone & walk.mask).any(-1))
    found.append(np.asarray(out.best_leaf_read))
  assert 0 < np.mean(found) < 1


def test_the_teacher_is_the_leaf_attention_to_a_power(rng):
  inputs, rngs = _inputs(rng), {"policy": jax.random.key(1)}
  coords, values, query_coords, mask = inputs
  plain = _model("tca")
  params = _params(plain, inputs)
  memory = _apply(plain, params, coords, values, mask, method="index")
  root = {}
  for temperature in (1.0, 0.5):
    read_out = plain.read_out.clone(teacher_temperature=temperature)
    model = plain.clone(read_out=read_out)
    out = jax.jit(lambda p, m=model: m.apply(p, *inputs, train=True, rngs=rngs))(params)
    root[temperature] = out.reading.routing_targets[..., 0, :]
  weights = plain.apply(params, memory, query_coords, method=_leaf_weights)
  sharp = np.asarray(weights.mean(2)) ** 2
  sharp /= sharp.sum(-1, keepdims=True)
  halves = sharp.reshape(*sharp.shape[:2], 2, -1).sum(-1)
  np.testing.assert_allclose(root[0.5], halves, rtol=1e-4, atol=1e-6)
  assert not np.allclose(root[1.0], halves, atol=1e-3)


def test_num_paths_reads_more_up_to_all(rng):
  model, inputs = _model("tca"), _inputs(rng)
  params = _params(model, inputs)
  coords, values, query_coords, mask = inputs
  memory = _apply(model, params, coords, values, mask, method="index")
  full = _apply(model, params, memory, query_coords, method="read_leaves")
  counts = []
  for num_paths in (1, 2, memory.tree.num_leaves):
    several = model.clone(read_out=model.read_out.clone(num_paths=num_paths))
    out = _apply(several, params, memory, query_coords, method="read")
    counts.append(int(out.reading.num_read.sum()))
  assert counts == sorted(set(counts))
  assert counts[-1] == full.reading.num_read.sum()
  np.testing.assert_allclose(out.output.mean, full.output.mean, rtol=1e-5, atol=1e-5)


def _policy_gradient(inputs, loss, **options):
  model = _model("tca", 0, **options)
  params = _params(model, inputs)

  def total(params):
    rngs = {"policy": jax.random.key(1)}
    return loss(model.apply(params, *inputs, train=True, rngs=rngs))

  return params["params"], jax.jit(jax.grad(total))(params)["params"]


def _size(tree):
  return sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree))


def test_share_policy_decides_which_weights_the_policy_moves(rng):
  inputs = _inputs(rng)
  loss = lambda out: out.reading.walk.log_prob.sum()  # noqa: E731
  _, shared = _policy_gradient(inputs, loss)
  assert _size(shared["read_out"]["key"]) > 0
  params, own = _policy_gradient(inputs, loss, share_policy=False)
  assert "policy_key" in params["read_out"]
  assert _size(own["read_out"]["key"]) == 0
  assert _size(own["read_out"]["policy_key"]) > 0


def test_tree_gradient_decides_whether_tokens_learn_through_inner_nodes(rng):
  coords = rng.normal(size=(1, 8, C)).astype(np.float32)
  tokens = rng.normal(size=(1, 8, 16)).astype(np.float32)
  grads = {}
  for through in (True, False):
    layer = READ_OUTS["tca"](tree_gradient=through)
    params = jax.jit(layer.init)(jax.random.key(0), tokens, tokens, coords)

    def first_level(tokens, layer=layer, params=params):
      memory = layer.apply(params, tokens, coords, method="index")
      return jnp.sum(memory.values[:, retrieval.level_slots(memory.tree, 1)] ** 2)

    grads[through] = jax.jit(jax.grad(first_level))(tokens)
  assert np.all(np.any(np.asarray(grads[True]) != 0, axis=-1))
  assert not np.any(grads[False])


def test_large_levels_train_in_chunks(rng, monkeypatch):
  coords = rng.normal(size=(2, 33, C)).astype(np.float32)
  tokens = rng.normal(size=(2, 33, 16)).astype(np.float32)
  layer = READ_OUTS["tca"](dropout=0.1)
  params = jax.jit(layer.init)(jax.random.key(0), tokens, tokens, coords)

  def loss(params, train):
    rngs = {"policy": jax.random.key(1), "dropout": jax.random.key(2)}
    return layer.apply(params, tokens, tokens, coords, train=train, rngs=rngs).sum()

  grad = jax.grad(loss)
  whole = jax.jit(grad, static_argnums=1)(params, False)
  monkeypatch.setattr(tree_lib, "CHUNK", 4)
  chunked = jax.jit(lambda params: grad(params, False))(params)
  chex.assert_trees_all_close(chunked, whole, rtol=1e-4, atol=1e-4)
  chex.assert_tree_all_finite(jax.jit(lambda params: grad(params, True))(params))
  again = layer.init(jax.random.key(0), tokens, tokens, coords)
  chex.assert_trees_all_equal(again, params)


def test_dropout_differs_among_nodes_of_large_levels(rng, monkeypatch):
  monkeypatch.setattr(tree_lib, "CHUNK", 4)
  tokens = np.broadcast_to(np.float32(rng.normal(size=16)), (1, 32, 16))
  layer = READ_OUTS["tca"](dropout=0.5, order="given")
  params = jax.jit(layer.init)(jax.random.key(0), tokens, tokens, tokens)

  @jax.jit
  def index(params):
    rngs = {"dropout": jax.random.key(1)}
    return layer.apply(params, tokens, tokens, train=True, rngs=rngs, method="index")

  memory = index(params)
  nodes = memory.values[0, retrieval.level_slots(memory.tree, 4)]
  assert len(np.unique(np.asarray(nodes).reshape(16, -1), axis=0)) > 8


@pytest.mark.parametrize("name", READ_OUTS)
def test_no_query_reads_nothing(name, rng):
  coords, values, query_coords, mask = _inputs(rng)
  model = _model(name)
  params = jax.jit(model.init)(jax.random.key(0), coords, values, query_coords, mask)
  prediction = jax.jit(model.apply)(params, coords, values, query_coords[:, :0], mask)
  assert prediction.output.mean.shape == (B, 0, E)


def test_64_bits_change_neither_dtypes_nor_walks(rng):
  coords, values, query_coords, mask = _inputs(rng)
  model = _model("tca", num_paths=2)
  params = jax.jit(model.init)(jax.random.key(0), coords, values, query_coords, mask)

  def run(train):
    apply = jax.jit(functools.partial(model.apply, train=train))
    rngs = {"policy": jax.random.key(1), "dropout": jax.random.key(2)}
    return apply(params, coords, values, query_coords, mask, rngs=rngs)

  for train in (False, True):
    expected = run(train)
    with jax.enable_x64(True):
      found = run(train)
    assert found.output.mean.dtype == jnp.float32
    np.testing.assert_array_equal(found.reading.walk.path, expected.reading.walk.path)
    chex.assert_trees_all_close(found.output, expected.output, rtol=1e-4, atol=1e-5)


def test_a_tree_may_be_given(rng):
  coords = rng.normal(size=(2, 9, C)).astype(np.float32)
  tokens = rng.normal(size=(2, 9, 16)).astype(np.float32)
  layer = READ_OUTS["tca"]()
  params = jax.jit(layer.init)(jax.random.key(0), tokens, tokens, coords)
  index = jax.jit(functools.partial(layer.apply, method="index"))
  trees = [tca_jax.build_tree(x) for x in coords]
  tree = jax.tree.map(lambda *x: jnp.stack(x), *trees)
  chex.assert_trees_all_close(
    index(params, tokens, coords, tree=tree), index(params, tokens, coords), rtol=1e-5
  )
  with pytest.raises(ValueError, match="branch factor 2, got 3"):
    other = jax.vmap(lambda x: tca_jax.build_tree(x, branch_factor=3))(coords)
    index(params, tokens, coords, tree=other)
  with pytest.raises(
    ValueError, match=r"2 trees of 16 leaves.*got leaves of .*\(16,\)"
  ):
    index(params, tokens, coords, tree=trees[0])
  eagerly = functools.partial(layer.apply, params, tokens, coords, method="index")
  eagerly(tree=tree)
  with pytest.raises(ValueError, match="every valid token of its context once"):
    eagerly(mask=np.arange(18).reshape(2, 9) % 9 < 5, tree=tree)
  larger = tca_jax.build_tree(rng.normal(size=(12, C)).astype(np.float32))
  with pytest.raises(ValueError, match="every valid token of its context once"):
    eagerly(tree=jax.tree.map(lambda x: jnp.stack([x, x]), larger))


def test_what_has_no_tree_is_named(rng):
  coords, values, query_coords, _ = _inputs(rng)
  model = _model("ca")
  params = jax.jit(model.init)(jax.random.key(0), coords, values, query_coords)
  apply = functools.partial(model.apply, params)
  message = "read_out must be a TreeCrossAttention, got CrossAttention"
  with pytest.raises(ValueError, match=message):
    apply(coords, values, tree=jax.vmap(tca_jax.build_tree)(coords), method="index")
  with pytest.raises(ValueError, match=message):
    memory = apply(coords, values, method="index")
    apply(memory, query_coords, method="read_leaves")


@pytest.mark.parametrize(
  ("option", "message"),
  [
    (dict(num_paths=0), "num_paths must be at least 1, got 0"),
    (dict(teacher_temperature=0.0), "teacher_temperature must be above 0, got 0.0"),
  ],
)
def test_bad_options_of_the_tree_are_named(option, message):
  x = jnp.ones((1, 4, 16))
  with pytest.raises(ValueError, match=message):
    READ_OUTS["tca"](**option).init(jax.random.key(0), x, x, x)


def test_sinusoids_need_an_even_width():
  embedder = tca_jax.SequenceEmbedder(7)
  with pytest.raises(ValueError, match="width must be even, got 7"):
    x = jnp.ones((1, 4, 1))
    embedder.init(jax.random.key(0), x, jnp.ones((1, 4, 12)), method="tokens")


@pytest.mark.parametrize("option", ["order", "branch_factor"])
def test_the_tree_takes_its_options(option, rng):
  inputs = _inputs(rng)
  settings = {
    "order": list(tree_lib.ORDERS),
    "branch_factor": [2, 4],
  }[option]
  outputs = []
  for setting in settings:
    model = _model("tca", 0, **{option: setting})
    out = _apply(model, _params(model, inputs), *inputs)
    outputs.append(np.asarray(out.output.mean))
  for other in outputs[1:]:
    assert not np.allclose(outputs[0], other)


@pytest.mark.parametrize("name", READ_OUTS)
def test_bfloat16_activations_stay_close_with_float32_parameters(name, rng):
  inputs = _inputs(rng)
  exact = _model(name)
  params = _params(exact, inputs)
  low = _apply(_model(name, dtype=jnp.bfloat16), params, *inputs)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
  assert low.reading.output.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    low.output.mean, _apply(exact, params, *inputs).output.mean, atol=0.15
  )


@pytest.mark.parametrize("name", READ_OUTS)
def test_dropout_acts_in_training_alone(name, rng):
  inputs = _inputs(rng)
  model = _model(name, 0, dropout=0.5)
  params = _params(model, inputs)

  def run(seed, train):
    rngs = {"policy": jax.random.key(0), "dropout": jax.random.key(seed)}
    return _apply(model, params, *inputs, train=train, rngs=rngs).output.mean

  assert np.array_equal(run(0, False), run(1, False))
  assert not np.array_equal(run(0, True), run(1, True))


@pytest.mark.parametrize("name", READ_OUTS)
def test_one_trace_a_shape(name, rng, count_traces):
  inputs = _inputs(rng)
  model = _model(name, 0)
  params = _params(model, inputs)
  counter, apply = count_traces(model.apply)
  for _ in range(3):
    apply(params, *_inputs(rng))
  assert counter.traces == 1


def test_sibling_attention_equals_attention_in_each_group(rng):
  keys, values, queries = rng.normal(size=(3, 5, 3, 2, 4)).astype(np.float32)
  mask = rng.random((5, 3)) < 0.6
  out = tca_jax.attention.sibling_attention(queries, keys, values, mask)
  for i in range(5):
    for j in range(3):
      expected = reference.attend(queries[i, j], keys[i, mask[i]], values[i, mask[i]])
      if not mask[i].any():
        expected = 0
      np.testing.assert_allclose(out[i, j], expected, rtol=1e-5, atol=1e-5)


def test_positions_go_around_the_mlp_only_with_the_skip(rng):
  coords = jnp.arange(5.0)[None, :, None]
  values = rng.normal(size=(1, 5, 3)).astype(np.float32)
  with_skip = tca_jax.SequenceEmbedder(16, num_features=3)
  without = tca_jax.SequenceEmbedder(16, num_features=3, position_skip=False)
  params = with_skip.init(jax.random.key(0), coords, values, method="tokens")
  found, inner = (
    embedder.apply(params, coords, values, method="tokens")
    for embedder in (with_skip, without)
  )
  symbols = with_skip.apply(params, values, method=lambda module, x: module.symbol(x))
  around = symbols + modules.sinusoids(coords[..., 0], 16)
  np.testing.assert_allclose(found - inner, around, atol=1e-5)


def test_points_share_the_skip_with_queries(rng):
  coords = rng.uniform(-1, 1, (1, 5, 2)).astype(np.float32)
  values = rng.normal(size=(1, 5, 3)).astype(np.float32)
  with_skip = tca_jax.PointEmbedder(16, num_frequencies=2, position_skip=True)
  without = tca_jax.PointEmbedder(16, num_frequencies=2)

  def embed(module, coords, values):
    return module.tokens(coords, values), module.queries(coords)

  params = with_skip.init(jax.random.key(0), coords, values, method=embed)
  places = with_skip.apply(
    params, method=lambda x: x.place(modules.fourier_features(coords, 2))
  )
  found, inner = (
    x.apply(params, coords, values, method=embed) for x in (with_skip, without)
  )
  for outer, part in zip(found, inner, strict=True):
    np.testing.assert_allclose(outer - part, places, atol=1e-5)
  assert (
    "place"
    not in without.init(jax.random.key(0), coords, values, method=embed)["params"]
  )


def test_sequences_are_told_apart_by_position(rng):
  embedder = tca_jax.SequenceEmbedder(16, num_features=3)
  positions = np.arange(6, dtype=np.float32)[None, :, None]
  values = np.zeros((1, 6, 3), np.float32)
  params = embedder.init(jax.random.key(0), positions, values, method="tokens")
  queries = embedder.apply(params, positions, method="queries")
  assert len(np.unique(np.asarray(queries[0]).round(5), axis=0)) == 6
  tokens = embedder.apply(params, positions, values, method="tokens")
  np.testing.assert_allclose(tokens, queries, rtol=1e-6)
  waves = np.asarray(modules.sinusoids(positions[..., 0], 16))
  np.testing.assert_allclose((waves**2).sum(-1), 8, rtol=1e-5)


def test_the_std_is_bounded_or_exponential(rng):
  x = 100 * rng.normal(size=(2, 5, 16)).astype(np.float32)
  bounded = tca_jax.GaussianHead(1)
  params = bounded.init(jax.random.key(0), x)
  assert np.asarray(bounded.apply(params, x).std).min() >= 0.05
  free = tca_jax.GaussianHead(1, min_std=None).apply(params, x)
  raw = np.log(free.std)
  np.testing.assert_allclose(
    bounded.apply(params, x).std, 0.05 + 0.95 * np.logaddexp(0, raw), rtol=1e-4
  )


@pytest.mark.parametrize("name", READ_OUTS)
@pytest.mark.parametrize(
  "change, message",
  [
    (dict(coords=np.ones((B, N), np.float32)), r"coords must be \[B, N, C\]"),
    (dict(values=np.ones((B, N + 1, E), np.float32)), r"values must be \(3, 11\)"),
    (dict(values=np.full((B, N, E), np.nan, np.float32)), "values must be finite"),
    (dict(coords=np.full((B, N, C), np.inf, np.float32)), "coords must be finite"),
    (dict(values=np.ones((B, N, E), np.int32)), "floating point, got dtype int32"),
    (dict(mask=np.ones((B, N), np.float32)), "mask must be bool"),
    (dict(mask=np.ones((B, N + 1), bool)), "mask must be"),
    (dict(query_coords=np.ones((B + 1, M, C), np.float32)), r"queries must be \[3, M"),
    (dict(query_coords=np.ones((B, M, C), int)), "query_coords must be floating"),
    (dict(query_coords=np.full((B, M, C), np.nan, np.float32)), "must be finite"),
  ],
)
def test_bad_input_is_named(name, change, message, rng):
  names = ("coords", "values", "query_coords", "mask")
  inputs = dict(zip(names, _inputs(rng), strict=True))
  model = _model(name, 0)
  with pytest.raises(ValueError, match=message):
    model.init(jax.random.key(0), **inputs | change)


@pytest.mark.parametrize("name", READ_OUTS)
def test_queries_of_another_rank_are_an_error(name, rng):
  layer = READ_OUTS[name]()
  tokens = rng.normal(size=(B, N, 16)).astype(np.float32)
  with pytest.raises(ValueError, match=r"queries must be \[3, M, 16\], got \(16,\)"):
    layer.init(jax.random.key(0), tokens[0, 0], tokens, tokens)


def test_an_encoder_does_not_read_masked_tokens(rng):
  x = rng.normal(size=(1, 5, 16)).astype(np.float32)
  mask = np.array([[True, True, False, True, False]])
  encoder = tca_jax.Encoder(2, hidden=8)
  params = jax.jit(encoder.init)(jax.random.key(0), x, mask)
  out = _apply(encoder, params, x, mask)
  other = _apply(encoder, params, np.where(mask[..., None], x, np.nan), mask)
  np.testing.assert_array_equal(np.asarray(out)[mask], np.asarray(other)[mask])


def test_no_latents_are_an_error(rng):
  x = rng.normal(size=(1, 5, 64)).astype(np.float32)
  with pytest.raises(ValueError, match="num_latents must be at least 1, got 0"):
    tca_jax.PerceiverIO(num_latents=0).init(jax.random.key(0), x, x, x)


def test_a_width_that_heads_do_not_divide_is_an_error(rng):
  layer = tca_jax.CrossAttention(width=10)
  x = np.ones((1, 2, 10), np.float32)
  with pytest.raises(ValueError, match="multiple of num_heads=4"):
    layer.init(jax.random.key(0), x, x, x)
