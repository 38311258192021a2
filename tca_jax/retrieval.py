"""Tree search: the walk of a policy, and the attention over the nodes read.

The keys and values of all nodes are computed once per context and packed into a
`TreeMemory`. At each inner node, the logits of a query against the children are used
twice. Their softmax is the policy that picks the next node, and the logits of the
children that are not picked are the attention logits of the nodes read.

All steps of a walk have the same shapes, so the walk is a `jax.lax.scan` over the
levels. It is not differentiated. `read` uses the logits of the walk. `attend`, which
training needs, recomputes the logits of all visited nodes in one product.

The functions take one query and one context; batch them with `jax.vmap`. Arguments
named `rng` are keys of `jax.random`; a function consumes the key that it is given.
"""

from collections.abc import Sequence
import functools

import chex
import jax
import jax.numpy as jnp

from tca_jax.checks import as_array
from tca_jax.checks import check_floating
from tca_jax.checks import check_num_paths
from tca_jax.grown_tree import GrownTree
from tca_jax.masking import log_softmax_of_members
from tca_jax.masking import MASKED
from tca_jax.masking import masked_log_softmax
from tca_jax.masking import masked_mean
from tca_jax.masking import masked_softmax
from tca_jax.memory import level_slots  # noqa: F401
from tca_jax.memory import pack
from tca_jax.memory import TreeMemory
from tca_jax.sharded_tree import add_up
from tca_jax.sharded_tree import from_owner
from tca_jax.sharded_tree import keep_own
from tca_jax.sharded_tree import num_above
from tca_jax.sharded_tree import stored_row
from tca_jax.sharded_tree import stored_slot
from tca_jax.tree import Tree
from tca_jax.walk import child_logits
from tca_jax.walk import drop_chosen
from tca_jax.walk import gather_heads
from tca_jax.walk import gather_rows
from tca_jax.walk import locate_nodes
from tca_jax.walk import logits_read
from tca_jax.walk import NodesRead
from tca_jax.walk import path_to_leaf
from tca_jax.walk import slot_logits
from tca_jax.walk import split_beam
from tca_jax.walk import Walk
from tca_jax.walk import walk_down

__all__ = [
  "TreeAttentionOutput",
  "TreeMemory",
  "TreeReading",
  "attend",
  "pack",
  "read",
  "read_beam",
  "tree_attention",
]


@chex.dataclass(frozen=True)
class TreeReading(NodesRead):
  """The nodes that one query read, and the attention over them.

  Attributes:
    output: `[H, Dv]`, the attention over the nodes read; 0 if no token is valid.
  """

  output: jax.Array


@chex.dataclass(frozen=True)
class TreeAttentionOutput(TreeReading):
  """A `TreeReading` with the policy's probabilities along the path.

  A decision is counted if it can change the set of nodes read, that is if a child of
  the visited node has more than one valid token.

  Attributes:
    counted: `[depth]` bool, whether the decision of a level is counted.
    log_policy: `[depth, b]` float32, log pi(child | visited node, query);
      `masking.MASKED` at masked children.
    log_prob: `[]` float32, the sum of log pi(child taken) over counted decisions.
    entropy: `[]` float32, the entropy of the per-head softmax in nats, averaged over
      heads and counted decisions; 0 if no decision is counted.
  """

  counted: jax.Array
  log_policy: jax.Array
  log_prob: jax.Array
  entropy: jax.Array


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
  """Computes Tree Cross Attention of one query (Sec. 3.1, retrieval phase).

  At each inner node, pi(child) is the mean over heads of the per-head softmax of
  q . k / sqrt(Dh) over the valid children. The walk takes the most probable child
  (the lowest index among equals) or, given `rng`, samples one. It reads the children
  that it does not take, and the leaf at its end. The output is the attention of the
  query over the nodes read. They cover every valid token of the context exactly once.

  The levels are packed at every call. To read a context often, call `pack` once, then
  `read`, or `attend` where gradients are needed.

  Args:
    query: `[H, Dh]`.
    keys: depth + 1 levels of `[b**l, H, Dh]`, in the order of `aggregate`.
    values: depth + 1 levels of `[b**l, H, Dv]`.
    tree: the `Tree` of the levels.
    rng: None for the greedy walk, else the key for sampling.
    policy_query: `[H', Dp]` if the policy has its own query; None means `query`.
    policy_keys: levels of `[b**l, H', Dp]` if the policy has its own keys; None means
      `keys`.

  Returns:
    A `TreeAttentionOutput`.

  Raises:
    ValueError: if the number of levels, a shape or a dtype does not fit the tree.

  >>> from tca_jax.tree import build_tree
  >>> tree = build_tree(jnp.arange(4.0)[:, None])
  >>> levels = [jnp.ones((2**l, 1, 3)) for l in range(3)]
  >>> out = tree_attention(jnp.ones((1, 3)), levels, levels, tree)
  >>> out.level.tolist(), out.index.tolist(), out.path.tolist()
  ([1, 2, 2], [1, 1, 0], [0, 0])
  """
  memory = pack(tree, keys, values, policy_keys)
  return attend(query, memory, rng=rng, policy_query=policy_query)


