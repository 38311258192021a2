"""What reads all N tokens, or finds some: the rivals of Tree Cross Attention."""

from collections.abc import Callable
import importlib.util
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from experiments.common import measure
from experiments.common.ratios import Row
import tca_jax
from tca_jax import attention

_CHUNK = 8192
_MAX_WHOLE = 2**24  # query-token pairs whose logits are held at once

# A system's call, and what its row holds beside the time.
System = tuple[Callable[[], typing.Any], Row]


def full_xla(query: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
  """Full attention in chunks of the context, laid out for it before.

  Args:
    query: `[H, M, Dh]`.
    keys: `[chunks, H, Dh, C]`.
    values: `[chunks, H, C, Dh]`.
  """

  def add(state, chunk):
    peak, total, output = state
    logits = jnp.matmul(query, chunk[0], preferred_element_type=jnp.float32)
    new_peak = jnp.maximum(peak, jnp.max(logits, axis=-1, keepdims=True))
    weights, decay = jnp.exp(logits - new_peak), jnp.exp(peak - new_peak)
    output = output * decay + jnp.matmul(
      weights.astype(chunk[1].dtype), chunk[1], preferred_element_type=jnp.float32
    )
    total = total * decay + jnp.sum(weights, axis=-1, keepdims=True)
    return (new_peak, total, output), None

  query = query / jnp.sqrt(jnp.float32(query.shape[-1])).astype(query.dtype)
  zeros = jnp.zeros((*query.shape[:2], 1))
  start = (zeros - jnp.inf, zeros, jnp.zeros(query.shape))
  (_, total, output), _ = jax.lax.scan(add, start, (keys, values))
  return output / total


def full_systems(queries: jax.Array, memory: tca_jax.TreeMemory) -> dict[str, System]:
  """Full attention by every route there is; any tokens will do as keys."""
  num_heads, head = queries.shape[1:]
  values = common.leaves(memory)
  num_tokens = len(values)
  keys, chunk = values[::-1], min(_CHUNK, num_tokens)
  if num_tokens % chunk:
    raise ValueError(f"tokens above {chunk} must be a multiple of it, got {num_tokens}")
  keys_by_chunk = keys.reshape(-1, chunk, num_heads, head)
  values_by_chunk = values.reshape(-1, chunk, num_heads, head)
  calls: dict[str, System] = {
    "full_xla": common.compiled(
      full_xla,
      jnp.swapaxes(queries, 0, 1),
      jnp.transpose(keys_by_chunk, (0, 2, 3, 1)),
      jnp.transpose(values_by_chunk, (0, 2, 1, 3)),
    )
  }
  if len(queries) * num_tokens <= _MAX_WHOLE:
    calls["full_xla_whole"] = common.compiled(
      lambda *x: attention.cross_attention(*x).output, queries, keys, values
    )
    calls["full_jax_nn"] = common.compiled(
      jax.nn.dot_product_attention, *(x[None] for x in (queries, keys, values))
    )
  if importlib.util.find_spec("torch"):
    calls["full_torch"] = torch_call(queries, keys, values), {}
    calls["full_torch_1_thread"] = torch_call(queries, keys, values, 1), {}
  return {
    name: (call, {"tokens_read": num_tokens, **row})
    for name, (call, row) in calls.items()
  }


def torch_call(
  queries: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  num_threads: int | None = None,
) -> Callable[[], None]:
  """Full attention by PyTorch, of arrays laid out for it before.

  Few queries are often served fastest by one thread; None: as many as there are cores.
  """
  import torch  # noqa: PLC0415

  def to_torch(x: jax.Array) -> torch.Tensor:
    heads_first = np.array(jnp.swapaxes(x, 0, 1)[None].astype(jnp.float32))
    return torch.from_numpy(heads_first).to(getattr(torch, x.dtype.name))

  query, key, value = to_torch(queries), to_torch(keys), to_torch(values)
  num_threads = num_threads or measure.num_cores()

  def call() -> None:
    if torch.get_num_threads() != num_threads:
      torch.set_num_threads(num_threads)
    with torch.no_grad():
      torch.nn.functional.scaled_dot_product_attention(query, key, value)

  return call


def faiss_systems(queries: jax.Array, memory: tca_jax.TreeMemory) -> dict[str, System]:
  """Exact attention to the tokens that FAISS finds, as many as TCA reads nodes."""
  import faiss  # noqa: PLC0415

  tree, systems = memory.tree, {}
  leaves = common.leaves(memory)
  keys = leaves[::-1]
  count = min(tca_jax.num_read_slots(tree.num_leaves, tree.branch_factor), len(keys))
  vectors = np.array(keys.reshape(len(keys), -1), np.float32)
  wanted = np.array(queries.reshape(len(queries), -1), np.float32)
  width, inner = vectors.shape[1], faiss.METRIC_INNER_PRODUCT
  lists = max(int(len(keys) ** 0.5), 1)
  indices = {
    "faiss_hnsw": faiss.IndexHNSWFlat(width, 32, inner),
    "faiss_ivf": faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, inner),
  }

  @jax.jit
  def attend(queries, keys, values, found):
    def one(query, index):
      near = attention.cross_attention(query, keys[index], values[index], index >= 0)
      return near.output

    return jax.vmap(one)(queries, found)

  for name, index in indices.items():
    started = time.perf_counter()
    index.train(vectors)
    index.add(vectors)
    seconds = time.perf_counter() - started

    def call(index=index):
      found = index.search(wanted, count)[1].astype(np.int32)
      return attend(queries, keys, leaves, found)

    systems[name] = call, {"tokens_read": count, "build_seconds": seconds}
  return systems
