"""Checks of inputs, and the cleaning of contexts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tca_jax import checks


def test_is_traced_under_jit_is_true_and_eagerly_false():
  seen = []
  jax.eval_shape(lambda x: seen.append(checks.is_traced(None, x)), jnp.ones(2))
  assert seen == [True]
  assert not checks.is_traced(jnp.ones(2), np.ones(2), None)


@pytest.mark.parametrize("dtype", [np.int32, bool])
def test_check_floating_other_dtype_raises(dtype):
  with pytest.raises(ValueError, match="y must be floating point, got dtype"):
    checks.check_floating(x=np.ones(2, np.float32), y=np.ones(2, dtype))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, jnp.bfloat16])
def test_check_floating_floating_point_passes(dtype):
  checks.check_floating(x=np.ones(2, dtype))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_check_finite_not_finite_raises(bad):
  with pytest.raises(ValueError, match="y must be finite"):
    checks.check_finite(x=np.ones(2, np.float32), y=np.array([0, bad], np.float32))


def test_check_finite_under_jit_checks_only_the_dtype():
  checks.check_finite(x=np.zeros(0, np.float32))
  jax.eval_shape(lambda x: checks.check_finite(x=x), np.full(2, np.nan, np.float32))
  with pytest.raises(ValueError, match="floating point"):
    jax.eval_shape(lambda x: checks.check_finite(x=x), np.ones(2, np.int32))


@pytest.mark.parametrize("num_paths", [0, -1])
def test_check_num_paths_below_one_raises(num_paths):
  checks.check_num_paths(1)
  with pytest.raises(
    ValueError, match=f"num_paths must be at least 1, got {num_paths}"
  ):
    checks.check_num_paths(num_paths)


_CONTEXT = {
  "coords": np.ones((2, 3, 2), np.float32),
  "mask": np.array([[True, True, False], [True, False, False]]),
  "values": np.ones((2, 3, 1), np.float32),
}


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(coords=np.ones(3, np.float32)), "N >= 1"),
    (dict(coords=np.ones((2, 0, 2), np.float32)), "N >= 1"),
    (dict(coords=np.ones((2, 3, 0), np.float32)), "C >= 1"),
    (dict(coords=np.ones((2, 3, 2), np.int32)), "coords must be floating point"),
    (dict(values=np.ones((2, 3, 1), np.int32)), "values must be floating point"),
    (dict(values=np.ones((2, 4, 1), np.float32)), r"values must be \(2, 3\) \+ \(D,\)"),
    (dict(values=np.ones((2, 3), np.float32)), r"values must be \(2, 3\) \+ \(D,\)"),
    (dict(mask=np.ones((2, 3), np.int32)), "mask must be bool, got dtype int32"),
    (dict(mask=np.ones((2, 4), bool)), r"mask must be \(2, 3\)"),
  ],
)
def test_check_context_wrong_shape_or_dtype_raises_also_under_jit(change, message):
  inputs = _CONTEXT | change
  with pytest.raises(ValueError, match=message):
    checks.check_context(**inputs)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda inputs: checks.check_context(**inputs), inputs)


def test_check_context_without_valid_token_raises_with_the_count():
  inputs = _CONTEXT | {"mask": np.array([[False] * 3, [True] * 3])}
  with pytest.raises(ValueError, match="False in 1 of 2 contexts"):
    checks.check_context(**inputs)
  jax.eval_shape(lambda inputs: checks.check_context(**inputs), inputs)


@pytest.mark.parametrize("name", ["coords", "values"])
def test_check_context_valid_entry_not_finite_raises_with_the_index(name):
  x = _CONTEXT[name].copy()
  x[0, 1, 0] = np.nan
  with pytest.raises(ValueError, match=rf"{name} must be finite.* index \(0, 1\)"):
    checks.check_context(**_CONTEXT | {name: x})


def test_check_context_masked_entry_not_finite_passes():
  x = _CONTEXT["values"].copy()
  x[0, 2] = np.nan
  checks.check_context(**_CONTEXT | {"values": x})


def test_clean_context_masked_entries_become_zero():
  values = np.where(_CONTEXT["mask"][..., None], 2, np.nan).astype(np.float32)
  coords, mask, cleaned = checks.clean_context(**_CONTEXT | {"values": values})
  np.testing.assert_array_equal(mask, _CONTEXT["mask"])
  np.testing.assert_array_equal(coords, np.where(mask[..., None], 1, [0, 0]))
  np.testing.assert_array_equal(cleaned, np.where(mask[..., None], 2, [0]))


def test_clean_context_without_mask_makes_one_of_ones():
  coords, mask, values = checks.clean_context(
    _CONTEXT["coords"], None, values=_CONTEXT["values"]
  )
  assert mask.shape == (2, 3) and mask.dtype == bool and mask.all()
  np.testing.assert_array_equal(coords, _CONTEXT["coords"])
  np.testing.assert_array_equal(values, _CONTEXT["values"])


def test_clean_context_bad_context_raises():
  with pytest.raises(ValueError, match="mask must be bool"):
    checks.clean_context(_CONTEXT["coords"], np.ones((2, 3), np.int32))
