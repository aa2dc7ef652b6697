from __future__ import annotations

from shoal import errors
from shoal.errors import ShoalError, by_reason


def test_reason_names_one_class() -> None:
    """Every class that has a reason of its own is found by it, and a subclass never is."""
    waiting, found = [ShoalError], 0
    while waiting:
        cls = waiting.pop()
        waiting += [child for child in cls.__subclasses__() if child.__module__ == errors.__name__]
        if "reason" in vars(cls):
            assert by_reason(cls.reason) is cls
            found += 1
    assert found > 25


def test_reason_that_is_inherited_is_its_ancestors() -> None:
    """A class without a reason of its own has its ancestor's, which names the ancestor."""

    class Special(errors.NotFound):
        pass

    assert by_reason(Special.reason) is errors.NotFound
    assert by_reason(errors.CallerError.reason) is ShoalError


def test_unknown_reason_names_no_class() -> None:
    """A reason of another version is None."""
    assert by_reason("SOMETHING_NEW") is None
    assert by_reason("") is None
