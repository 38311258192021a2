"""The read-outs: their common interface, options and errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tca_jax
from tca_jax import memory as memory_lib
from tca_jax import tree as tree_lib
from tests import cases
from tests import models
from tests import reference
from tests.models import BATCH
from tests.models import NUM_AXES
from tests.models import NUM_QUERIES
from tests.models import NUM_TOKENS
from tests.models import WIDTH


def _inputs(rng):
  """Queries, tokens, coordinates and mask."""
  coords, _, _, mask = models.inputs(rng)
  tokens = rng.normal(size=(BATCH, NUM_TOKENS, WIDTH)).astype(np.float32)
  queries = rng.normal(size=(BATCH, NUM_QUERIES, WIDTH)).astype(np.float32)
  return queries, tokens, coords, mask


def _few_tokens(rng, n):
  """As `_inputs`, with n tokens, all of them valid: a tree of few levels."""
  queries, tokens, coords, _ = _inputs(rng)
  return queries, tokens[:, :n], coords[:, :n], np.ones((BATCH, n), bool)


def _index(layer, rng):
  """A memory of random tokens."""
  _, tokens, coords, mask = _inputs(rng)
  return models.compiled(layer, "index")(models.params(layer), tokens, coords, mask)


@pytest.mark.parametrize("name", models.READ_OUTS)
def test_read_one_query_at_a_time_equals_the_layer(name, rng):
  layer = models.read_out(name)
  params = models.params(layer)
  queries, tokens, coords, mask = _inputs(rng)
  whole = models.compiled(layer)(params, queries, tokens, coords, mask)
  assert whole.shape == queries.shape
  memory = models.compiled(layer, "index")(params, tokens, coords, mask)
  read = models.compiled(layer, "read")
  for i in range(NUM_QUERIES):
    part = read(params, memory, queries[:, i : i + 1])
    np.testing.assert_allclose(part.output[:, 0], whole[:, i], rtol=1e-5, atol=1e-5)


def test_tree_cross_attention_two_tokens_equals_cross_attention(rng):
  """With at most two tokens, the nodes read are the context."""
  tca, ca = models.read_out("tca"), models.read_out("ca")
  queries, tokens, coords, _ = _inputs(rng)
  params = models.params(tca)
  shared = {k: v for k, v in params["params"].items() if k != "aggregator"}
  tokens, coords = tokens[:, :2], coords[:, :2]
  np.testing.assert_allclose(
    models.compiled(tca)(params, queries, tokens, coords),
    models.compiled(ca)({"params": shared}, queries, tokens, coords),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize("name", models.READ_OUTS)
def test_index_masked_tokens_are_ignored(name, rng):
  layer = models.read_out(name)
  queries, tokens, coords, mask = _inputs(rng)
  apply = models.compiled(layer)
  expected = apply(models.params(layer), queries, tokens, coords, mask)
  tokens, coords = (np.where(mask[..., None], x, np.nan) for x in (tokens, coords))
  out = apply(models.params(layer), queries, tokens, coords, mask)
  np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("name", models.READ_OUTS)
@pytest.mark.parametrize(
  "change, message",
  [
    (dict(tokens=np.ones((BATCH, NUM_TOKENS, 8), np.float32)), r"\[B, N, 16\], got"),
    (dict(tokens=np.ones((BATCH, NUM_TOKENS, WIDTH), np.int32)), "tokens must be flo"),
    (dict(coords=np.ones((BATCH, 1, NUM_AXES), np.float32)), "tokens must be"),
    (dict(mask=np.ones((BATCH, NUM_TOKENS), np.int32)), "mask must be bool"),
    (dict(tokens=np.full((BATCH, NUM_TOKENS, WIDTH), np.nan, "f")), "must be finite"),
    (dict(mask=np.zeros((BATCH, NUM_TOKENS), bool)), "at least one valid token"),
  ],
)
def test_index_bad_context_raises(name, change, message, rng):
  layer = models.read_out(name)
  _, tokens, coords, mask = _inputs(rng)
  inputs = dict(tokens=tokens, coords=coords, mask=mask) | change
  with pytest.raises(ValueError, match=message):
    layer.apply(models.params(layer), **inputs, method="index")


@pytest.mark.parametrize("name", models.READ_OUTS)
@pytest.mark.parametrize(
  "queries, message",
  [
    (np.ones(WIDTH, np.float32), r"queries must be \[3, M, 16\], got \(16,\)"),
    (np.ones((2, 1, WIDTH), np.float32), r"queries must be \[3, M, 16\]"),
    (np.ones((BATCH, 1, 8), np.float32), r"queries must be \[3, M, 16\]"),
    (np.ones((BATCH, 1, WIDTH), np.int32), "queries must be floating point"),
    (np.full((BATCH, 1, WIDTH), np.inf, np.float32), "queries must be finite"),
  ],
)
def test_read_bad_queries_raise(name, queries, message, rng):
  layer = models.read_out(name)
  memory = _index(layer, rng)
  with pytest.raises(ValueError, match=message):
    layer.apply(models.params(layer), memory, queries, method="read")


@pytest.mark.parametrize("name", ["ca", "perceiver"])
def test_read_out_without_tree_refuses_trees_paths_and_leaves(name, rng):
  layer = models.read_out(name)
  queries, tokens, coords, _ = _inputs(rng)
  apply = functools.partial(layer.apply, models.params(layer))
  memory = _index(layer, rng)
  title = type(layer).__name__
  message = f"read_out must have a tree, such as TreeCrossAttention, got {title}"
  with pytest.raises(ValueError, match=message):
    trees = jax.vmap(tca_jax.build_tree)(coords)
    apply(tokens, coords, tree=trees, method="index")
  with pytest.raises(ValueError, match=message):
    apply(memory, queries, method="read_leaves")
  for num_paths in (0, 2):
    message = f"num_paths must be 1 for {title}, which has no tree, got {num_paths}"
    with pytest.raises(ValueError, match=message):
      apply(memory, queries, num_paths=num_paths, method="read")


def test_tree_cross_attention_bad_num_paths_raise(rng):
  layer = models.read_out("tca")
  queries = _inputs(rng)[0]
  read = functools.partial(
    layer.apply, models.params(layer), _index(layer, rng), queries, method="read"
  )
  with pytest.raises(ValueError, match="num_paths must be at least 1, got 0"):
    read(num_paths=0)
  with pytest.raises(ValueError, match="num_paths must be 1 in training, got 2"):
    read(num_paths=2, train=True)


def test_tree_cross_attention_more_paths_read_more_nodes_up_to_all_leaves(rng):
  layer = models.read_out("tca")
  params, memory = models.params(layer), _index(layer, rng)
  queries = _inputs(rng)[0]
  full = models.compiled(layer, "read_leaves")(params, memory, queries)
  counts = []
  for num_paths in (1, 2, memory.tree.num_leaves):
    out = models.compiled(layer, "read", num_paths=num_paths)(params, memory, queries)
    slots = tca_jax.num_read_slots(NUM_TOKENS, 2, num_paths)
    assert out.walk.mask.shape[-1] == slots
    np.testing.assert_array_equal(out.num_read, out.walk.mask.sum(-1))
    counts.append(int(out.num_read.sum()))
  assert counts == sorted(set(counts))
  assert counts[-1] == full.num_read.sum()
  np.testing.assert_allclose(out.output, full.output, rtol=1e-5, atol=1e-5)
  assert full.walk is None


def test_tree_cross_attention_training_returns_a_training_reading(rng):
  layer = models.read_out("tca")
  params, memory = models.params(layer), _index(layer, rng)
  queries = _inputs(rng)[0]
  read = models.compiled(layer, "read", train=True)
  out = read(params, memory, queries, rngs={"policy": jax.random.key(1)})
  assert type(out) is tca_jax.TrainingReading
  assert type(out.walk) is tca_jax.TreeAttentionOutput
  greedy = models.compiled(layer, "read")(params, memory, queries)
  assert type(greedy) is tca_jax.Reading and type(greedy.walk) is tca_jax.TreeReading

  full = models.compiled(layer, "read_leaves")(params, memory, queries)
  np.testing.assert_allclose(out.leaf_output, full.output, rtol=1e-5, atol=1e-5)
  weights = np.asarray(out.leaf_weights)
  leaf_mask = np.asarray(memory.tree.leaf_mask)
  assert weights.shape == (BATCH, NUM_QUERIES, memory.tree.num_leaves)
  assert weights.dtype == np.float32
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
  assert not np.any(np.where(leaf_mask[:, None], 0, weights))


def test_tree_cross_attention_leaf_weights_equal_the_mean_over_heads(rng):
  layer = models.read_out("tca")
  params, memory = models.params(layer), _index(layer, rng)
  queries = _inputs(rng)[0]
  read = models.compiled(layer, "read", train=True)
  out = read(params, memory, queries, rngs={"policy": jax.random.key(1)})

  def project(module, queries):
    return module.query(module.query_norm(queries))

  projected = layer.apply(params, queries, method=project)
  projected = projected.reshape(BATCH, NUM_QUERIES, layer.num_heads, -1)
  leaves = memory_lib.leaves(memory)
  logits = np.einsum("bmhd,bnhd->bmhn", projected, leaves.keys)
  logits = logits / np.sqrt(projected.shape[-1])
  logits = np.where(np.asarray(leaves.mask)[:, None, None], logits, -np.inf)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  np.testing.assert_allclose(out.leaf_weights, weights.mean(2), rtol=1e-4, atol=1e-6)


def test_tree_cross_attention_index_for_training_gives_the_same_reading(rng):
  layer = models.read_out("tca")
  queries, tokens, coords, mask = _inputs(rng)
  params = models.params(layer)
  read = models.compiled(layer, "read", train=True)
  outs = []
  for train in (False, True):
    index = models.compiled(layer, "index", train=train)
    memory = index(params, tokens, coords, mask)
    assert isinstance(memory, memory_lib.TrainingMemory) == train
    outs.append(read(params, memory, queries, rngs={"policy": jax.random.key(1)}))
  chex.assert_trees_all_close(*outs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ca", "perceiver"])
def test_read_out_without_tree_in_training_returns_a_reading(name, rng):
  layer = models.read_out(name)
  memory = _index(layer, rng)
  read = models.compiled(layer, "read", train=True)
  out = read(models.params(layer), memory, _inputs(rng)[0])
  assert type(out) is tca_jax.Reading and out.walk is None


@pytest.mark.parametrize("name", models.READ_OUTS)
def test_read_num_read_is_the_size_of_what_is_read(name, rng):
  layer = models.read_out(name)
  memory = _index(layer, rng)
  out = models.compiled(layer, "read")(models.params(layer), memory, _inputs(rng)[0])
  if name == "tca":
    assert np.all(out.num_read <= tca_jax.num_read_slots(NUM_TOKENS))
    expected = out.walk.mask.sum(-1)
  else:
    expected = np.tile(np.sum(memory.mask, axis=-1, keepdims=True), NUM_QUERIES)
  np.testing.assert_array_equal(out.num_read, expected)
  if name == "perceiver":
    assert np.all(out.num_read == 3)


def test_tree_cross_attention_tree_gradient_decides_whether_tokens_learn(rng):
  _, tokens, coords, _ = _few_tokens(rng, 4)
  params = models.params(models.read_out("tca"))
  grads = {}
  for through in (True, False):
    layer = models.read_out("tca", tree_gradient=through)

    def first_level(tokens, layer=layer):
      memory = layer.apply(params, tokens, coords, method="index")
      return jnp.sum(memory.values[:, memory_lib.level_slots(memory.tree, 1)] ** 2)

    grads[through] = jax.jit(jax.grad(first_level))(tokens)
  assert np.all(np.any(np.asarray(grads[True]) != 0, axis=-1))
  assert not np.any(grads[False])


def test_tree_cross_attention_large_levels_train_in_chunks(rng, monkeypatch):
  _, tokens, coords, mask = _few_tokens(rng, 5)
  layer = models.read_out("tca", dropout=0.1)
  params = models.params(models.read_out("tca"))

  def grads(train):
    """Traced at every call, because CHUNK is patched."""

    def loss(params):
      rngs = {"dropout": jax.random.key(2)}
      index = functools.partial(layer.apply, method="index")
      memory = index(params, tokens, coords, mask, train=train, rngs=rngs)
      return memory.values.sum() + memory.keys.sum()

    return jax.jit(jax.grad(loss))(params)

  def init():
    """Traced at every call, too."""
    return jax.jit(lambda rng: layer.init(rng, tokens, tokens, coords))(
      jax.random.key(0)
    )

  whole, expected = grads(train=False), init()
  monkeypatch.setattr(tree_lib, "CHUNK", 2)
  chex.assert_trees_all_close(grads(train=False), whole, rtol=1e-4, atol=1e-4)
  chex.assert_tree_all_finite(grads(train=True))
  chex.assert_trees_all_equal(init(), expected)


def test_tree_cross_attention_dropout_differs_among_nodes_of_large_levels(
  rng, monkeypatch
):
  monkeypatch.setattr(tree_lib, "CHUNK", 4)
  tokens = np.broadcast_to(np.float32(rng.normal(size=WIDTH)), (1, 16, WIDTH))
  layer = models.read_out("tca", dropout=0.5, order="given")
  params = models.params(models.read_out("tca"))

  @jax.jit
  def index(params):
    rngs = {"dropout": jax.random.key(1)}
    return layer.apply(params, tokens, tokens, train=True, rngs=rngs, method="index")

  memory = index(params)
  nodes = memory.values[0, memory_lib.level_slots(memory.tree, 3)]
  assert len(np.unique(np.asarray(nodes).reshape(8, -1), axis=0)) > 4


def test_index_given_tree_equals_the_built_tree(rng):
  _, tokens, coords, mask = _inputs(rng)
  layer = models.read_out("tca")
  index = functools.partial(models.compiled(layer, "index"), models.params(layer))
  trees = [tca_jax.build_tree(x, valid) for x, valid in zip(coords, mask, strict=True)]
  tree = jax.tree.map(lambda *x: jnp.stack(x), *trees)
  chex.assert_trees_all_close(
    index(tokens, coords, mask, tree=tree), index(tokens, coords, mask), rtol=1e-5
  )


def test_index_given_tree_of_another_context_raises(rng):
  coords = rng.normal(size=(2, 9, NUM_AXES)).astype(np.float32)
  tokens = rng.normal(size=(2, 9, WIDTH)).astype(np.float32)
  layer = models.read_out("tca")
  index = functools.partial(
    layer.apply, models.params(layer), tokens, coords, method="index"
  )
  stack = lambda *x: jax.tree.map(lambda *y: jnp.stack(y), *x)  # noqa: E731
  one = tca_jax.build_tree(coords[0])
  with pytest.raises(ValueError, match="branch factor 2, got 3"):
    index(tree=stack(*[tca_jax.build_tree(x, branch_factor=3) for x in coords]))
  message = r"2 trees of 16 leaves.*got leaves of .*\(16,\)"
  with pytest.raises(ValueError, match=message):
    index(tree=one)
  message = "every valid token of its context exactly once"
  with pytest.raises(ValueError, match=message):
    index(mask=np.arange(18).reshape(2, 9) % 9 < 5, tree=stack(one, one))
  larger = tca_jax.build_tree(rng.normal(size=(12, NUM_AXES)).astype(np.float32))
  with pytest.raises(ValueError, match=message):
    index(tree=stack(larger, larger))


@pytest.mark.parametrize("name", models.READ_OUTS)
def test_dropout_acts_only_in_training(name, rng):
  layer = models.read_out(name, dropout=0.5)
  params = models.params(models.read_out(name))
  inputs = _few_tokens(rng, 3)

  def run(seed, train):
    rngs = {"policy": jax.random.key(0), "dropout": jax.random.key(seed)}
    return models.compiled(layer, train=train)(params, *inputs, rngs=rngs)

  assert np.array_equal(run(0, False), run(1, False))
  assert not np.array_equal(run(0, True), run(1, True))


@pytest.mark.parametrize("name", models.READ_OUTS)
def test_read_out_same_shape_is_traced_once(name, rng, count_traces):
  layer = models.read_out(name)
  counter, apply = count_traces(layer.apply)
  for _ in range(3):
    apply(models.params(layer), *_few_tokens(rng, 2))
  assert counter.traces == 1


@pytest.mark.parametrize("name", models.READ_OUTS)
def test_read_out_width_not_divisible_by_heads_raises(name):
  layer = models.read_out(name, num_heads=3)
  x = np.ones((1, 2, WIDTH), np.float32)
  with pytest.raises(ValueError, match="multiple of num_heads=3, got 16"):
    layer.init(jax.random.key(0), x, x, x)


def test_perceiver_io_without_latents_raises():
  layer = tca_jax.PerceiverIO(width=WIDTH, num_latents=0)
  x = np.ones((1, 2, WIDTH), np.float32)
  with pytest.raises(
    ValueError, match="num_latents must be an integer of at least 1, got 0"
  ):
    layer.init(jax.random.key(0), x, x, x)


@pytest.mark.parametrize(
  "options",
  [
    *[dict(order=order) for order in tree_lib.ORDERS[1:]],
    dict(order="axis", axis=1),
    dict(order="random", order_seed=1),
    dict(branch_factor=4),
  ],
)
def test_tree_cross_attention_options_change_the_tree(options, rng):
  _, tokens, coords, mask = _few_tokens(rng, 6)
  params = models.params(models.read_out("tca"))
  index = models.compiled(models.read_out("tca", **options), "index")
  tree = index(params, tokens, coords, mask).tree
  given = {name: x for name, x in options.items() if name != "order_seed"}
  if options.get("order", "").startswith("random"):
    given["rng"] = jax.random.key(options.get("order_seed", 0))
  build = jax.vmap(functools.partial(tca_jax.build_tree, **given))
  chex.assert_trees_all_equal(tree, jax.jit(build)(coords, mask))
  default = [tca_jax.build_tree(x).leaf_index for x in coords]
  assert not np.array_equal(tree.leaf_index, default)


def test_tree_cross_attention_share_policy_decides_which_weights_the_policy_moves(rng):
  queries, tokens, coords, mask = _few_tokens(rng, 3)

  def policy_gradient(layer):
    params = models.params(layer)

    def log_prob(params):
      memory = layer.apply(params, tokens, coords, mask, method="index")
      rngs = {"policy": jax.random.key(1)}
      out = layer.apply(params, memory, queries, train=True, rngs=rngs, method="read")
      return out.walk.log_prob.sum()

    return jax.jit(jax.grad(log_prob))(params)["params"]

  size = lambda tree: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree))  # noqa: E731
  shared = policy_gradient(models.read_out("tca"))
  assert "policy_key" not in shared and size(shared["key"]) > 0
  separate = policy_gradient(models.read_out("tca", share_policy=False))
  assert size(separate["key"]) == 0
  assert size(separate["policy_key"]) > 0 and size(separate["policy_query"]) > 0


@pytest.mark.parametrize("kind", cases.MASKS)
def test_tree_cross_attention_walk_covers_every_token_once(kind, rng):
  layer = models.read_out("tca")
  queries, tokens, coords, _ = _inputs(rng)
  mask = np.stack([cases.mask(kind, NUM_TOKENS, rng) for _ in range(BATCH)])
  params = models.params(layer)
  memory = models.compiled(layer, "index")(params, tokens, coords, mask)
  walk = models.compiled(layer, "read")(params, memory, queries).walk
  tree = memory.tree
  leaf_index, leaf_mask = np.asarray(tree.leaf_index), np.asarray(tree.leaf_mask)
  for i, j in np.ndindex(BATCH, NUM_QUERIES):
    covered = []
    for level, index in zip(
      np.asarray(walk.level[i, j])[np.asarray(walk.mask[i, j])],
      np.asarray(walk.index[i, j])[np.asarray(walk.mask[i, j])],
      strict=True,
    ):
      leaves = np.arange(tree.num_leaves).reshape(2**level, -1)[index]
      covered += leaf_index[i, leaves][leaf_mask[i, leaves]].tolist()
    assert sorted(covered) == np.flatnonzero(mask[i]).tolist()


# --- Distances in dot-product attention.


@pytest.mark.parametrize("share_policy", [True, False])
def test_sees_distance_all_paths_equal_the_leaves_and_full_attention(share_policy, rng):
  queries, tokens, coords, mask = _inputs(rng)
  query_coords = rng.normal(size=(BATCH, NUM_QUERIES, NUM_AXES)).astype(np.float32)
  layer = models.read_out("tca", sees_distance=True, share_policy=share_policy)
  flat = models.read_out("ca", sees_distance=True)
  init = functools.partial(layer.init, query_coords=query_coords)
  params = models.draw(init, queries, tokens, coords, mask)
  memory = models.compiled(layer, "index")(params, tokens, coords, mask)
  leaves = models.compiled(layer, "read_leaves")(params, memory, queries, query_coords)
  read = models.compiled(layer, "read", num_paths=16)
  found = read(params, memory, queries, query_coords=query_coords)
  shared = jax.eval_shape(flat.init, jax.random.key(0), queries, tokens, coords,
                          query_coords=query_coords)  # fmt: skip
  given = {name: params["params"][name] for name in shared["params"]}
  full = models.compiled(flat)(
    {"params": given}, queries, tokens, coords, mask, query_coords=query_coords
  )
  for output in (leaves.output, found.output):
    np.testing.assert_allclose(output, full, rtol=1e-4, atol=1e-5)
  moved = read(params, memory, queries, query_coords=query_coords + 1)
  assert not np.allclose(moved.output, found.output, atol=1e-3)


def test_sees_distance_policy_walks_to_the_leaf_at_the_query(rng):
  """With one weight that is large, and all else 0, the nearest centroid is taken."""
  queries, tokens, coords, mask = _few_tokens(rng, 8)
  layer = models.read_out("tca", sees_distance=True)
  init = functools.partial(layer.init, query_coords=coords[:, :NUM_QUERIES])
  params = jax.tree.map(jnp.zeros_like, models.draw(init, queries, tokens, coords))
  params["params"]["distance"]["log_weight"] += 5
  memory = models.compiled(layer, "index")(params, tokens, coords, mask)
  read = models.compiled(layer, "read")
  found = read(params, memory, queries, query_coords=coords[:, :NUM_QUERIES])
  for i, x in enumerate(coords):
    root = reference.build(x, np.ones(8, bool), 2)
    for j in range(NUM_QUERIES):
      node, path = root, []
      while node.children:
        gaps = [np.sum((x[n.tokens].mean(0) - x[j]) ** 2) for n in node.children]
        path.append(int(np.argmin(gaps)))
        node = node.children[path[-1]]
      assert found.walk.path[i, j].tolist() == path


def test_sees_distance_without_locations_or_in_other_models_raises(rng):
  queries, tokens, coords, _ = _inputs(rng)
  for name in ("tca", "ca"):
    layer = models.read_out(name, sees_distance=True)
    with pytest.raises(ValueError, match="query_coords must be given"):
      jax.eval_shape(layer.init, jax.random.key(0), queries, tokens, coords)
  layer = models.read_out("perceiver", sees_distance=True)
  with pytest.raises(ValueError, match="sees_distance must be False in PerceiverIO"):
    jax.eval_shape(layer.init, jax.random.key(0), queries, tokens, coords)
  model = models.model("tca")
  model = model.clone(read_out=model.read_out.clone(sees_distance=True))
  with pytest.raises(ValueError, match="sees_distance must be False in a model whose"):
    init = functools.partial(model.init, method="index_growing")
    jax.eval_shape(init, jax.random.key(0), coords, coords[..., :1])
