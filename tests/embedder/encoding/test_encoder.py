"""An encoder: its towers and its self-test, with the real model and with graphs that answer so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from encoders import mixed_encoder, other_encoder

from embedder.encoding import encoder as module
from embedder.encoding.artefact import (
    Artefact,
    bundled_artefact,
    load_any_artefact,
    self_test_images,
)
from embedder.encoding.encoder import Encoder
from embedder.encoding.runtime import RuntimeConfig
from embedder.images.limits import ImageLimits
from embedder.images.preprocess import decode
from shoal.errors import ArtefactError, SelfTestFailed, Unsupported

CPU = RuntimeConfig()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """The encoder that ships with Shoal."""
    return Encoder.open(None, CPU)


def test_encoder_gives_unit_vectors_and_says_who_it_is(encoder: Encoder) -> None:
    """A batch gives one float32 row of length 1 per image; name and dim are the manifest's."""
    pixels = np.stack(self_test_images(encoder.artefact))
    vectors = encoder.embed([pixels])
    assert vectors.shape == (len(pixels), encoder.dim)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert (encoder.name, encoder.dim) == ("efficientnet-lite0", 1280)
    assert encoder.provider == "CPUExecutionProvider"
    assert len(encoder.fingerprint) == 64


@pytest.mark.parametrize("threads", [1, 2])
def test_encoder_batch_equals_singles(encoder: Encoder, images: object, threads: int) -> None:
    """An image's vector is the same in a batch of 1 and of 26, within 1e-5 per component."""
    spec, limits = encoder.preprocessings[0], ImageLimits()
    data = [images.china, images.flower, *images.digits]  # type: ignore[attr-defined]
    pixels = np.stack([decode(each, limits=limits, spec=spec) for each in data])
    other = Encoder.open(None, RuntimeConfig(threads=threads))
    together = other.embed([pixels])
    alone = np.concatenate([encoder.embed([pixels[i : i + 1]]) for i in range(len(pixels))])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_encoder_refuses_a_damaged_artefact(tmp_path: Path) -> None:
    """One flipped byte in the weights is found before the graph is opened."""
    directory = tmp_path / "encoder"
    shutil.copytree(bundled_artefact(), directory)
    weights = directory / "image.onnx"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtefactError, match="sha256"):
        Encoder.open(directory, CPU)


def test_encoder_self_test_finds_a_wrong_model(encoder: Encoder) -> None:
    """A session that answers with other vectors than the reference fails the self-test."""

    class Rotated:
        provider = "CPUExecutionProvider"
        inputs = ("pixels",)
        outputs = ("embedding",)

        def run(self, feeds: dict[str, np.ndarray], output: str) -> np.ndarray:
            del output
            return np.roll(encoder.embed([feeds["pixels"]]), 1, axis=1)

    wrong = Encoder(encoder.artefact, [Rotated()])
    with pytest.raises(SelfTestFailed):
        wrong.self_test()


def test_encoder_refuses_a_graph_with_other_tensors(encoder: Encoder) -> None:
    """A graph whose input or output is not the manifest's is refused when it is loaded."""

    class Other:
        provider = "CPUExecutionProvider"
        inputs = ("image",)
        outputs = ("embedding",)

        def run(self, feeds: dict[str, np.ndarray], output: str) -> np.ndarray:
            raise NotImplementedError

    with pytest.raises(ArtefactError, match="expected a graph with input and output"):
        Encoder(encoder.artefact, [Other()])


class Graph:
    """An image graph whose vectors are ``answer`` of the pixels."""

    provider = "none"
    inputs = ("pixels",)
    outputs = ("embedding",)

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray]) -> None:
        self._answer = answer

    def run(self, feeds: dict[str, np.ndarray], output: str) -> np.ndarray:
        assert output == "embedding"
        return self._answer(feeds["pixels"])


def along(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    """One vector for every image: along this axis, float64 and in Fortran's order."""

    def answer(pixels: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(pixels), 1280))
        rows[:, axis] = 1
        return np.asfortranarray(rows)

    return answer


def references(artefact: Artefact) -> Graph:
    """A graph that gives the reference vectors of the first part."""
    cases = artefact.parts[0].manifest.self_test
    return Graph(lambda _: np.stack([case.reference() for case in cases]))


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """A mix of the bundled encoder and of a variant of it."""
    root = tmp_path_factory.mktemp("mix")
    parts = (bundled_artefact(), other_encoder(root / "other", name="other"))
    return load_any_artefact(mixed_encoder(root / "mix", parts))


PIXELS = np.zeros((2, 224, 224, 3), np.uint8)


def test_vectors_are_float32_and_contiguous(encoder: Encoder) -> None:
    """Whatever the graph gives; of one part they are its own."""
    alone = Encoder(encoder.artefact, [Graph(along(3))])
    vectors = alone.embed([PIXELS])
    assert (vectors.dtype, vectors.shape) == (np.float32, (2, 1280))
    assert vectors.flags.c_contiguous
    np.testing.assert_array_equal(vectors, along(3)(PIXELS))