def attend(
  query: jax.Array,
  memory: TreeMemory,
  *,
  rng: jax.Array | None = None,
  policy_query: jax.Array | None = None,
) -> TreeAttentionOutput:
  """Computes `tree_attention` with a packed memory; differentiable.

  Args:
    query: `[H, Dh]`.
    memory: the `TreeMemory` of one context.
    rng: None for the greedy walk, else the key for sampling.
    policy_query: `[H', Dp]` if the policy has its own query; None means `query`.

  Returns:
    A `TreeAttentionOutput`.

  Raises:
    ValueError: if a query does not fit the memory.
  """
  query = as_array("query", query)
  policy_query, policy_keys, shares_policy = _policy(query, memory, policy_query)
  policy = jax.lax.stop_gradient((policy_query, policy_keys))
  walk = walk_down(*policy, memory.tree, rng)
  tree = memory.tree
  row = stored_row(tree, walk.node)
  policy_logits = child_logits(policy_query, gather_rows(policy_keys, row))
  slots = stored_slot(tree, walk.slots)
  if shares_policy:
    logits = logits_read(policy_logits, walk)
  else:
    logits = slot_logits(query, memory.keys, slots)

  # --- The policy.
  members = range(tree.branch_factor)
  valid = [walk.valid[:, None, i] for i in members]
  log_heads = log_softmax_of_members([policy_logits[..., i] for i in members], valid)
  log_policy = _log_mean_exp(jnp.stack(log_heads, axis=-1), walk.valid)
  log_taken = jnp.take_along_axis(log_policy, walk.path[:, None], axis=1)[:, 0]
  entropies = [  # of each child, [depth, H]
    jnp.where(allowed, -jnp.exp(log_head) * log_head, 0)
    for allowed, log_head in zip(valid, log_heads, strict=True)
  ]
  entropy = jnp.mean(functools.reduce(jnp.add, entropies), axis=-1)

  # --- The attention.
  nodes = _nodes_read(walk, tree)
  weights = masked_softmax(logits, nodes["mask"][:, None], axis=0)
  reading = TreeAttentionOutput(
    output=_weighted_sum(weights, slots, memory.values).astype(memory.values.dtype),
    **nodes,
    path=walk.path,
    counted=walk.counted,
    log_policy=log_policy,
    log_prob=jnp.sum(jnp.where(walk.counted, log_taken, 0)),
    entropy=masked_mean(entropy, walk.counted),
  )
  return from_owner(tree, walk.leaf, reading)


