"""Tree search: the policy's walk and the attention over what it read.

Keys and values of every node are computed once per context and packed into a
`TreeMemory`, where what a step of the walk needs lies in one row. The logits of a
query against the children it meets on the way down serve twice: their softmax is
the policy that picks the next node, and the logits of the children not picked are
the attention logits of the nodes read.

All levels have one shape, so the walk is a `jax.lax.scan` over the depth. It is not
differentiated: `read` takes its logits as they are, and `attend`, which training
needs, computes those of the nodes visited again, all at once.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from tca_jax import attention
from tca_jax import tree as tree_lib


@chex.dataclass(frozen=True)
class TreeMemory:
  """A tree with the keys and values of its nodes, packed for reading.

  Nodes stand level by level, the root left out, as no query reads it: slot s of
  R * b holds child s % b of the inner node s // b, inner nodes counted level by
  level from the root. A tree whose root is its only leaf keeps it in slot 0.
  `pack` makes a memory from levels, `level_slots` finds a level in it. A batch has
  leading axes on every array.

  Attributes:
    tree: the `Tree`.
    keys: `[R, H, b, Dh]`, heads before children.
    values: `[R * b, H, Dv]`.
    policy_keys: `[R, H', b, Dp]` if the policy has keys of its own, else None.
  """

  tree: tree_lib.Tree
  keys: jax.Array
  values: jax.Array
  policy_keys: jax.Array | None = None


@chex.dataclass(frozen=True)
class TreeReading:
  """What one query read; |S| = (b - 1) * depth + 1.

  Attributes:
    output: `[H, Dv]`, the attention over the nodes read; zeros if none is.
    level: `[|S|]` int32, the level of each node read, the root's being 0.
    index: `[|S|]` int32, the node's index on its level.
    mask: `[|S|]` bool, whether the slot holds a node with a valid token.
    path: `[depth]` int32, the child taken at each level, in [0, b).
  """

  output: jax.Array
  level: jax.Array
  index: jax.Array
  mask: jax.Array
  path: jax.Array

  @property
  def num_read(self) -> jax.Array:
    """`[]` int32, the number of nodes read, |S| without its masked slots."""
    return jnp.sum(self.mask, axis=-1)


@chex.dataclass(frozen=True)
class TreeAttentionOutput(TreeReading):
  """A `TreeReading`, and what the policy did.

  Attributes:
    counted: `[depth]` bool, whether the decision could change what is read:
      some child of the node visited holds more than one token.
    log_policy: `[depth, b]` float32, log pi(child | node visited, query);
      `attention.MASKED` at masked children.
    log_prob: `[]` float32, sum of log pi(path) over the counted decisions.
    entropy: `[]` float32, mean entropy in nats of the per-head softmax over
      the counted decisions and the heads; 0 if no decision counts.
  """

  counted: jax.Array
  log_policy: jax.Array
  log_prob: jax.Array
  entropy: jax.Array


def tree_attention(
  query: jax.Array,
  keys: Sequence[jax.Array],
  values: Sequence[jax.Array],
  tree: tree_lib.Tree,
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

  Packs the levels at every call: to read a context often, `pack` once, then
  `read` it, or `attend` to it where gradients are needed.

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

  >>> tree = tree_lib.build_tree(jnp.arange(4.0)[:, None])
  >>> levels = [jnp.ones((2**l, 1, 3)) for l in range(3)]
  >>> out = tree_attention(jnp.ones((1, 3)), levels, levels, tree)
  >>> out.level.tolist(), out.index.tolist(), out.path.tolist()
  ([1, 2, 2], [1, 1, 0], [0, 0])
  """
  memory = pack(tree, keys, values, policy_keys)
  return attend(query, memory, rng=rng, policy_query=policy_query)


def pack(
  tree: tree_lib.Tree,
  keys: Sequence[jax.Array],
  values: Sequence[jax.Array],
  policy_keys: Sequence[jax.Array] | None = None,
) -> TreeMemory:
  """Packs levels of keys and values of one context; see `tree_attention`.

  Raises:
    ValueError: if a number of levels or a shape does not fit the tree.
  """
  _check_levels("keys", keys, tree)
  _check_levels("values", values, tree, keys[0].shape[1])
  if policy_keys is not None:
    _check_levels("policy_keys", policy_keys, tree)
  b = tree.branch_factor
  return TreeMemory(
    tree=jax.tree.map(jnp.asarray, tree),
    keys=sibling_rows(join_levels(keys, b), b),
    values=join_levels(values, b),
    policy_keys=(
      None if policy_keys is None else sibling_rows(join_levels(policy_keys, b), b)
    ),
  )


