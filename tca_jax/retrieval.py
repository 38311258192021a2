"""Tree search: the policy's walk and the attention over what it read.

Keys and values of every node are computed once per context. The logits of a
query against the children it meets on the way down serve twice: their softmax
is the policy that picks the next node, and the logits of the children not
picked are the attention logits of the nodes read. So one pass from the root to
a leaf, with an online softmax, gives retrieval and attention together. The
depth is static: the walk is unrolled, and differentiable.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from tca_jax import attention
from tca_jax.tree import Tree


@chex.dataclass(frozen=True)
class TreeAttentionOutput:
  """What `tree_attention` returns for one query; |S| = (b - 1) * depth + 1.

  Attributes:
    output: `[H, Dv]`, the attention over the nodes read; zeros if none is.
    level: `[|S|]` int32, the level of each node read, the root's being 0.
    index: `[|S|]` int32, the node's index on its level.
    mask: `[|S|]` bool, whether the slot holds a node with a valid token.
    path: `[depth]` int32, the child taken at each level, in [0, b).
    counted: `[depth]` bool, whether the decision could change what is read:
      some child of the node visited holds more than one token.
    log_policy: `[depth, b]` float32, log pi(child | node visited, query);
      `attention.MASKED` at masked children.
    log_prob: `[]` float32, sum of log pi(path) over the counted decisions.
    entropy: `[]` float32, mean entropy in nats of the per-head softmax over
      the counted decisions and the heads; 0 if no decision counts.
  """

  output: jax.Array
  level: jax.Array
  index: jax.Array
  mask: jax.Array
  path: jax.Array
  counted: jax.Array
  log_policy: jax.Array
  log_prob: jax.Array
  entropy: jax.Array

  @property
  def num_read(self) -> jax.Array:
    """`[]` int32, the number of nodes read, |S| without its masked slots."""
    return jnp.sum(self.mask, axis=-1)


def tree_attention(
  query: jax.Array,
  keys: Sequence[jax.Array],
  values: Sequence[jax.Array],
  tree: Tree,
  *,
  rng: jax.Array | None = None,
  policy_query: jax.Array | None = None,
  policy_keys: Sequence[jax.Array] | None = None,
) -> TreeAttentionOutput:
  """Tree Cross Attention of one query (Sec. 3.1, retrieval phase).

  At each inner node, pi(child) is the mean over heads of the per-head softmax
  of q . k / sqrt(Dh) over the valid children. The walk takes the most probable
  child (the lowest index among equals) or, given `rng`, samples one. The
  children not taken are read; at the bottom the leaf is. The output is the
  attention of the query over the nodes read, which cover every valid token of
  the context exactly once.

  Args:
    query: `[H, Dh]`.
    keys: depth + 1 levels of `[b**l, H, Dh]`, as `aggregate` orders them.
    values: depth + 1 levels of `[b**l, H, Dv]`.
    tree: the `Tree` the levels belong to.
    rng: None for the greedy walk, else the key that samples it; consumed.
    policy_query: `[H', Dp]`, if the policy has a query of its own.
    policy_keys: levels of `[b**l, H', Dp]`, if the policy has keys of its own.
      Either may be left out: the attention's stand in.

  Returns:
    A `TreeAttentionOutput`.

  Raises:
    ValueError: if a number of levels or a shape does not fit the tree.

  >>> from tca_jax.tree import build_tree
  >>> tree = build_tree(jnp.arange(4.0)[:, None])
  >>> levels = [jnp.ones((2**l, 1, 3)) for l in range(3)]
  >>> out = tree_attention(jnp.ones((1, 3)), levels, levels, tree)
  >>> out.level.tolist(), out.index.tolist(), out.path.tolist()
  ([1, 2, 2], [1, 1, 0], [0, 0])
  """
  shares_policy = policy_query is None and policy_keys is None
  policy_query = query if policy_query is None else policy_query
  policy_keys = keys if policy_keys is None else policy_keys
  _check_levels("keys", keys, tree, query)
  _check_levels("values", values, tree, query[:, :1])
  _check_levels("policy_keys", policy_keys, tree, policy_query)

  tree, keys, values, policy_keys = jax.tree.map(
    jnp.asarray, (tree, tuple(keys), tuple(values), tuple(policy_keys))
  )
  b, depth = tree.branch_factor, tree.depth
  # The Gumbel-max trick: one draw samples the choices of all levels.
  noise = 0.0 if rng is None else jax.random.gumbel(rng, (depth, b))
  noise = jnp.broadcast_to(noise, (depth, b))
  children = jnp.arange(b)
  node = jnp.int32(0)
  softmax = _OnlineSoftmax(query.shape[0], values[0].shape[-1])
  levels, indices, masks, path, counted = [], [], [], [], []
  log_policies, log_probs, entropies = [], [], []
  for level in range(depth):
    count = tree.child_count[level][node]
    valid = count > 0
    child_keys = _read_children(keys[level + 1], node, b)
    logits = attention.head_logits(query, child_keys)  # [H, b]
    policy_logits = logits
    if not shares_policy:
      policy_logits = attention.head_logits(
        policy_query, _read_children(policy_keys[level + 1], node, b)
      )
    log_heads = attention.masked_log_softmax(policy_logits, valid)
    log_policy = _log_mean_exp(log_heads, valid)
    preference = jnp.where(valid, log_policy + noise[level], -jnp.inf)
    choice = jnp.argmax(preference).astype(jnp.int32)  # 0 if no child is valid

    softmax.add(
      logits,
      _read_children(values[level + 1], node, b),
      valid & (children != choice),
    )
    siblings = jnp.arange(b - 1)
    siblings = siblings + (siblings >= choice)  # all children but the choice
    levels.append(jnp.full(b - 1, level + 1, jnp.int32))
    indices.append((node * b + siblings).astype(jnp.int32))
    masks.append(valid[siblings])
    path.append(choice)
    counts = jnp.max(count) > 1
    counted.append(counts)
    log_policies.append(log_policy)
    log_probs.append(jnp.where(counts, log_policy[choice], 0))
    head_entropy = -jnp.sum(jnp.where(valid, jnp.exp(log_heads) * log_heads, 0), -1)
    entropies.append(jnp.where(counts, jnp.mean(head_entropy), 0))
    node = node * b + choice

  leaf_mask = tree.leaf_mask[node]
  leaf_key, leaf_value = keys[-1][node], values[-1][node]
  softmax.add(
    attention.head_logits(query, leaf_key[None]), leaf_value[None], leaf_mask[None]
  )
  levels.append(jnp.full(1, depth, jnp.int32))
  indices.append(node[None])
  masks.append(leaf_mask[None])
  counted = jnp.array(counted, bool).reshape(depth)
  return TreeAttentionOutput(
    output=softmax.output().astype(values[-1].dtype),
    level=jnp.concatenate(levels),
    index=jnp.concatenate(indices),
    mask=jnp.concatenate(masks),
    path=jnp.array(path, jnp.int32).reshape(depth),
    counted=counted,
    log_policy=jnp.array(log_policies, jnp.float32).reshape(depth, b),
    log_prob=sum(log_probs, jnp.float32(0)),
    entropy=sum(entropies, jnp.float32(0)) / jnp.maximum(jnp.sum(counted), 1),
  )


class _OnlineSoftmax:
  """Attention of H heads over nodes that arrive a few at a time."""

  def __init__(self, num_heads: int, width: int):
    self._peak = jnp.full(num_heads, attention.MASKED, jnp.float32)
    self._total = jnp.zeros(num_heads, jnp.float32)
    self._sum = jnp.zeros((num_heads, width), jnp.float32)

  def add(self, logits: jax.Array, values: jax.Array, mask: jax.Array) -> None:
    """Adds n nodes: logits `[H, n]`, values `[n, H, Dv]`, mask `[n]`."""
    logits = jnp.where(mask, logits, attention.MASKED)
    peak = jnp.maximum(self._peak, jnp.max(logits, axis=-1))
    peak = jax.lax.stop_gradient(peak)
    weights = jnp.where(mask, jnp.exp(logits - peak[:, None]), 0)
    decay = jnp.exp(self._peak - peak)
    self._total = self._total * decay + jnp.sum(weights, axis=-1)
    self._sum = self._sum * decay[:, None] + jnp.einsum(
      "hn,nhd->hd", weights, values.astype(jnp.float32)
    )
    self._peak = peak

  def output(self) -> jax.Array:
    """`[H, Dv]` float32; zeros if every node was masked."""
    return self._sum / jnp.where(self._total > 0, self._total, 1)[:, None]


def _read_children(level: jax.Array, node: jax.Array, b: int) -> jax.Array:
  """The rows of a node's children, `[b**l, H, Dh] -> [b, H, Dh]`: one row read."""
  return level.reshape(-1, b, *level.shape[1:])[node]


