"""The methods of read-outs whose contexts may grow, see `tca_jax.growth`."""

from collections.abc import Callable
import typing

from flax import linen as nn
import jax
import jax.numpy as jnp

from tca_jax import checks
from tca_jax import growth
from tca_jax.growth import GrowingMemory
from tca_jax.growth import NodeFunctions
from tca_jax.modules.interface import ReadOut

__all__ = ["GrowingReadOut"]


class GrowingReadOut(ReadOut):
  """A read-out with a tree, into whose memory tokens may be inserted later.

  All methods can be compiled with `jax.jit`. Donate the memory (`donate_argnums`),
  because otherwise every call copies it.
  """

  def index_growing(
    self,
    tokens: jax.Array,
    coords: jax.Array,
    mask: jax.Array | None = None,
    *,
    values: jax.Array | None = None,
    capacity: int | None = None,
  ) -> GrowingMemory:
    """Computes a memory with free leaf slots for each context.

    Args:
      tokens: `[B, N, D]`.
      coords: `[B, N, C]`, the location of each token.
      mask: `[B, N]` bool, True at valid tokens; None means that all are valid.
      values: `[B, N, E]`, the observed values, which relative read-outs need.
      capacity: the smallest allowed number of leaf slots, a static int; the next power
        of the branch factor is taken. None means 2 N.

    Returns:
      A `GrowingMemory` with leading axis B; `read` takes its `memory`.

    Raises:
      ValueError: see `index` and `growth.start`.
    """
    given = {} if values is None else {"values": values}
    coords, mask, tokens, *cleaned = checks.clean_context(
      coords, mask, tokens=tokens, **given
    )
    self._check_tokens(tokens)

    def start(read_out, tokens, coords, mask, values):
      return growth.start(
        read_out.node_functions(),
        tokens,
        coords,
        mask,
        values=values,
        capacity=capacity,
        branch_factor=read_out.branch_factor,
        **read_out.order_options(),
      )

    return self._batched(
      start, self._stored(tokens), coords, mask, self._stored_values(*cleaned)
    )

  def insert(
    self,
    growing: GrowingMemory,
    tokens: jax.Array,
    coords: jax.Array,
    mask: jax.Array | None = None,
    *,
    values: jax.Array | None = None,
    reach: int = growth.REACH,
  ) -> tuple[GrowingMemory, jax.Array]:
    """Inserts tokens into each memory, and renews the nodes above them.

    Args:
      growing: the memories of B contexts.
      tokens: `[B, K, D]`.
      coords: `[B, K, C]`, the location of each token.
      mask: `[B, K]` bool, True at valid tokens; None means that all are valid.
      values: `[B, K, E]`, the observed values, which relative read-outs need.
      reach: see `growth.insert`.

    Returns:
      The memories, and the numbers of the tokens, `[B, K]` int32. A token is refused,
      and its number is -1, if it is masked or if there is no free slot near its place;
      `rebuild` makes room.

    Raises:
      ValueError: if a shape, a dtype or an option does not fit; outside a
        transformation also if an entry of a valid token is not finite.
    """
    given = {"tokens": tokens, "coords": coords}
    given |= {} if values is None else {"values": values}
    arrays = {name: checks.as_array(name, x) for name, x in given.items()}
    size, shape = growing.leaf.shape[0], arrays["coords"].shape
    for name, x in arrays.items():
      if x.ndim != 3 or x.shape[:2] != (size, *shape[1:2]):
        raise ValueError(
          f"{name} must be [{size}, K, width] with one K, got shape {x.shape}"
        )
    mask = jnp.ones(shape[:2], bool) if mask is None else checks.as_array("mask", mask)
    checks.check_mask(mask, shape[:2])
    checks.check_floating(**arrays)
    arrays = {name: jnp.where(mask[..., None], x, 0) for name, x in arrays.items()}
    checks.check_finite(**arrays)
    self._check_tokens(arrays["tokens"])

    def insert(read_out, growing, tokens, coords, mask, values):
      return growth.insert(
        read_out.node_functions(),
        growing,
        tokens,
        coords,
        mask,
        values=values,
        reach=reach,
      )

    cleaned = [arrays["values"]] if "values" in arrays else []
    return self._batched(
      insert,
      growing,
      self._stored(arrays["tokens"]),
      arrays["coords"],
      mask,
      self._stored_values(*cleaned),
    )

  def remove(
    self, growing: GrowingMemory, numbers: jax.Array
  ) -> tuple[GrowingMemory, jax.Array]:
    """Removes tokens from each memory, and renews the nodes above them.

    Args:
      growing: the memories of B contexts.
      numbers: `[B, K]` integers, the numbers of tokens; see `growth.remove`.

    Returns:
      The memories, and `[B, K]` bool, True where a token was removed.

    Raises:
      ValueError: if numbers is not `[B, K]` integers.
    """
    numbers = checks.as_array("numbers", numbers)
    size = growing.leaf.shape[0]
    if numbers.ndim != 2 or len(numbers) != size:
      raise ValueError(f"numbers must be [{size}, K], got shape {numbers.shape}")

    def remove(read_out, growing, numbers):
      return growth.remove(read_out.node_functions(), growing, numbers)

    return self._batched(remove, growing, numbers)

  def rebuild(
    self, growing: GrowingMemory, *, capacity: int | None = None
  ) -> GrowingMemory:
    """Balances each tree again, by default with b times as many leaf slots.

    Tokens keep their numbers.

    Args:
      growing: the memories of B contexts.
      capacity: the smallest allowed number of leaf slots, a static int of at least the
        present one. None means b times the present one.

    Raises:
      ValueError: see `growth.rebuild`.
    """

    def rebuild(read_out, growing):
      return growth.rebuild(
        read_out.node_functions(),
        growing,
        capacity=capacity,
        **read_out.order_options(),
      )

    return self._batched(rebuild, growing)

  def node_functions(self) -> NodeFunctions:
    """Returns the learned parts of the memory of one context."""
    raise NotImplementedError

  def order_options(self) -> dict[str, typing.Any]:
    """Returns the options `order` and `axis` of `tree.build_tree`."""
    raise NotImplementedError

  def _stored(self, tokens: jax.Array) -> jax.Array:
    """The leaf values of the tree."""
    return tokens.astype(self.dtype)

  def _stored_values(self, values: jax.Array | None = None) -> jax.Array | None:
    """The observed values that the memory stores."""
    raise NotImplementedError

  def _batched(self, function: Callable[..., typing.Any], *arguments) -> typing.Any:
    """Applies a function of this module and of one context to a batch."""
    lifted = nn.vmap(
      function, variable_axes={"params": None}, split_rngs={"params": False}
    )
    return lifted(self, *arguments)
