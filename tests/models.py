"""Small models that the tests of modules share, and their compiled functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import tca_jax
from tests import cases

BATCH, NUM_TOKENS, NUM_QUERIES, NUM_AXES, WIDTH = 3, 11, 4, 2, 16
READ_OUTS = ("tca", "ca", "perceiver")
RELATIVE = ("relative_tca", "relative_ca")
# Options of a relative model whose covariance function fits the context.
FITTED = dict(fits_covariance=True, local_units=False)
# Kriging solves systems that magnify the rounding of float32 up to 10,000 times, so that
# another order of additions gives other digits.
ROUNDED = dict(rtol=2e-3, atol=2e-3)


def read_out(name, **options):
  if name == "tca":
    return tca_jax.TreeCrossAttention(width=WIDTH, hidden=8, **options)
  if name == "ca":
    return tca_jax.CrossAttention(width=WIDTH, hidden=8, **options)
  if name == "relative_tca":
    options = dict(num_paths=2, node_width=8) | options
    return tca_jax.RelativeTreeCrossAttention(width=WIDTH, hidden=8, **options)
  if name == "relative_ca":
    options = dict(node_width=8) | options
    return tca_jax.RelativeCrossAttention(width=WIDTH, hidden=8, **options)
  return tca_jax.PerceiverIO(width=WIDTH, hidden=8, num_latents=3, **options)


def model(name, num_layers=0, dtype=jnp.float32, **options):
  """A `ReTreever` of `[B, N, 1]` values."""
  encoder = tca_jax.Encoder(num_layers, hidden=8, dtype=dtype)
  embedder = tca_jax.PointEmbedder(WIDTH, 2, dtype=dtype)
  if name in RELATIVE:
    embedder = tca_jax.PlacelessEmbedder(WIDTH, dtype=dtype)
  return tca_jax.ReTreever(
    embedder=embedder,
    encoder=encoder if num_layers else None,
    read_out=read_out(name, dtype=dtype, **options),
    head=tca_jax.GaussianHead(1, hidden=8, dtype=dtype),
  )


def inputs(rng, num_valid=None):
  """Coordinates, values, query coordinates and a random mask.

  Args:
    rng: a NumPy generator.
    num_valid: the number of valid tokens of every context; None means random.
  """
  coords = rng.normal(size=(BATCH, NUM_TOKENS, NUM_AXES)).astype(np.float32)
  values = rng.normal(size=(BATCH, NUM_TOKENS, 1)).astype(np.float32)
  query_coords = rng.normal(size=(BATCH, NUM_QUERIES, NUM_AXES)).astype(np.float32)
  mask = np.stack([cases.mask("random", NUM_TOKENS, rng) for _ in range(BATCH)])
  if num_valid is not None:
    mask = np.argsort(rng.random(mask.shape), axis=1) < num_valid
  return coords, values, query_coords, mask


@functools.cache
def params(module, method="__call__"):
  """The module's parameters; a model's or a read-out's, which share nothing."""
  rng = np.random.default_rng(0)
  coords, values, query_coords, mask = inputs(rng)
  if isinstance(module, tca_jax.ReTreever):
    arguments = (coords, values, query_coords, mask)
  else:
    tokens = np.zeros((BATCH, NUM_TOKENS, WIDTH), np.float32)
    queries = np.zeros((BATCH, NUM_QUERIES, WIDTH), np.float32)
    arguments = (queries, tokens, coords, mask)
  init = functools.partial(module.init, method=method)
  if not isinstance(module, tca_jax.ReTreever) and hasattr(module, "local_units"):
    init = functools.partial(init, values=values, query_coords=query_coords)
  return draw(init, *arguments)


def draw(init, *arguments):
  """Parameters as an `init` makes them, drawn by NumPy: compiles nothing.

  JAX needs more time to compile an `init` than to compile a prediction.
  """
  rng = np.random.default_rng(0)

  def values(path, x):
    names = [entry.key for entry in path]
    if names[-1] in ("bias", "scale"):
      return jnp.full(x.shape, names[-1] == "scale", x.dtype)
    if "covariance" in names:
      std = 0.01
    elif names[-1] == "latents" or x.ndim <= 1:
      std = 1.0
    else:
      std = x.shape[0] ** -0.5
    return jnp.asarray(std * rng.normal(size=x.shape), x.dtype)

  shapes = jax.eval_shape(init, jax.random.key(0), *arguments)
  return jax.tree_util.tree_map_with_path(values, shapes)


@functools.cache
def compiled(module, method="__call__", **options):
  """`module.apply` of a method, compiled once for all tests of a worker."""
  return jax.jit(functools.partial(module.apply, method=method, **options))
