"""Real ONNX Runtime sessions, and the encoder on top of them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from embedder.encoding import runtime
from embedder.encoding.artefact import bundled_artefact, load_artefact, self_test_images
from embedder.encoding.encoder import Encoder
from embedder.encoding.runtime import OnnxSession, RuntimeConfig
from embedder.images.preprocess import ImageLimits, decode
from shoal.app.bench.machine import resident_mib
from shoal.errors import ArtefactError, ConfigError, OperatorError, SelfTestFailed

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


def test_session_refuses_a_provider_that_is_not_there() -> None:
    """Asked for a GPU where there is none, a session is refused and does not use the CPU."""
    artefact = load_artefact(bundled_artefact())
    with pytest.raises(ConfigError, match="CUDAExecutionProvider was asked for"):
        OnnxSession(artefact.image_model, RuntimeConfig(provider="cuda"))


def test_session_refuses_a_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that is compiled in, and dropped when the session is made, is an error."""

    class Fallen:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    artefact = load_artefact(bundled_artefact())
    with pytest.raises(ConfigError, match="offers only CPUExecutionProvider"):
        OnnxSession(artefact.image_model, RuntimeConfig(provider="cuda"))


def test_session_without_onnxruntime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the extra is not installed, the error names the command that installs it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'shoal\[cpu\]'"):
        OnnxSession(Path("image.onnx"), CPU)


@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_session_refuses_a_file_that_is_no_graph(tmp_path: Path, content: bytes) -> None:
    """A damaged graph is an ArtefactError that names the file."""
    graph = tmp_path / "image.onnx"
    graph.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"image\.onnx"):
        OnnxSession(graph, CPU)


def test_session_gives_memory_back_when_it_was_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a large batch took stays for the next one, and goes with the first run after a pause."""
    artefact = load_artefact(bundled_artefact())
    session = OnnxSession(artefact.image_model, RuntimeConfig(threads=1))
    batch = np.zeros((64, 224, 224, 3), np.uint8)

    def run(rows: int) -> float:
        session.run({session.inputs[0]: batch[:rows]}, session.outputs[0])
        return resident_mib(os.getpid())

    before = run(1)
    after = run(64)
    assert after > before + 200
    assert run(1) > after - 50
    monkeypatch.setattr(runtime, "IDLE_S", 0.0)
    assert run(1) < before + 100


def test_session_run_maps_its_errors(encoder: Encoder) -> None:
    """Pixels of a shape that the graph refuses are an OperatorError, with the runtime's cause."""
    with pytest.raises(OperatorError, match="inference failed on CPUExecutionProvider") as caught:
        encoder.embed([np.zeros((1, 7, 7, 3), dtype=np.uint8)])
    assert caught.value.__cause__ is not None


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


def test_session_answers_what_it_was_asked_in_a_batch_that_was_filled_up(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that fill a batch up change no vector and are not answered."""
    pixels = np.stack(self_test_images(encoder.artefact))
    assert len(pixels) == 3
    session = OnnxSession(load_artefact(bundled_artefact()).image_model, CPU)
    ran: list[int] = []
    run = session._session.run

    class Counting:
        def run(self, outputs: object, feeds: dict[str, np.ndarray], _: object) -> object:
            ran.append(len(feeds["pixels"]))
            return run(outputs, feeds)

    session._session = Counting()
    monkeypatch.setattr(RuntimeConfig, "bucket", lambda _, rows: 1 << (rows - 1).bit_length())
    padded = session.run({"pixels": pixels}, "embedding")
    assert ran == [4]
    np.testing.assert_allclose(padded, encoder.embed([pixels]), atol=1e-5)