def test_mix_is_its_parts_side_by_side_and_of_length_one(mix: Artefact) -> None:
    """In order, each scaled by the root of their number; each part gets its own pixels."""
    seen: list[np.ndarray] = []

    def noting(axis: int) -> Graph:
        def answer(pixels: np.ndarray) -> np.ndarray:
            seen.append(pixels)
            return along(axis)(pixels)

        return Graph(answer)

    both = Encoder(mix, [noting(0), noting(5)])
    first, second = PIXELS, PIXELS + 1
    vectors = both.embed([first, second])
    assert (vectors.dtype, vectors.shape, both.dim) == (np.float32, (2, 2560), 2560)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[:, [0, 1285]], 0.5**0.5, atol=1e-6)
    assert np.count_nonzero(vectors) == 4
    assert [pixels is each for pixels, each in zip(seen, (first, second), strict=True)] == [
        True
    ] * 2
    specs = [part.manifest.preprocessing for part in mix.parts]
    assert list(both.preprocessings) == specs
    assert (both.name, both.fingerprint, both.provider) == ("mix", mix.fingerprint, "none")


def test_every_part_has_a_session_and_pixels(mix: Artefact) -> None:
    """Neither more nor fewer."""
    for sessions in ([Graph(along(0))], [Graph(along(0))] * 3):
        with pytest.raises(ValueError, match="zip"):
            Encoder(mix, sessions)
    both = Encoder(mix, [Graph(along(0))] * 2)
    with pytest.raises(ValueError, match="zip"):
        both.embed([PIXELS])


class Text:
    """A text tower that makes one vector of all texts, or fails its self-test."""

    def __init__(self, *, sound: bool = True) -> None:
        self._sound = sound

    def embed(self, texts: list[str]) -> np.ndarray:
        return np.ones((len(texts), 1280), np.float32)

    def self_test(self) -> None:
        if not self._sound:
            msg = "texts"
            raise SelfTestFailed(msg, encoder="tower")


def test_texts_need_a_text_tower(encoder: Encoder) -> None:
    """Without one it says so, with its name."""
    assert not encoder.has_text
    with pytest.raises(Unsupported) as told:
        encoder.embed_texts(["a dog"])
    message = "encoder efficientnet-lite0 has no text tower: it embeds images only"
    assert (told.value.message, told.value.metadata["encoder"]) == (message, "efficientnet-lite0")
    of_both = Encoder(encoder.artefact, [Graph(along(0))], text=Text())  # type: ignore[arg-type]
    assert of_both.has_text
    assert of_both.embed_texts(["a", "b"]).shape == (2, 1280)


def test_self_test_is_of_every_tower(mix: Artefact, encoder: Encoder) -> None:
    """The second part of a mix and the text tower too; it names the encoder, not the part."""
    sound, wrong = references(mix), Graph(along(0))
    Encoder(mix, [sound, sound]).self_test()
    text: Any = Text(sound=False)
    for ill in (
        Encoder(mix, [wrong, sound]),
        Encoder(mix, [sound, wrong]),
        Encoder(encoder.artefact, [sound], text=text),
    ):
        with pytest.raises(SelfTestFailed) as told:
            ill.self_test()
        assert told.value.metadata["encoder"] == ill.name
    Encoder(encoder.artefact, [sound], text=Text()).self_test()  # type: ignore[arg-type]


def test_encoder_is_opened_with_its_precision_and_tested(
    encoder: Encoder, mix: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part's graph, in float16 where it was exported so; wrong vectors open no encoder."""
    opened: list[tuple[Path, RuntimeConfig, bool]] = []
    answers = references(mix)

    def open_session(graph: Path, config: RuntimeConfig, *, half: bool) -> Graph:
        opened.append((graph, config, half))
        return answers

    monkeypatch.setattr(module, "OnnxSession", open_session)
    made = Encoder.of(mix, CPU)
    assert opened == [(part.image_model, CPU, False) for part in mix.parts]
    assert not made.has_text
    (part,) = encoder.artefact.parts
    manifest = part.manifest.model_copy(update={"precision": "float16"})
    half = type(part)(part.directory, manifest)
    Encoder.of(half, CPU)
    assert opened[-1] == (part.image_model, CPU, True)
    answers = Graph(along(0))
    with pytest.raises(SelfTestFailed):
        Encoder.of(mix, CPU)


def test_text_tower_is_opened_for_an_encoder_and_not_for_a_mix(
    encoder: Encoder, mix: Artefact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mix of CLIPs has as many text towers, and none of them speaks for it."""
    asked: list[object] = []

    def open_text(artefact: object, config: RuntimeConfig) -> Text:
        asked.append((artefact, config))
        return Text()

    monkeypatch.setattr(module, "TextTower", SimpleNamespace(open=open_text))
    monkeypatch.setattr(module, "OnnxSession", lambda *_, **__: references(mix))
    assert Encoder.of(encoder.artefact, CPU).has_text
    assert not Encoder.of(mix, CPU).has_text
    assert asked == [(encoder.artefact, CPU)]


def test_graph_of_a_part_must_have_its_tensors(mix: Artefact) -> None:
    """The second one's too; its file is named."""
    other = Graph(along(0))
    other.outputs = ("other",)
    with pytest.raises(ArtefactError, match=r"other/image\.onnx: expected a graph with input and"):
        Encoder(mix, [Graph(along(0)), other])
