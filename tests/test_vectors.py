from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidArgument
from shoal.vectors import UNIT_TOLERANCE, check_unit, decode, encode, joined, unit


def test_vector_on_the_wire_is_little_endian_float32() -> None:
    """Four bytes a component, as ``common.proto`` writes it down, whatever the array's layout."""
    assert encode(np.array([1.0, -2.5], np.float32)) == bytes.fromhex("0000803f000020c0")
    assert encode(np.array([1.0, -2.5], ">f4")) == bytes.fromhex("0000803f000020c0")
    assert encode(np.arange(6, dtype=np.float32)[::2]) == encode(np.float32([0, 2, 4]))


@given(st.lists(st.floats(width=32), max_size=8))
def test_vector_comes_back_from_the_wire(values: list[float]) -> None:
    """Bit by bit, as an array that may be written to."""
    vector = np.array(values, np.float32)
    found = decode(encode(vector), len(values))
    np.testing.assert_array_equal(found, vector)
    assert found.dtype == np.float32
    assert found.flags.writeable
    assert found.flags.owndata


@pytest.mark.parametrize("size", [0, 7, 9, 12])
def test_vector_of_another_size_is_refused(size: int) -> None:
    """The message says how many bytes a vector of that dim has."""
    with pytest.raises(InvalidArgument) as refused:
        decode(bytes(size), 2)
    assert refused.value.message == (f"vector: expected 2 x 4 = 8 bytes for dim 2, got {size}")
    assert refused.value.metadata == {"field": "vector"}


def test_joined_vectors_have_the_mean_of_the_cosines() -> None:
    """Unit length again; one part alone is itself."""
    rng = np.random.default_rng(0)
    parts = [unit(rng.normal(size=(2, 5, dim))) for dim in (3, 4, 2)]
    both = joined(parts)
    assert both.dtype == np.float32
    assert both.shape == (2, 5, 9)
    np.testing.assert_allclose(np.linalg.norm(both, axis=-1), 1, atol=1e-6)
    cosines = [np.einsum("nd,nd->n", part[0], part[1]) for part in parts]
    np.testing.assert_allclose(
        np.einsum("nd,nd->n", both[0], both[1]), np.mean(cosines, axis=0), atol=1e-6
    )
    np.testing.assert_allclose(both[..., 3:7], parts[1] / np.sqrt(3), atol=1e-6)
    assert joined(parts[:1]) is parts[0]


@pytest.mark.parametrize("given_", [[3, 4], np.float64([3, 4]), np.float32([[3, 4], [-3, 0.0]])])
def test_unit_scales_to_length_one(given_: object) -> None:
    """Each row, as float32 and contiguous; the direction stays."""
    found = unit(given_)  # type: ignore[arg-type]
    wanted = {1: [0.6, 0.8], 2: [[0.6, 0.8], [-1, 0]]}[found.ndim]
    np.testing.assert_allclose(found, wanted, atol=1e-7)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ([0, 0], "vector: expected a direction, got only zeros"),
        ([[1, 0], [0, 0]], "vector: expected a direction, got only zeros"),
        ([1, math.nan], "vector: expected finite numbers, got NaN or infinity"),
        ([[1, 0], [math.inf, 0]], "vector: expected finite numbers, got NaN or infinity"),
    ],
)
def test_unit_refuses_what_has_no_direction(given_: object, says: str) -> None:
    """One bad row is enough."""
    with pytest.raises(InvalidArgument) as refused:
        unit(given_)  # type: ignore[arg-type]
    assert refused.value.message == says


@pytest.mark.parametrize("length", [1.0, 1 - UNIT_TOLERANCE * 0.99, 1 + UNIT_TOLERANCE * 0.99])
def test_vector_of_unit_length_is_accepted(length: float) -> None:
    """Within the tolerance, which float16 needs, and unchanged."""
    vector = np.array([length, 0, 0], np.float32)
    assert check_unit(vector, 3) is vector


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1, 0], "vector: expected shape (3,), got (2,)"),
        ([[1, 0, 0]], "vector: expected shape (3,), got (1, 3)"),
        ([0, 0, 0], "vector: expected length 1, got 0"),
        ([1 + UNIT_TOLERANCE * 1.01, 0, 0], "vector: expected length 1, got 1.00101"),
        ([1 - UNIT_TOLERANCE * 1.01, 0, 0], "vector: expected length 1, got 0.99899"),
        ([math.nan, 0, 0], "vector: expected length 1, got nan"),
        ([math.inf, 0, 0], "vector: expected length 1, got inf"),
    ],
)
def test_vector_of_another_shape_or_length_is_refused(values: object, says: str) -> None:
    """The message says what was got."""
    with pytest.raises(InvalidArgument) as refused:
        check_unit(np.array(values, np.float32), 3)
    assert refused.value.message == says
