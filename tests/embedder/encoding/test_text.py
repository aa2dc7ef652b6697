"""The text tower: a graph and a tokenizer that answer as told."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from embedder.encoding.manifest import TextCase, TextSpec
from embedder.encoding.text import TextTower
from shoal.errors import ArtefactError, SelfTestFailed

Float32 = npt.NDArray[np.float32]
TEXTS = ("a dog", "two cats")
ROWS = np.eye(4, dtype=np.float32)[:2]


def case(text: str, vector: Float32) -> TextCase:
    return TextCase(
        text=text,
        tokens=tuple(Letters().encode([text])[0].tolist()),
        embedding_b64=base64.b64encode(vector.tobytes()).decode(),
        min_cosine=0.95,
    )


class Letters:
    """Tokens are the codes of the first four letters."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        return np.array([[*text.encode()[:4]] for text in texts], np.int64)


class Graph:
    """Knows the vectors of two texts, changed by ``change``."""

    inputs: tuple[str, ...] = ("tokens",)
    outputs: tuple[str, ...] = ("text_embedding",)

    def __init__(self, change: Callable[[Float32], Any] = lambda rows: rows) -> None:
        self._change = change
        self.asked: list[tuple[Any, str]] = []

    def run(self, feeds: dict[str, Any], output: str) -> Any:
        self.asked.append((feeds, output))
        known = {tuple(row): at for at, row in enumerate(Letters().encode(TEXTS).tolist())}
        (tokens,) = feeds.values()
        return self._change(np.stack([ROWS[known[tuple(row)]] for row in tokens.tolist()]))


class Artefact:
    """What a tower wants to know of its artefact."""

    name, dim, text_model = "clip", 4, "text.onnx"


SPEC = TextSpec(
    input="tokens",
    output="text_embedding",
    context_length=4,
    pad_id=0,
    clean="none",
    self_test=tuple(case(text, row) for text, row in zip(TEXTS, ROWS, strict=True)),
)


def tower(graph: Graph, spec: TextSpec = SPEC) -> TextTower:
    return TextTower(Artefact(), spec, graph, Letters())  # type: ignore[arg-type]


def test_texts_become_tokens_and_tokens_vectors() -> None:
    """By the names of the manifest, in order; float32 and contiguous whatever the graph gives."""
    graph = Graph(lambda rows: np.asfortranarray(rows.astype(np.float64)))
    vectors = tower(graph).embed([TEXTS[1], TEXTS[0]])
    np.testing.assert_array_equal(vectors, ROWS[::-1])
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    ((feeds, output),) = graph.asked
    assert (list(feeds), output) == (["tokens"], "text_embedding")


@pytest.mark.parametrize(("field", "names"), [("inputs", ("ids",)), ("outputs", ("x", "y"))])
def test_graph_must_have_the_manifests_names(field: str, names: tuple[str, ...]) -> None:
    """One input, one output, called as it says."""
    graph = Graph()
    setattr(graph, field, names)
    with pytest.raises(
        ArtefactError, match=r"text\.onnx: expected a graph with input 'tokens' and"
    ):
        tower(graph)


def test_self_test_passes_what_is_near_enough() -> None:
    """A cosine above the case's bound; a length within a thousandth of 1."""
    tower(Graph()).self_test()
    tower(Graph(lambda rows: rows * np.float32(1.0009))).self_test()

    def turned(rows: Float32) -> Float32:
        made = rows + np.float32(0.2) * np.roll(rows, 1, axis=1)
        unit: Float32 = made / np.linalg.norm(made, axis=1, keepdims=True)
        return unit

    tower(Graph(turned)).self_test()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[::-1], "text 'a dog': expected unit length and cosine >= 0.95"),
        (lambda rows: np.stack([rows[0], rows[0]]), "text 'two cats': expected unit length and"),
        (lambda rows: rows * 1.002, "got length 1.00"),
        (lambda rows: rows * 0.998, "got length 0.99"),
        (lambda rows: rows * np.nan, "got length nan"),
        (lambda rows: rows[:, :3], r"expected \(2, 4\), got \(2, 3\)"),
        (lambda rows: rows[:1], r"expected \(2, 4\), got \(1, 4\)"),
    ],
)
def test_self_test_notices(change: Callable[[Float32], Any], told: str) -> None:
    """A wrong vector, of whichever text, and one of another length or shape."""
    with pytest.raises(SelfTestFailed, match=told) as caught:
        tower(Graph(change)).self_test()
    assert caught.value.message.startswith("encoder clip")
    assert caught.value.metadata["encoder"] == "clip"


def test_self_test_notices_another_tokenizer() -> None:
    """Tokens that are not the reference's, before their vectors are looked at."""
    (first, second) = SPEC.self_test
    other = second.model_copy(update={"tokens": (*second.tokens[:3], 7)})
    spec = SPEC.model_copy(update={"self_test": (first, other)})
    graph = Graph()
    with pytest.raises(SelfTestFailed, match="text 'two cats': the tokens are not the reference's"):
        tower(graph, spec).self_test()
    assert graph.asked == []
