"""Slow NumPy implementations of every algorithm: recursive, one query at a time."""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Node:
  """A node of a tree, with the tokens under it."""

  tokens: list[int]
  level: int
  index: int
  children: list["Node"]


def build(coords, mask, b, order="kd", axis=0):
  """Builds a tree of nested nodes, children from left to right, including empty ones."""
  coords = np.asarray(coords, np.float64)
  depth = 0
  while b**depth < len(coords):
    depth += 1
  valid = [i for i in range(len(coords)) if mask[i]]
  if order == "axis":
    valid = sorted(valid, key=lambda i: (coords[i, axis], i))

  def grow(tokens, level, index):
    if level == depth:
      assert len(tokens) <= 1
      return Node(tokens, level, index, [])
    if order == "kd" and tokens:
      spread = [
        max(coords[i, c] for i in tokens) - min(coords[i, c] for i in tokens)
        for c in range(coords.shape[1])
      ]
      widest = spread.index(max(spread))
      tokens = sorted(tokens, key=lambda i: (coords[i, widest], i))
    small, larger = divmod(len(tokens), b)
    children, start = [], 0
    for part in range(b):
      size = small + (part < larger)
      children.append(grow(tokens[start : start + size], level + 1, index * b + part))
      start += size
    return Node(tokens, level, index, children)

  return grow(valid, 0, 0)


def nodes_by_level(root):
  """Returns the levels of a tree, each a list of nodes from left to right."""
  levels = [[root]]
  while levels[-1][0].children:
    levels.append([child for node in levels[-1] for child in node.children])
  return levels


def aggregate(aggregate_fn, root, tokens):
  """Returns {(level, index): value}; aggregate_fn maps valid children `[n, D]` to `[D]`."""
  values = {}

  def visit(node):
    if not node.tokens:
      value = np.zeros(tokens.shape[1])
    elif not node.children:
      value = tokens[node.tokens[0]]
    for child in node.children:
      visit(child)
    if node.tokens and node.children:
      full = [child for child in node.children if child.tokens]
      inputs = np.stack([values[child.level, child.index] for child in full])
      value = inputs[0] if len(full) == 1 else aggregate_fn(inputs)
    values[node.level, node.index] = value

  visit(root)
  return values


def softmax(x, axis=-1):
  e = np.exp(x - x.max(axis, keepdims=True))
  return e / e.sum(axis, keepdims=True)


def attend(query, keys, values):
  """Attention of `[H, Dh]` over sequences of `[H, Dh]` keys and `[H, Dv]` values."""
  if not len(keys):
    return np.zeros((query.shape[0], 0))
  keys, values = np.stack(keys), np.stack(values)
  logits = np.einsum("hd,nhd->hn", query, keys) / np.sqrt(query.shape[1])
  return np.einsum("hn,nhd->hd", softmax(logits), values)


def policy(query, keys):
  """Returns pi over the given children, `[n]`, and the mean entropy per head."""
  logits = np.einsum("hd,nhd->hn", query, np.stack(keys)) / np.sqrt(query.shape[1])
  per_head = softmax(logits)
  entropy = -(per_head * np.log(np.maximum(per_head, 1e-300))).sum(-1).mean()
  return per_head.mean(0), entropy


@dataclasses.dataclass
class Walk:
  """The nodes read as (level, index), the policy along the path, and the output."""

  read: list[tuple[int, int]]
  path: list[int]
  log_prob: float
  entropy: float
  output: np.ndarray