def read(
  query: jax.Array,
  memory: TreeMemory,
  *,
  policy_query: jax.Array | None = None,
  num_paths: int = 1,
) -> TreeReading:
  """Reads a packed memory greedily, for evaluation.

  With num_paths=1 it returns the same as the greedy `attend`, but it is faster and
  not meant to be differentiated. With num_paths > 1, a beam search keeps the num_paths
  most probable partial paths at each level, and reads every child that is not on the
  beam. Each token is still covered exactly once. With as many paths as leaves it is
  full attention over the leaves.

  Args:
    query: `[H, Dh]`.
    memory: the `TreeMemory` of one context.
    policy_query: `[H', Dp]` if the policy has its own query; None means `query`.
    num_paths: the beam width, a static int; |S| is `num_read_slots` of it.

  Returns:
    A `TreeReading`.

  Raises:
    ValueError: if a query does not fit the memory, or num_paths is below 1.
  """
  check_num_paths(num_paths)
  if num_paths > 1:
    return read_beam(query, memory, policy_query=policy_query, num_paths=num_paths)
  query = as_array("query", query)
  policy_query, policy_keys, shares_policy = _policy(query, memory, policy_query)
  walk = walk_down(policy_query, policy_keys, memory.tree)
  logits = walk.read_logits
  tree = memory.tree
  if not shares_policy:
    rows = gather_rows(memory.keys, stored_row(tree, walk.node))
    logits = logits_read(child_logits(query, rows), walk)

  weights = masked_softmax(logits, logits > MASKED, axis=0)
  output = jnp.zeros(memory.values.shape[1:], jnp.float32)
  # A loop, because XLA fuses it into one kernel and gathers no array of values.
  for slot, weight in zip(stored_slot(tree, walk.slots), weights, strict=True):
    output += weight[:, None] * gather_rows(memory.values, slot).astype(jnp.float32)
  reading = TreeReading(
    output=output.astype(memory.values.dtype),
    **_nodes_read(walk, tree),
    path=walk.path,
  )
  return from_owner(tree, walk.leaf, reading)


