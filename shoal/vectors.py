"""Vectors and labels in memory and on the wire: their types, byte format and checks.

In memory ``vectors`` are float32, C-contiguous and of unit length; ``labels`` are int32.

The format is written down in ``common.proto``: dim x 4 bytes, IEEE 754 float32, little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.errors import InvalidArgument

Vectors: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.int32]

NOISE = -1
"""The label of a point that belongs to no cluster."""

UNIT_TOLERANCE = 1e-3
"""The most by which a vector's length may differ from 1 on the wire; float16 stays well inside."""

_WIRE = np.dtype("<f4")


def encode(vector: Vectors) -> bytes:
    """The bytes of ``vector`` (D,) float32."""
    return np.ascontiguousarray(vector, dtype=_WIRE).tobytes()


def decode(values: bytes, dim: int) -> Vectors:
    """The vector (dim,) float32 in ``values``; InvalidArgument if the sizes differ."""
    if len(values) != dim * _WIRE.itemsize:
        raise InvalidArgument(
            f"vector: expected {dim} x 4 = {dim * 4} bytes for dim {dim}, got {len(values)}",
            field="vector",
        )
    return np.frombuffer(values, dtype=_WIRE).astype(np.float32)


def joined(parts: Sequence[Vectors]) -> Vectors:
    """Unit vectors (..., D1), (..., D2), ... one after the other, as one unit vector.

    The cosine of two such vectors is the mean of their parts' cosines.
    """
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts, axis=-1) / np.float32(np.sqrt(len(parts)))


def unit(vectors: npt.ArrayLike) -> Vectors:
    """``vectors`` (..., D) scaled to length 1, as float32.

    Raises:
        InvalidArgument: a component is not finite, or a vector has no direction (all zeros).
    """
    array = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(array).all():
        raise InvalidArgument("vector: expected finite numbers, got NaN or infinity")
    norms = np.linalg.norm(array, axis=-1, keepdims=True)
    if not norms.all():
        raise InvalidArgument("vector: expected a direction, got only zeros")
    return np.ascontiguousarray(array / norms, dtype=np.float32)


def check_unit(vector: Vectors, dim: int) -> Vectors:
    """``vector`` if it is finite, (dim,) and of length 1 within UNIT_TOLERANCE.

    Raises:
        InvalidArgument: it is not; the message says what was expected and what was got.
    """
    if vector.shape != (dim,):
        raise InvalidArgument(f"vector: expected shape ({dim},), got {vector.shape}")
    length = float(np.linalg.norm(vector))
    if not abs(length - 1.0) <= UNIT_TOLERANCE:  # also false for NaN
        raise InvalidArgument(f"vector: expected length 1, got {length:.6g}")
    return vector
