"""Baselines for the reads of Tree Cross Attention: full attention and FAISS."""

from collections.abc import Callable
import importlib.util
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from experiments.common import timing
from experiments.report_pages.ratios import Row
import tca_jax
from tca_jax import attention

_CHUNK = 8192
_MAX_WHOLE = 2**24  # the most query-token pairs whose logits are in memory together

# The call of a method, and what its row contains besides the time.
Method = tuple[Callable[[], typing.Any], Row]


def full_xla(query: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
  """Full attention over chunks of the context, in a layout that suits it.

  Args:
    query: `[H, M, Dh]`.
    keys: `[chunks, H, Dh, C]`.
    values: `[chunks, H, C, Dh]`.

  Returns:
    `[H, M, Dh]`.
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


def full_methods(queries: jax.Array, memory: tca_jax.TreeMemory) -> dict[str, Method]:
  """Full attention to the leaves of a memory, by all implementations available.

  Args:
    queries: `[M, H, Dh]`.
    memory: of one context.

  Raises:
    ValueError: if a large number of tokens is not a multiple of the chunk.
  """
  num_heads, head = queries.shape[1:]
  keys, values = common.leaves(memory)
  num_tokens = len(keys)
  chunk = min(_CHUNK, num_tokens)
  if num_tokens % chunk:
    raise ValueError(f"tokens above {chunk} must be a multiple of it, got {num_tokens}")
  keys_by_chunk = keys.reshape(-1, chunk, num_heads, head)
  values_by_chunk = values.reshape(-1, chunk, num_heads, head)
  methods: dict[str, Method] = {
    "full_xla": common.compiled(
      full_xla,
      jnp.swapaxes(queries, 0, 1),
      jnp.transpose(keys_by_chunk, (0, 2, 3, 1)),
      jnp.transpose(values_by_chunk, (0, 2, 1, 3)),
    )
  }
  if len(queries) * num_tokens <= _MAX_WHOLE:
    methods["full_xla_whole"] = common.compiled(
      lambda *x: attention.cross_attention(*x).output, queries, keys, values
    )
    methods["full_jax_nn"] = common.compiled(
      jax.nn.dot_product_attention, *(x[None] for x in (queries, keys, values))
    )
  if importlib.util.find_spec("torch"):
    methods["full_torch"] = torch_call(queries, keys, values), {}
    if jax.default_backend() == "cpu":
      methods["full_torch_1_thread"] = torch_call(queries, keys, values, 1), {}
  return {
    name: (call, {"tokens_read": num_tokens, **row})
    for name, (call, row) in methods.items()
  }


def torch_call(
  queries: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  num_threads: int | None = None,
) -> Callable[[], None]:
  """Makes a call of full attention by PyTorch, on arrays in its layout.

  It runs on the kind of device that JAX uses, if PyTorch can use it, else on the CPU.

  Args:
    queries: `[M, H, Dh]`.
    keys: `[N, H, Dh]`.
    values: `[N, H, Dh]`.
    num_threads: the number of threads; None: one for each core. For few queries, one
      thread is often the fastest.
  """
  import torch  # noqa: PLC0415

  on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
  device = "cuda" if on_gpu else "cpu"

  def to_torch(x: jax.Array) -> torch.Tensor:
    heads_first = np.array(jnp.swapaxes(x, 0, 1)[None].astype(jnp.float32))
    return torch.from_numpy(heads_first).to(device, getattr(torch, x.dtype.name))

  query, key, value = to_torch(queries), to_torch(keys), to_torch(values)
  num_threads = num_threads or timing.num_cores()

  def call() -> None:
    if torch.get_num_threads() != num_threads:
      torch.set_num_threads(num_threads)
    with torch.no_grad():
      torch.nn.functional.scaled_dot_product_attention(query, key, value)
    if on_gpu:
      torch.cuda.synchronize()

  return call


def faiss_methods(queries: jax.Array, memory: tca_jax.TreeMemory) -> dict[str, Method]:
  """Exact attention to the tokens that FAISS finds, as many as TCA reads nodes.

  Args:
    queries: `[M, H, Dh]`.
    memory: of one context.
  """
  import faiss  # noqa: PLC0415

  tree, methods = memory.tree, {}
  keys, values = common.leaves(memory)
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
      return attend(queries, keys, values, found)

    methods[name] = call, {"tokens_read": count, "build_seconds": seconds}
  return methods