def join_levels(levels: Sequence[jax.Array], branch_factor: int) -> jax.Array:
  """All nodes in the slots of a `TreeMemory`: levels of `[b**l, ...]` to `[R * b, ...]`.

  >>> join_levels([jnp.zeros(1), jnp.array([1, 2]), jnp.array([3, 4, 5, 6])], 2).tolist()
  [1, 2, 3, 4, 5, 6]
  """
  if len(levels) > 1:
    return jnp.concatenate(levels[1:])
  root = jnp.asarray(levels[0])
  return jnp.pad(root, [(0, branch_factor - 1)] + [(0, 0)] * (root.ndim - 1))


def sibling_rows(slots: jax.Array, branch_factor: int) -> jax.Array:
  """Keys by slot, `[R * b, H, Dh]`, to rows of siblings, `[R, H, b, Dh]`."""
  return jnp.swapaxes(slots.reshape(-1, branch_factor, *slots.shape[1:]), 1, 2)


def level_slots(tree: tree_lib.Tree, level: int) -> slice:
  """Where a `TreeMemory` keeps the nodes of a level below the root.

  >>> level_slots(tree_lib.build_tree(jnp.ones((8, 1))), 2)
  slice(2, 6, None)
  """
  if level == 0 and tree.depth > 0:
    raise ValueError("a memory keeps no root: levels start at 1")
  b = tree.branch_factor
  start = max((b**level - 1) // (b - 1) - 1, 0)
  return slice(start, start + b**level)


def attend(
  query: jax.Array,
  memory: TreeMemory,
  *,
  rng: jax.Array | None = None,
  policy_query: jax.Array | None = None,
) -> TreeAttentionOutput:
  """`tree_attention` to a packed memory; differentiable.

  Args:
    query: `[H, Dh]`.
    memory: of one context.
    rng: None for the greedy walk, else the key that samples it; consumed.
    policy_query: `[H', Dp]`, if the policy has a query of its own.

  Raises:
    ValueError: if a query does not fit the memory.
  """
  policy_query, policy_keys, shares_policy = _policy(query, memory, policy_query)
  policy = jax.lax.stop_gradient((policy_query, policy_keys))
  walk = _walk(*policy, memory.tree, rng)
  policy_logits = _logits(policy_query, _rows(policy_keys, walk.node))
  logits = policy_logits
  if not shares_policy:
    logits = _logits(query, _rows(memory.keys, walk.node))

  # --- The policy.
  valid = walk.valid[:, None]
  log_heads = attention.masked_log_softmax(policy_logits, valid)  # [depth, H, b]
  log_policy = _log_mean_exp(log_heads, walk.valid)
  log_taken = jnp.take_along_axis(log_policy, walk.path[:, None], axis=1)[:, 0]
  head_entropy = -jnp.sum(jnp.where(valid, jnp.exp(log_heads) * log_heads, 0), axis=-1)
  entropy = jnp.where(walk.counted, jnp.mean(head_entropy, axis=-1), 0)

  # --- The attention.
  nodes = _nodes_read(walk, memory.tree)
  return TreeAttentionOutput(
    output=_attend_slots(
      _read_logits(logits, walk), walk.slots, nodes["mask"], memory.values
    ),
    **nodes,
    path=walk.path,
    counted=walk.counted,
    log_policy=log_policy,
    log_prob=jnp.sum(jnp.where(walk.counted, log_taken, 0)),
    entropy=jnp.sum(entropy) / jnp.maximum(jnp.sum(walk.counted), 1),
  )


def read(
  query: jax.Array,
  memory: TreeMemory,
  *,
  policy_query: jax.Array | None = None,
  num_paths: int = 1,
) -> TreeReading:
  """The greedy `attend`, for evaluation: faster, and not to be differentiated.

  With several paths, those are followed at once whose policy is the most probable
  in all, level by level (a beam search), and the children that none of them takes
  are read: still every token once, by more and smaller nodes the more paths there
  are. One path is Tree Cross Attention, as many as there are leaves are full
  attention. The field `path` is then that of the most probable one.

  Args:
    query: `[H, Dh]`.
    memory: of one context.
    policy_query: `[H', Dp]`, if the policy has a query of its own.
    num_paths: how many paths are followed; |S| is `num_read_slots`.

  Raises:
    ValueError: if a query does not fit the memory, or num_paths is below 1.
  """
  tree_lib.check_num_paths(num_paths)
  if num_paths > 1:
    return _read_paths(query, memory, policy_query, num_paths)
  policy_query, policy_keys, shares_policy = _policy(query, memory, policy_query)
  walk = _walk(policy_query, policy_keys, memory.tree)
  logits = walk.read_logits
  if not shares_policy:
    logits = _read_logits(_logits(query, _rows(memory.keys, walk.node)), walk)

  weights = attention.masked_softmax(logits, logits > attention.MASKED, axis=0)
  output = jnp.zeros(memory.values.shape[1:], jnp.float32)
  for slot, weight in zip(walk.slots, weights, strict=True):  # one kernel, no array
    output += weight[:, None] * _rows(memory.values, slot)
  return TreeReading(
    output=output.astype(memory.values.dtype),
    **_nodes_read(walk, memory.tree),
    path=walk.path,
  )


def _read_paths(
  query: jax.Array,
  memory: TreeMemory,
  policy_query: jax.Array | None,
  num_paths: int,
) -> TreeReading:
  """`read` along several paths; for one, the same by another way."""
  policy_query, policy_keys, shares_policy = _policy(query, memory, policy_query)
  tree = memory.tree
  b, depth, num_valid = tree.branch_factor, tree.depth, tree.num_valid
  children = jnp.arange(b, dtype=jnp.int32)
  # Of the paths: the node reached, the first token dealt to it (see `_walk`), and the
  # policy's log-probability.
  node = dealt = jnp.zeros(1, jnp.int32)
  score = jnp.zeros(1, jnp.float32)
  logits = jnp.zeros((1, query.shape[0]), jnp.float32)
  slots, read_logits, masks, levels = [], [], [], []

  def add(level, node, dealt, logits):
    """Reads nodes of a level."""
    slots.append(jnp.maximum(node - 1, 0))
    read_logits.append(logits)
    masks.append(dealt < num_valid)
    levels.extend([level] * len(node))

  for level in range(1, depth + 1):
    child_dealt = (dealt[:, None] + b ** (level - 1) * children).ravel()
    valid = (child_dealt < num_valid).reshape(-1, b)
    policy_logits = _logits(policy_query, _rows(policy_keys, node))
    log_heads = attention.masked_log_softmax(policy_logits, valid[:, None])
    child_score = jnp.where(
      valid, score[:, None] + _log_mean_exp(log_heads, valid), attention.MASKED
    ).ravel()
    logits = policy_logits
    if not shares_policy:
      logits = _logits(query, _rows(memory.keys, node))
    logits = jnp.swapaxes(logits, 1, 2).reshape(-1, query.shape[0])
    child = (node[:, None] * b + 1 + children).ravel()
    order = jnp.argsort(-child_score, stable=True)
    kept = jnp.sort(order[: min(num_paths, len(order))])
    left = jnp.sort(order[len(kept) :])
    add(level, child[left], child_dealt[left], logits[left])
    node, dealt, score = child[kept], child_dealt[kept], child_score[kept]
    logits = logits[kept]
  add(depth, node, dealt, logits)

  slot, mask = jnp.concatenate(slots), jnp.concatenate(masks)
  leaf = node[jnp.argmax(score)] - jnp.int32((b**depth - 1) // (b - 1))
  digits = [leaf // b ** (depth - 1 - level) % b for level in range(depth)]
  return TreeReading(
    output=_attend_slots(jnp.concatenate(read_logits), slot, mask, memory.values),
    **_places(slot, levels, tree),
    mask=mask,
    path=jnp.array(digits, jnp.int32),
  )


@chex.dataclass(frozen=True)
class _Walk:
  """A path from the root to a leaf.

  Attributes:
    node: `[depth]` int32, the inner nodes visited, counted level by level.
    path: `[depth]` int32, the child taken at each.
    valid: `[depth, b]` bool, whether a child holds a valid token.
    counted: `[depth]` bool, see `TreeAttentionOutput`.
    slots: `[|S|]` int32, of the nodes read.
    read_logits: `[|S|, H]` float32, of the policy's keys of the nodes read;
      `attention.MASKED` where there is no valid token.
    leaf_valid: `[]` bool.
  """

  node: jax.Array
  path: jax.Array
  valid: jax.Array
  counted: jax.Array
  slots: jax.Array
  read_logits: jax.Array
  leaf_valid: jax.Array


def _walk(
  query: jax.Array,
  keys: jax.Array,
  tree: tree_lib.Tree,
  rng: jax.Array | None = None,
) -> _Walk:
  """Walks down the tree: greedily, or sampling with `rng`, which is consumed."""
  b, depth = tree.branch_factor, tree.depth
  num_valid = tree.num_valid
  noise = None
  if rng is not None:
    # The Gumbel-max trick: one draw samples the choices of all levels.
    noise = jax.random.gumbel(rng, (depth, b), jnp.float32)
  children = jnp.arange(b, dtype=jnp.int32)

  def step(carry, level):
    # `dealt`: the first of the valid tokens dealt out to this node and, next, to
    # its children, every `stride`-th of them; see `Tree.node_count`.
    node, dealt, _ = carry
    stride, noise = level
    valid = dealt + stride * children < num_valid
    logits = _logits(query, _rows(keys, node))
    choice = _choose(logits, valid, noise)
    logits = jnp.where(valid, logits, attention.MASKED)
    taken = jnp.sum(jnp.where(children == choice, logits, 0), axis=1)
    carry = (node * b + 1 + choice, dealt + stride * choice, taken)
    counted = dealt + stride * b < num_valid
    siblings = _siblings(node * b + children, choice)
    return carry, (
      node,
      choice,
      valid,
      counted,
      siblings,
      _siblings(logits, choice).T,
    )

  # A root that is the leaf is read alone: any logit gives it the weight 1.
  zeros = jnp.zeros(query.shape[0], jnp.float32)
  leaf_logits = jnp.where(num_valid > 0, zeros, attention.MASKED)
  start = (jnp.int32(0), jnp.int32(0), leaf_logits)
  strides = b ** np.arange(depth, dtype=np.int32)
  carry, visited = jax.lax.scan(step, start, (strides, noise), length=depth)
  node, dealt, leaf_logits = carry
  node_visited, path, valid, counted, siblings, logits = visited
  return _Walk(
    node=node_visited,
    path=path,
    valid=valid,
    counted=counted,
    slots=jnp.append(siblings.ravel(), jnp.maximum(node - 1, 0)),
    read_logits=jnp.concatenate(
      [logits.reshape(-1, query.shape[0]), leaf_logits[None]]
    ),
    leaf_valid=dealt < num_valid,
  )


def _choose(logits: jax.Array, valid: jax.Array, noise: jax.Array | None) -> jax.Array:
  """The child that the policy prefers, of logits `[H, b]`: the lowest among equals."""
  if logits.shape[1] == 2 and noise is None:
    # Of two, pi(1) - pi(0) is the mean of tanh(difference / 2): one kernel.
    lead = jnp.sum(jnp.tanh((logits[:, 1] - logits[:, 0]) / 2))
    return (valid[1] & (lead > 0)).astype(jnp.int32)
  policy = jnp.mean(attention.masked_softmax(logits, valid), axis=0)
  preference = policy if noise is None else jnp.log(policy) + noise
  return jnp.argmax(jnp.where(valid, preference, -jnp.inf)).astype(jnp.int32)


def _read_logits(logits: jax.Array, walk: _Walk) -> jax.Array:
  """`[|S|, H]`, of the nodes read, from the logits `[depth, H, b]` at those visited."""
  if not len(logits):
    return walk.read_logits  # of the root alone
  logits = jnp.where(walk.valid[:, None], logits, attention.MASKED)
  siblings = jnp.swapaxes(_siblings(logits, walk.path[:, None, None]), 1, 2)
  siblings = siblings.reshape(-1, logits.shape[1])
  taken = jnp.arange(logits.shape[2]) == walk.path[-1]
  leaf = jnp.sum(jnp.where(taken, logits[-1], 0), axis=1)
  return jnp.concatenate([siblings, leaf[None]])


def _policy(
  query: jax.Array, memory: TreeMemory, policy_query: jax.Array | None
) -> tuple[jax.Array, jax.Array, bool]:
  """The policy's query and keys, and whether they are the attention's.

  Raises:
    ValueError: if a query does not fit the memory.
  """
  shares_policy = policy_query is None and memory.policy_keys is None
  _check_query("query", query, memory.keys)
  policy_query = query if policy_query is None else policy_query
  policy_keys = memory.keys if memory.policy_keys is None else memory.policy_keys
  _check_query("policy_query", policy_query, policy_keys)
  return policy_query, policy_keys, shares_policy


def _rows(table: jax.Array, index: jax.Array) -> jax.Array:
  """Rows of a table, by indices that are known to lie within it."""
  return table.at[index].get(mode="promise_in_bounds")


def _logits(query: jax.Array, keys: jax.Array) -> jax.Array:
  """Scaled dot products, in float32: `[H, Dh]`, `[..., H, b, Dh] -> [..., H, b]`."""
  scale = jnp.sqrt(jnp.float32(query.shape[-1]))
  return (
    jnp.einsum("hd,...hbd->...hb", query, keys, preferred_element_type=jnp.float32)
    / scale
  )


def _siblings(x: jax.Array, choice: jax.Array) -> jax.Array:
  """`[..., b] -> [..., b - 1]`, all but the entry chosen."""
  kept = jnp.arange(x.shape[-1] - 1) < choice
  return jnp.where(kept, x[..., :-1], x[..., 1:])


def _attend_slots(
  logits: jax.Array, slots: jax.Array, mask: jax.Array, values: jax.Array
) -> jax.Array:
  """`[H, Dv]`, the attention over slots `[n]` of a memory by their logits `[n, H]`."""
  weights = attention.masked_softmax(logits, mask[:, None], axis=0)
  read = _rows(values, slots).astype(jnp.float32)
  return jnp.sum(weights[..., None] * read, axis=0).astype(values.dtype)


def _nodes_read(walk: _Walk, tree: tree_lib.Tree) -> dict[str, jax.Array]:
  """The fields level, index and mask of a `TreeReading`."""
  b, depth = tree.branch_factor, tree.depth
  levels = [l for l in range(1, depth + 1) for _ in range(b - 1)] + [depth]
  mask = _siblings(walk.valid, walk.path[:, None])
  return _places(walk.slots, levels, tree) | {"mask": jnp.append(mask, walk.leaf_valid)}


def _places(
  slots: jax.Array, levels: Sequence[int], tree: tree_lib.Tree
) -> dict[str, jax.Array]:
  """The fields level and index of a `TreeReading`, of slots on known levels."""
  starts = [level_slots(tree, level).start for level in levels]
  return {
    "level": jnp.array(levels, jnp.int32),
    "index": slots - jnp.array(starts, jnp.int32),
  }


def _log_mean_exp(log_heads: jax.Array, valid: jax.Array) -> jax.Array:
  """Log of the mean over heads, `[depth, H, b] -> [depth, b]`; `MASKED` if invalid."""
  peak = jax.lax.stop_gradient(jnp.max(log_heads, axis=1))
  mean = jnp.mean(jnp.exp(log_heads - peak[:, None]), axis=1)
  return jnp.where(valid, peak + jnp.log(mean), attention.MASKED)


def _check_query(name: str, query: jax.Array, keys: jax.Array) -> None:
  if query.ndim != 2 or query.shape != (keys.shape[1], keys.shape[3]):
    raise ValueError(
      f"{name} must be [H, Dh] = [{keys.shape[1]}, {keys.shape[3]}] as its keys,"
      f" got {query.shape}"
    )
  tree_lib.check_floating(**{name: query})


def _check_levels(
  name: str,
  levels: Sequence[jax.Array],
  tree: tree_lib.Tree,
  num_heads: int | None = None,
) -> None:
  """Raises unless levels are `[b**l, H, width]` as the tree asks."""
  b, depth = tree.branch_factor, tree.depth
  if len(levels) != depth + 1:
    raise ValueError(
      f"{name} must hold depth + 1 = {depth + 1} levels, got {len(levels)}"
    )
  tail = levels[0].shape[1:]
  heads, width = tail if len(tail) == 2 else ("H", "Dh")
  heads = num_heads or heads
  for l, level in enumerate(levels):
    if level.shape != (b**l, heads, width):
      raise ValueError(
        f"{name}[{l}] must be [{b**l}, {heads}, {width}], got {level.shape}"
      )
    tree_lib.check_floating(**{f"{name}[{l}]": level})
