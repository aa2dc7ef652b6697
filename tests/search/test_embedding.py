"""Asking the embedder for a query's vector, over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from reclustering import DIM, VECTOR
from searching import ToyEmbedder
from serving import Served, serving

from search.embedding import QueryEmbedder
from shoal import errors, vectors
from shoal.rpc.channel import ChannelConfig, open_aio_channel
from shoal.v1 import common_pb2

AXIS = np.eye(DIM, dtype=np.float32)[3]


class Caller:
    """The context of a caller who waits for this many seconds more; None for ever."""

    def __init__(self, remaining_s: float | None = None) -> None:
        self.remaining_s = remaining_s

    def time_remaining(self) -> float | None:
        return self.remaining_s

    def peer(self) -> str:
        return "ipv4:10.0.0.1:1"

    def invocation_metadata(self) -> tuple[()]:
        return ()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[ToyEmbedder, Served]]:
    toy = ToyEmbedder()
    with serving(lambda: [toy]) as found:
        yield toy, found


@pytest.fixture
def toy(served: tuple[ToyEmbedder, Served]) -> ToyEmbedder:
    served[0].failure, served[0].remaining_s = None, None
    return served[0]


Ask = Callable[[Callable[[QueryEmbedder], Awaitable[Any]]], Any]


@pytest.fixture
def ask(served: tuple[ToyEmbedder, Served]) -> Ask:
    """Runs a question to the embedder, which has at most 20 s for it."""

    async def main(question: Callable[[QueryEmbedder], Awaitable[Any]]) -> Any:
        async with open_aio_channel(ChannelConfig(address=served[1].address)) as channel:
            return await question(QueryEmbedder(channel, 20.0))

    return lambda question: asyncio.run(main(question))


def of_image(
    data: bytes, caller: Any, encoder: str = VECTOR, **options: str
) -> Callable[[QueryEmbedder], Any]:
    return lambda embedder: embedder.image(common_pb2.Image(data=data), encoder, caller, **options)


def of_text(
    text: str, caller: Any, encoder: str = VECTOR, **options: str
) -> Callable[[QueryEmbedder], Any]:
    return lambda embedder: embedder.text(text, encoder, caller, **options)


QUESTIONS = {
    "image": (of_image, vectors.encode(AXIS), b"x", "IMAGE_CORRUPT", "not a toy"),
    "text": (of_text, "3", "x", "INVALID_ARGUMENT", "not a number"),
}


@pytest.mark.parametrize("kind", QUESTIONS)
def test_embedder_gives_the_vector_with_its_fingerprint(
    ask: Ask, toy: ToyEmbedder, kind: str
) -> None:
    """Of an image and of a text, by the encoder that is named."""
    question, good, *_ = QUESTIONS[kind]
    found = ask(question(good, Caller()))  # type: ignore[arg-type]
    assert (found.values, found.dim) == (vectors.encode(AXIS), DIM)
    assert found.fingerprint == toy.fingerprint
    assert toy.asked == ""
    assert toy.caller.endswith(" ipv4:10.0.0.1:1")


@pytest.mark.parametrize("kind", QUESTIONS)
def test_embedder_is_told_which_vectors_are_wanted(ask: Ask, toy: ToyEmbedder, kind: str) -> None:
    """An encoder with a matte makes two kinds: the collection's fingerprint says which."""
    question, good, *_ = QUESTIONS[kind]
    ask(question(good, Caller(), fingerprint="a" * 64))  # type: ignore[call-arg, arg-type]
    assert toy.asked == "a" * 64


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("kind", QUESTIONS)
def test_what_the_embedder_objects_to_is_raised(ask: Ask, kind: str) -> None:
    """The error of the one item is the error of the query."""
    question, _, bad, reason, words = QUESTIONS[kind]
    with pytest.raises(errors.ShoalError, match=str(words)) as caught:
        ask(question(bad, Caller()))  # type: ignore[arg-type]
    assert caught.value.reason == reason


@pytest.mark.parametrize(("remaining_s", "most_s"), [(None, 20.0), (500.0, 20.0), (7.0, 7.0)])
@pytest.mark.parametrize("kind", QUESTIONS)
def test_embedder_has_the_shorter_of_both_times(
    ask: Ask, toy: ToyEmbedder, kind: str, remaining_s: float | None, most_s: float
) -> None:
    """The configured time, or what the caller's deadline leaves if that is less."""
    question, good, *_ = QUESTIONS[kind]
    ask(question(good, Caller(remaining_s)))  # type: ignore[arg-type]
    assert toy.remaining_s is not None
    assert most_s / 2 < toy.remaining_s < most_s + 1  # gRPC rounds a deadline up


@pytest.mark.parametrize("remaining_s", [0.0, -1.0])
@pytest.mark.parametrize("kind", QUESTIONS)
def test_embedder_is_not_asked_too_late(
    ask: Ask, toy: ToyEmbedder, kind: str, remaining_s: float
) -> None:
    """A query whose deadline has passed costs the embedder nothing."""
    question, good, *_ = QUESTIONS[kind]
    with pytest.raises(errors.DeadlineExceeded, match="before the query was embedded"):
        ask(question(good, Caller(remaining_s)))  # type: ignore[arg-type]
    assert toy.remaining_s is None


FAILURES: list[tuple[errors.ShoalError, type[errors.ShoalError], str]] = [
    (errors.NotFound("this server has clip"), errors.EncoderMismatch, "this server has clip"),
    (errors.Unauthenticated("who"), errors.ServiceUnavailable, "the search service's token"),
    (errors.Overloaded("full", retry_after_s=3.0), errors.Overloaded, "full"),
    (errors.Unsupported("no text tower"), errors.Unsupported, "no text tower"),
]


@pytest.mark.parametrize("case", FAILURES, ids=lambda case: case[0].reason)
@pytest.mark.parametrize("kind", QUESTIONS)
def test_failures_are_told_as_the_caller_understands_them(
    ask: Ask, toy: ToyEmbedder, kind: str, case: tuple[Any, type[errors.ShoalError], str]
) -> None:
    """The embedder's words are about its caller, the search service; the rest is passed on."""
    failure, expected, words = case
    toy.failure = failure
    question, good, *_ = QUESTIONS[kind]
    with pytest.raises(expected, match=words) as caught:
        ask(question(good, Caller()))  # type: ignore[arg-type]
    assert type(caught.value) is expected
    if isinstance(caught.value, errors.EncoderMismatch):
        assert caught.value.metadata == {"encoder": VECTOR}
    if isinstance(caught.value, errors.Overloaded):
        assert caught.value.retry_after_s == 3.0


@pytest.mark.parametrize("kind", QUESTIONS)
def test_embedder_that_is_not_there_is_told_as_the_missing_part(kind: str) -> None:
    """To a caller who reached the search service, with the service's option and the cause."""
    question, good, *_ = QUESTIONS[kind]

    async def main() -> None:
        async with open_aio_channel(ChannelConfig(address="127.0.0.1:9")) as channel:
            await question(good, Caller())(QueryEmbedder(channel, 20.0))  # type: ignore[arg-type]

    with pytest.raises(errors.ServiceUnavailable) as caught:
        asyncio.run(main())
    assert caught.value.message == (
        "the search service does not reach its embedder, which queries by image and text need "
        "(--embedder-address of `shoal serve search`): connection refused"
    )
