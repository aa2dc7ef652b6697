"""What is measured and run before anybody waits: with an encoder whose time is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from timed_encoder import Timed

from embedder.encoding.config import RuntimeConfig
from embedder.encoding.tuning import BUDGET_S, NEAR, best_run_size, smallest_near_best, warm_up


def best(encoder: Timed, *, workers: int = 1, most: int = 8) -> int:
    return best_run_size(encoder, workers=workers, most=most, clock=lambda: encoder.now)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        ({1: 1.0, 2: 1.0, 4: 1.2, 8: 1.3}, 1),
        ({1: 1.6, 2: 1.3, 4: 1.01, 8: 1.0}, 4),
        ({1: 1.6, 2: 1.3, 4: 1.1, 8: 1.0}, 8),
        ({1: 1.03, 2: 1.0}, 1),
        ({1: 1.0301, 2: 1.0}, 2),
        ({8: 1.0, 4: 1.0}, 4),
    ],
)
def test_run_size_is_the_smallest_that_is_about_as_fast_as_any(
    seconds: dict[int, float], size: int
) -> None:
    """The best time wins; a smaller batch that is within 3% of it answers sooner."""
    assert smallest_near_best(seconds) == size
    assert NEAR == 0.03


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (lambda size: 0.01 * size, 1),  # a larger batch gains nothing
        (lambda size: 0.01 + 0.001 * size, 8),  # it gains much
        (lambda size: 0.01 * size if size < 8 else 0.2, 1),  # it loses
        (lambda size: 0.01 + 0.001 * size if size <= 4 else 0.1, 4),  # it gains up to a size
        (lambda size: 1.0 * size, 8),  # too slow to try
    ],
)
def test_run_size_is_measured(cost: Callable[[int], float], expected: int) -> None:
    """Sizes are tried with the model itself; one that would take too long gets the largest."""
    encoder = Timed(cost)
    assert best(encoder) == expected
    assert encoder.now <= BUDGET_S + 8 * cost(1)


def test_each_size_is_tried_twice_on_as_many_images() -> None:
    """One run of the largest warms up; each worker then embeds eight images in each size, twice."""
    encoder = Timed(lambda size: 0.001 * size)
    best(encoder, workers=2)
    assert Counter(encoder.runs) == {8: 2 + 2 * 2, 4: 2 * 2 * 2, 2: 2 * 2 * 4, 1: 2 * 2 * 8}
    assert {pixels.shape[1:] for pixels in encoder.pixels} == {(8, 6, 3)}
    assert {pixels.dtype for pixels in encoder.pixels} == {np.dtype(np.uint8)}


def test_best_of_two_rounds_counts() -> None:
    """A size that something else slowed down once is judged by its other time."""
    slow = iter([0.0, 0.0, 1.0])  # the warm-up, then the first round's run of one image

    def cost(size: int) -> float:
        return 0.001 * size + (next(slow, 0.0) if size == 1 else 0.0)

    assert best(Timed(cost)) == 1


def test_model_that_takes_its_budget_is_still_tried() -> None:
    """Two rounds of four sizes are as long as eight times the first run: at most the budget."""
    exactly, more = BUDGET_S / 8, BUDGET_S / 8 + 0.01
    tried, large = (Timed(lambda size, each=each: each * size / 8) for each in (exactly, more))
    assert best(tried) == 1
    assert best(large) == 8
    assert large.runs == [8]


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, {1}), (3, {1, 2}), (4, {1, 2, 4}), (100, {1, 2, 4, 8})]
)
def test_run_size_is_at_most_what_a_worker_takes(most: int, sizes: set[int]) -> None:
    """No size above the largest batch is tried, and none above eight."""
    encoder = Timed(lambda _: 0.01)
    assert best(encoder, most=most) == max(sizes)
    assert set(encoder.runs) == sizes


def test_every_size_is_run_once_before_anybody_waits() -> None:
    """All the sizes that batches are filled up to, in order, with pixels of each part."""
    encoder = Timed(lambda _: 0.01)
    tensorrt, cuda = RuntimeConfig(provider="tensorrt"), RuntimeConfig(provider="cuda")
    assert warm_up(encoder, tensorrt, most=48) == [1, 2, 4, 8, 16, 32, 64]  # type: ignore[arg-type]
    assert encoder.runs == [1, 2, 4, 8, 16, 32, 64]
    assert warm_up(encoder, cuda, most=20) == [1, 2, 4, 8, 16, 24]  # type: ignore[arg-type]
    assert encoder.texts == []
    of_two = Timed(lambda _: 0.01)
    crops = [SimpleNamespace(crop=SimpleNamespace(height=side, width=5)) for side in (4, 7)]
    of_two.preprocessings = tuple(crops)  # type: ignore[assignment]
    assert warm_up(of_two, cuda, most=1) == [1]  # type: ignore[arg-type]
    assert [pixels.shape for pixels in of_two.pixels] == [(1, 4, 5, 3), (1, 7, 5, 3)]


def test_text_tower_is_warmed_up_too() -> None:
    """With as many texts as images, where there is one."""
    encoder = Timed(lambda _: 0.01, has_text=True)
    config = RuntimeConfig(provider="tensorrt")
    assert warm_up(encoder, config, most=4) == [1, 2, 4]  # type: ignore[arg-type]
    assert encoder.texts == [1, 2, 4]