def walk(query, keys, values, root, path=None):
  """Walks greedily, or along `path`; keys[level][index] is `[H, Dh]`."""
  node, read, taken, log_prob, entropies = root, [], [], 0.0, []
  while node.children:
    full = [c for c in node.children if c.tokens]
    if not full:
      chosen = node.children[0]
      taken.append(0)
      node = chosen
      continue
    pi, entropy = policy(query, [keys[c.level][c.index] for c in full])
    if path is None:
      pick = int(np.argmax(pi))
    else:
      pick = full.index(node.children[path[len(taken)]])
    if any(len(c.tokens) > 1 for c in full):
      log_prob += np.log(pi[pick])
      entropies.append(entropy)
    chosen = full[pick]
    read += [(c.level, c.index) for c in full if c is not chosen]
    taken.append(node.children.index(chosen))
    node = chosen
  if node.tokens:
    read.append((node.level, node.index))
  output = np.zeros((query.shape[0], values[0].shape[-1]))
  if read:
    output = attend(
      query, [keys[l][i] for l, i in read], [values[l][i] for l, i in read]
    )
  entropy = float(np.mean(entropies)) if entropies else 0.0
  return Walk(read, taken, log_prob, entropy, output)


def read_paths(query, keys, values, root, num_paths):
  """Returns the nodes read by a beam search as (level, index), and the output."""
  frontier, read = [(0.0, root)], []
  while frontier[0][1].children:
    found = []
    for score, node in frontier:
      full = [c for c in node.children if c.tokens]
      if not full:
        continue
      pi, _ = policy(query, [keys[c.level][c.index] for c in full])
      found += [(score + np.log(p), c) for p, c in zip(pi, full, strict=True)]
    found.sort(key=lambda scored: (-scored[0], scored[1].index))
    frontier = found[:num_paths]
    read += [(c.level, c.index) for _, c in found[num_paths:]]
  read += [(node.level, node.index) for _, node in frontier]
  chosen_keys = [keys[l][i] for l, i in read]
  return read, attend(query, chosen_keys, [values[l][i] for l, i in read])


def all_paths(root):
  """Returns all paths to leaves with a valid token, as lists of child positions."""
  if not root.children:
    return [[]]
  return [
    [k, *rest]
    for k, child in enumerate(root.children)
    if child.tokens
    for rest in all_paths(child)
  ]


def sharpen(weights, temperature):
  """Distribution over leaves, `[L]`, to the power of 1 / temperature, normalised."""
  powers = [float(w) ** (1 / temperature) for w in weights]
  return np.array([p / sum(powers) if sum(powers) else 0.0 for p in powers])


def routing(leaf_weights, path, log_policy, counted, b):
  """Routing loss and targets of one query.

  Args:
    leaf_weights: `[L]`.
    path: the children taken.
    log_policy: `[depth, b]`.
    counted: `[depth]` bool.
    b: the branch factor.

  Returns:
    The loss, and the targets, `[depth, b]`.
  """
  start, width, loss, targets = 0, len(leaf_weights), 0.0, []
  for level, choice in enumerate(path):
    width //= b
    starts = [start + child * width for child in range(b)]
    mass = [float(sum(leaf_weights[i : i + width])) for i in starts]
    targets.append(mass)
    if counted[level]:
      # Masked children have no mass.
      loss -= sum(
        m * float(log_p) for m, log_p in zip(mass, log_policy[level], strict=True) if m
      )
    start = starts[choice]
  return loss, np.array(targets).reshape(len(path), b)


def node_statistics(root, coords, values):
  """Returns {(level, index): (count, centroid, low, high, mean, variance, border)}.

  All is float64 and absolute. The border has, for each side of the box, the location
  and the value of the first leaf that touches it. A node without tokens has count 0 and otherwise None.
  """
  coords, values = np.asarray(coords, np.float64), np.asarray(values, np.float64)

  def leaf_order(node):
    if not node.children:
      return node.tokens
    return [token for child in node.children for token in leaf_order(child)]

  def border(x, y):
    touching = [*np.argmin(x, axis=0), *np.argmax(x, axis=0)]
    return np.concatenate([x, y], axis=1)[touching]

  statistics = {}
  for level in nodes_by_level(root):
    for node in level:
      tokens = leaf_order(node)
      x, y = coords[tokens], values[tokens]
      statistics[node.level, node.index] = (
        (len(x), x.mean(0), x.min(0), x.max(0), y.mean(0), y.var(0), border(x, y))
        if node.tokens
        else (0, None, None, None, None, None, None)
      )
  return statistics