def read_beam(
  query: jax.Array,
  memory: TreeMemory,
  *,
  policy_query: jax.Array | None = None,
  num_paths: int = 1,
) -> TreeReading:
  """Reads along `num_paths` paths by beam search; called by `read`.

  For num_paths = 1 it returns the same as `read`, but it is slower.

  Args:
    query: `[H, Dh]`.
    memory: the memory of one context.
    policy_query: `[H', Dp]` if the policy has its own query.
    num_paths: the beam width, at least 1.

  Returns:
    A `TreeReading`; its `path` is the most probable path of the beam.

  Raises:
    ValueError: if a query does not fit the memory, or num_paths is below 1.
  """
  check_num_paths(num_paths)
  query = as_array("query", query)
  policy_query, policy_keys, shares_policy = _policy(query, memory, policy_query)
  tree = memory.tree
  b, depth, num_valid = tree.branch_factor, tree.depth, tree.num_valid
  children = jnp.arange(b, dtype=jnp.int32)
  # For each path: the node reached, its first token (see `walk_down`), and the policy's
  # log-probability of the path.
  node = first = jnp.zeros(1, jnp.int32)
  score = jnp.zeros(1, jnp.float32)
  logits, occupied = jnp.zeros((1, query.shape[0]), jnp.float32), num_valid[None] > 0
  slots, slot_logits, masks, levels = [], [], [], []

  def add(level, node, occupied, logits):
    """Adds nodes of a level to the nodes read."""
    slots.append(jnp.maximum(node - 1, 0))
    slot_logits.append(logits)
    masks.append(occupied)
    levels.extend([level] * len(node))

  for level in range(1, depth + 1):
    child_first = (first[:, None] + b ** (level - 1) * children[None]).ravel()
    valid = (child_first < num_valid).reshape(-1, b)
    if isinstance(tree, GrownTree):
      valid = gather_rows(tree.counts, node) > 0
    row = stored_row(tree, node)
    policy_logits = child_logits(policy_query, gather_rows(policy_keys, row))
    policy_logits = from_owner(tree, node, policy_logits)
    log_heads = masked_log_softmax(policy_logits, valid[:, None])
    child_score = jnp.where(
      valid, score[:, None] + _log_mean_exp(log_heads, valid), MASKED
    ).ravel()
    logits = policy_logits
    if not shares_policy:
      logits = child_logits(query, gather_rows(memory.keys, row))
      logits = from_owner(tree, node, logits)
    logits = jnp.swapaxes(logits, 1, 2).reshape(-1, query.shape[0])
    child = (node[:, None] * b + 1 + children[None]).ravel()
    kept, rest = split_beam(child_score, num_paths)
    occupied = valid.ravel()
    add(level, child[rest], occupied[rest], logits[rest])
    node, first, score = child[kept], child_first[kept], child_score[kept]
    logits, occupied = logits[kept], occupied[kept]
  add(depth, node, occupied, logits)

  slot, mask = jnp.concatenate(slots), jnp.concatenate(masks)
  leaf = node[jnp.argmax(score)] - num_above(depth, b)
  weights = masked_softmax(jnp.concatenate(slot_logits), mask[:, None], axis=0)
  weights = keep_own(tree, slot // b, weights)
  output = add_up(tree, _weighted_sum(weights, stored_slot(tree, slot), memory.values))
  return TreeReading(
    output=output.astype(memory.values.dtype),
    **locate_nodes(slot, levels, tree),
    mask=mask,
    path=path_to_leaf(leaf, tree),
  )


def _policy(
  query: jax.Array, memory: TreeMemory, policy_query: jax.Array | None
) -> tuple[jax.Array, jax.Array, bool]:
  """Returns the policy's query and keys, and whether they are the attention's.

  Raises:
    ValueError: if a query does not fit the memory.
  """
  shares_policy = policy_query is None and memory.policy_keys is None
  _check_query("query", query, memory.keys)
  policy_query = (
    query if policy_query is None else as_array("policy_query", policy_query)
  )
  policy_keys = memory.keys if memory.policy_keys is None else memory.policy_keys
  _check_query("policy_query", policy_query, policy_keys)
  return policy_query, policy_keys, shares_policy


def _weighted_sum(weights: jax.Array, slots: jax.Array, values: jax.Array) -> jax.Array:
  """The sum, `[H, Dv]` float32, of values in slots `[n]` with weights `[n, H]`."""
  read = gather_heads(values[:, :, None], slots).astype(jnp.float32)
  return jnp.einsum("nh,hnd->hd", weights, read)


def _nodes_read(walk: Walk, tree: Tree) -> dict[str, jax.Array]:
  """Returns the fields level, index and mask of a `TreeReading`."""
  b, depth = tree.branch_factor, tree.depth
  levels = [l for l in range(1, depth + 1) for _ in range(b - 1)] + [depth]
  mask = drop_chosen(walk.valid, walk.path[:, None])
  return locate_nodes(walk.slots, levels, tree) | {
    "mask": jnp.append(mask, walk.leaf_valid)
  }


def _log_mean_exp(log_heads: jax.Array, valid: jax.Array) -> jax.Array:
  """Log of the mean over heads, `[n, H, b] -> [n, b]`; `MASKED` if invalid."""
  peak = jax.lax.stop_gradient(jnp.max(log_heads, axis=1))
  mean = jnp.mean(jnp.exp(log_heads - peak[:, None]), axis=1)
  return jnp.where(valid, peak + jnp.log(mean), MASKED)


def _check_query(name: str, query: jax.Array, keys: jax.Array) -> None:
  if query.ndim != 2 or query.shape != (keys.shape[1], keys.shape[3]):
    raise ValueError(
      f"{name} must be [H, Dh] = [{keys.shape[1]}, {keys.shape[3]}] like its keys,"
      f" got {query.shape}"
    )
  check_floating(**{name: query})
