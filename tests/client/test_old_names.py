"""Names and arguments that are written otherwise now: they work for one version more, and warn."""

from __future__ import annotations

import dataclasses

import pytest

import shoal.client
from shoal.client import EmbeddingVectors, Empty, Range, RunOptions


def test_old_range_of_k_is_the_new_one() -> None:
    """``k_range`` fills ``k_min`` and ``k_max``."""
    with pytest.warns(DeprecationWarning, match="k_min=A, k_max=B"):
        options = RunOptions(k_range=(3, 9), seed=4)
    assert options == RunOptions(k_min=3, k_max=9, seed=4)
    assert dataclasses.replace(options, seed=5) == RunOptions(k_min=3, k_max=9, seed=5)


def test_old_coarsest_layer_is_the_new_one() -> None:
    """``coarsest=True`` is ``layer="coarsest"``."""
    with pytest.warns(DeprecationWarning, match='layer="coarsest"'):
        assert EmbeddingVectors(coarsest=True) == EmbeddingVectors(layer="coarsest")
    assert EmbeddingVectors(layer=2).layer == 2


@pytest.mark.parametrize(("old", "new"), [("Between", Range), ("Missing", Empty)])
def test_old_conditions_are_the_new_ones(old: str, new: type) -> None:
    """``Between`` is ``Range``, ``Missing`` is ``Empty``."""
    with pytest.warns(DeprecationWarning, match=new.__name__):
        assert getattr(shoal.client, old) is new


def test_a_name_that_never_was_is_an_attribute_error() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="Nothing"):
        _ = shoal.client.Nothing