def _wrap(offset, periods):
  """The shortest difference on each axis; a period of 0 is none."""
  return np.array(
    [
      o - p * np.round(o / p) if p else o
      for o, p in zip(offset, periods or [0] * len(offset), strict=True)
    ]
  )


def nearest_nodes(query, root, statistics, num_paths, periods=None, upper_paths=None):
  """Returns the nodes read by a beam of the nearest boxes as a set of (level, index).

  Args:
    query: `[C]`.
    root: the tree.
    statistics: those of `node_statistics`.
    num_paths: the beam width.
    periods: the period of each axis, 0 for none.
    upper_paths: the beam width on all but the lowest six levels, if it is smaller.
  """
  lowest = max(level for level, _ in statistics)

  def distance(node):
    _, centroid, low, high, *_ = statistics[node.level, node.index]
    gap = np.abs(_wrap((low + high) / 2 - query, periods)) - (high - low) / 2
    box = np.sum(np.maximum(gap, 0) ** 2)
    return box + 1e-4 * np.sum(_wrap(centroid - query, periods) ** 2)

  frontier, read = [root], set()
  while frontier[0].children:
    found = [c for node in frontier for c in node.children if c.tokens]
    found.sort(key=lambda c: (distance(c), c.index))
    is_upper = upper_paths is not None and found[0].level <= lowest - 6
    width = min(num_paths, upper_paths) if is_upper else num_paths
    frontier = found[:width]
    read |= {(c.level, c.index) for c in found[width:]}
  return read | {(c.level, c.index) for c in frontier if c.tokens}


def split_off_border(query, coords, tokens, num_tokens, periods=None):
  """The tokens of a node's border that are nearest to a query, and the others; as lists.

  At least one token is among the others.
  """
  if len(tokens) < 2:
    return [], tokens
  x = np.asarray(coords, np.float64)[tokens]
  touching = {*np.argmin(x, axis=0).tolist(), *np.argmax(x, axis=0).tolist()}
  distance = {
    i: np.linalg.norm(_wrap(x[i] - np.asarray(query, np.float64), periods))
    for i in touching
  }
  nearest = sorted(touching, key=distance.get)[: min(num_tokens, len(tokens) - 1)]
  nearest = [tokens[i] for i in nearest]
  return nearest, [token for token in tokens if token not in nearest]


def local_frame(offsets, counts, means, variances, value_spread):
  """Local length, reference, slope and spread of the nodes read, one value channel.

  Args:
    offsets: `[S, C]`, from the query to each node.
    counts: `[S]`.
    means: `[S]`.
    variances: `[S]`.
    value_spread: standard deviation of all values.
  """
  square = np.sum(offsets**2, axis=1)
  length = np.sqrt(np.mean(np.sort(square)[:4]))
  x = offsets / length
  weight = np.where(counts == 1, 1, 0.05) / (square / length**2 + 0.25) ** 2
  weight /= weight.sum()
  x0, y0 = weight @ x, weight @ means
  normal = (weight[:, None] * (x - x0)).T @ (x - x0) + 0.02 * np.eye(x.shape[1])
  slope = np.linalg.solve(normal, (weight[:, None] * (x - x0)).T @ (means - y0))
  residual = means - y0 - (x - x0) @ slope
  variance = weight @ (residual**2 + variances) + (1e-3 * value_spread) ** 2
  return length, y0 - x0 @ slope, slope, np.sqrt(variance)