def _log_mean_exp(log_heads: jax.Array, valid: jax.Array) -> jax.Array:
  """Log of the mean over heads, `[H, b] -> [b]`; `MASKED` where not valid."""
  peak = jax.lax.stop_gradient(jnp.max(log_heads, axis=0))
  mean = jnp.mean(jnp.exp(log_heads - peak), axis=0)
  return jnp.where(valid, peak + jnp.log(mean), attention.MASKED)


def _check_levels(
  name: str, levels: Sequence[jax.Array], tree: Tree, query: jax.Array
) -> None:
  """Raises unless levels are `[b**l, H, ...]` as the tree and query ask."""
  b, depth = tree.branch_factor, tree.depth
  if len(levels) != depth + 1:
    raise ValueError(
      f"{name} must hold depth + 1 = {depth + 1} levels, got {len(levels)}"
    )
  if query.ndim != 2:
    raise ValueError(f"a query must be [H, Dh], got shape {query.shape}")
  heads, width = query.shape
  for l, level in enumerate(levels):
    fits = level.ndim == 3 and level.shape[:2] == (b**l, heads)
    if not fits or (name != "values" and level.shape[2] != width):
      raise ValueError(
        f"{name}[{l}] must be [{b**l}, {heads},"
        f" {'Dv' if name == 'values' else width}], got {level.shape}"
      )