def krige(offsets, counts, sides, values, lengths, variances, constant, noise):
  """Mean and standard deviation at the origin, from averages; one value channel.

  Args:
    offsets: `[S, C]`, of the centroids.
    counts: `[S]`.
    sides: `[S, C]`, of the boxes.
    values: `[S]`.
    lengths: of the squared exponentials.
    variances: of the squared exponentials.
    constant: variance of the constant.
    noise: variance of the noise of one observation.
  """
  size, axes = offsets.shape

  def covariance(square, spread):
    return constant + sum(
      v * (1 + spread / l**2) ** (-axes / 2) * np.exp(-square / 2 / (l**2 + spread))
      for v, l in zip(variances, lengths, strict=True)
    )

  spreads = [
    np.mean(side**2) / 12 * (n + 1) / (n - 1) if n > 1 else 0.0
    for side, n in zip(sides, counts, strict=True)
  ]
  total = constant + sum(variances)
  among = np.empty((size, size))
  for i in range(size):
    for j in range(size):
      square = np.sum((offsets[i] - offsets[j]) ** 2)
      among[i, j] = covariance(square, spreads[i] + spreads[j])
    among[i, i] += noise / counts[i] + 1e-4 * total
  to_query = np.array(
    [covariance(np.sum(x**2), s) for x, s in zip(offsets, spreads, strict=True)]
  )
  weights = np.linalg.solve(among, to_query)
  variance = max(total - weights @ to_query, 1e-5 * total) + noise
  mean = np.clip(weights @ values, min(*values, 0) - 0.5, max(*values, 0) + 0.5)
  return mean, np.sqrt(variance)


def vecchia(locations, values, covariance, noise, window):
  """The logarithm of the likelihood of values, each given some before it.

  Args:
    locations: `[n, C]`.
    values: `[n, E]`, with mean 0; channels are independent.
    covariance: a function of the distance.
    noise: variance of the noise of a value.
    window: how many places before a value the values are on which its density is
      conditioned, in decreasing order, and last 0.

  Returns:
    The logarithm, without the constant -n * E * log(2 pi) / 2.
  """
  total = 0.0
  for i in range(len(locations)):
    places = [i - distance for distance in window if distance <= i]
    near = locations[places]
    distance = np.linalg.norm(near[:, None] - near[None], axis=-1)
    among = covariance(distance) + noise * np.eye(len(near))
    weights = np.linalg.solve(among[:-1, :-1], among[:-1, -1])
    variance = among[-1, -1] - weights @ among[:-1, -1]
    for channel in values[places].T:
      error = channel[-1] - weights @ channel[:-1]
      total -= 0.5 * (error**2 / variance + np.log(variance))
  return total


def tree_of_leaves(leaf_index, leaf_mask, b):
  """Builds nested nodes from the tokens in the leaf slots; any slot may be free."""
  depth = 0
  while b**depth < len(leaf_index):
    depth += 1

  def grow(level, index):
    if level == depth:
      tokens = [int(leaf_index[index])] if leaf_mask[index] else []
      return Node(tokens, level, index, [])
    children = [grow(level + 1, index * b + part) for part in range(b)]
    return Node([t for c in children for t in c.tokens], level, index, children)

  return grow(0, 0)


def place_token(coord, leaf_mask, axis, position, b, reach):
  """Returns the leaf slot of a new token, or None if its subtree is full.

  Args:
    coord: `[C]`.
    leaf_mask: `[L]` bool, True where a slot is taken.
    axis: `[R]`, the axes of the cuts.
    position: `[R, b - 1]`, their positions.
    b: the branch factor.
    reach: the depth of the subtree in which the token may leave its cuts.
  """
  start, width, node = 0, len(leaf_mask), 0  # the node has the slots start + [0, width)
  while width > 1:
    if width <= b**reach and np.all(leaf_mask[start : start + width]):
      return None
    own = sum(coord[axis[node]] > x for x in position[node])
    width //= b
    children = sorted(range(b), key=lambda child: abs(child - own))
    if width * b <= b**reach:
      starts = [start + child * width for child in children]
      free = [not np.all(leaf_mask[s : s + width]) for s in starts]
      own = children[free.index(True)]
    start, node = start + own * width, node * b + 1 + own
  return start
