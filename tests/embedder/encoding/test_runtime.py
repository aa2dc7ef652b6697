"""ONNX Runtime sessions: real ones, and what the runtime is told."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from embedder.encoding import runtime
from embedder.encoding.artefact import bundled_artefact, load_artefact, self_test_images
from embedder.encoding.encoder import Encoder
from embedder.encoding.runtime import PROVIDERS, OnnxSession, RuntimeConfig
from shoal.app.bench.machine import resident_mib
from shoal.errors import ArtefactError, ConfigError, OperatorError

CPU = RuntimeConfig()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """The encoder that ships with Shoal."""
    return Encoder.open(None, CPU)


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
    expected = encoder.embed([pixels])
    monkeypatch.setattr(RuntimeConfig, "bucket", lambda _, rows: 1 << (rows - 1).bit_length())
    padded = session.run({"pixels": pixels}, "embedding")
    assert ran == [4]
    assert padded.shape == expected.shape
    np.testing.assert_allclose(padded, expected, atol=1e-5)


class Runtime:
    """ONNX Runtime as far as a session uses it: notes what it is told, and answers with ones."""

    def __init__(self, *offered: str) -> None:
        self.offered = list(offered)
        self.opened: list[tuple[Any, Any, dict[str, Any]]] = []
        self.runs: list[tuple[Any, Any, Any]] = []
        self.failure: Exception | None = None
        runtime = self

        class InferenceSession:
            def __init__(self, graph: Path, options: Any, **named: Any) -> None:
                runtime.opened.append((graph, options, named))
                self.providers = [name for name, _ in named["providers"]]

            def get_providers(self) -> list[str]:
                return [*self.providers, "CPUExecutionProvider"]

            def get_inputs(self) -> list[Any]:
                return [SimpleNamespace(name="a"), SimpleNamespace(name="b")]

            def get_outputs(self) -> list[Any]:
                return [SimpleNamespace(name="y")]

            def run(self, outputs: Any, feeds: Any, options: Any) -> list[np.ndarray]:
                runtime.runs.append((outputs, feeds, options))
                if runtime.failure is not None:
                    raise runtime.failure
                return [np.ones((len(next(iter(feeds.values()))), 2))]

        class RunOptions:
            def __init__(self) -> None:
                self.entries: dict[str, str] = {}

            def add_run_config_entry(self, name: str, value: str) -> None:
                self.entries[name] = value

        self.InferenceSession, self.RunOptions = InferenceSession, RunOptions
        self.SessionOptions = SimpleNamespace

    def get_available_providers(self) -> list[str]:
        return self.offered


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """In the place of ONNX Runtime; it offers everything."""
    made = Runtime(*PROVIDERS.values())
    monkeypatch.setattr(runtime, "_onnxruntime", lambda: made)
    return made


GRAPH = Path("image.onnx")


def test_session_is_opened_as_it_was_configured(ort: Runtime) -> None:
    """Threads of one run, one operator at a time, and no talk about optimisations."""
    session = OnnxSession(GRAPH, RuntimeConfig(threads=3))
    ((graph, options, named),) = ort.opened
    assert graph == GRAPH
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.log_severity_level == 3
    assert named == {"providers": [("CPUExecutionProvider", {})], "disabled_optimizers": []}
    assert (session.provider, session.inputs) == ("CPUExecutionProvider", ("a", "b"))
    assert session.outputs == ("y",)


@pytest.mark.parametrize(
    ("provider", "half", "disabled"),
    [
        ("cpu", True, ["NchwcTransformer"]),
        ("cpu", False, []),
        ("cuda", True, []),
        ("cuda", False, []),
    ],
)
def test_optimisation_that_breaks_in_float16_is_off_there(
    ort: Runtime,
    provider: Any,
    half: bool,  # noqa: FBT001 - a column of the table
    disabled: list[str],
) -> None:
    """On a CPU, and for graphs in float16 only."""
    OnnxSession(GRAPH, RuntimeConfig(provider=provider), half=half)
    assert ort.opened[0][2]["disabled_optimizers"] == disabled


def test_cuda_runs_what_tensorrt_does_not_have(ort: Runtime, tmp_path: Path) -> None:
    """Each with its own options; any other provider is alone."""
    config = RuntimeConfig(provider="tensorrt", device=2)
    session = OnnxSession(tmp_path, config, half=True)
    cuda = replace(config, provider="cuda")
    assert ort.opened[0][2]["providers"] == [
        ("TensorrtExecutionProvider", config.options(tmp_path, half=True)),
        ("CUDAExecutionProvider", cuda.options(tmp_path)),
    ]
    assert session.provider == "TensorrtExecutionProvider"
    OnnxSession(tmp_path, cuda)
    assert ort.opened[1][2]["providers"] == [("CUDAExecutionProvider", cuda.options(tmp_path))]


def test_session_without_any_provider_is_refused(ort: Runtime) -> None:
    """A list that came back empty is a fallback too."""
    ort.InferenceSession.get_providers = lambda _: []  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="provider CPUExecutionProvider was asked for") as told:
        OnnxSession(GRAPH, CPU)
    assert told.value.metadata["field"] == "provider"
    assert told.value.metadata["provider"] == "CPUExecutionProvider"


@pytest.mark.parametrize(("provider", "arena"), [("cpu", "cpu:0"), ("cuda", "gpu:0")])
def test_run_after_a_pause_gives_memory_back(
    ort: Runtime, provider: Any, arena: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one ten seconds after the last began, and no other; by the provider's arena."""
    now = 100.0
    monkeypatch.setattr(runtime.time, "monotonic", lambda: now)
    session = OnnxSession(GRAPH, RuntimeConfig(provider=provider))
    feeds: dict[str, Any] = {"a": np.zeros((2, 3))}
    expected = []
    for now, gives in (  # noqa: B007 - the clock gives it
        (109.9, False),
        (119.8, False),
        (129.8, True),
        (129.9, False),
        (140.0, True),
    ):
        session.run(feeds, "y")
        expected.append({"memory.enable_memory_arena_shrinkage": arena} if gives else None)
    assert [options and options.entries for _, _, options in ort.runs] == expected


def test_provider_without_an_arena_is_told_nothing(
    ort: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the pause was."""
    session = OnnxSession(GRAPH, RuntimeConfig(provider="directml"))
    monkeypatch.setattr(runtime, "IDLE_S", -1.0)
    session.run({"a": np.zeros((2, 3))}, "y")
    assert ort.runs[0][2] is None


def test_batch_is_filled_up_with_zeros(ort: Runtime) -> None:
    """Each input alike; the answer has the rows that were asked for, by the output's name."""
    session = OnnxSession(GRAPH, RuntimeConfig(provider="cuda"))
    feeds = {"a": np.full((3, 2), 7, np.uint8), "b": np.full((3, 1, 4), 8, np.int64)}
    answer = session.run(feeds, "y")
    assert answer.shape == (3, 2)
    ((outputs, given, _),) = ort.runs
    assert outputs == ["y"]
    assert {name: (array.shape, array.dtype) for name, array in given.items()} == {
        "a": ((4, 2), np.uint8),
        "b": ((4, 1, 4), np.int64),
    }
    np.testing.assert_array_equal(given["a"], [[7, 7], [7, 7], [7, 7], [0, 0]])
    assert feeds["a"].shape == (3, 2)


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (RuntimeError("out of memory\nand pages of advice"), "out of memory"),
        (ValueError("  blanks  "), "blanks"),
        (KeyError(), "KeyError"),
    ],
)
def test_failure_is_told_in_its_first_line(ort: Runtime, failure: Exception, told: str) -> None:
    """Or by its kind, where it has no words."""
    session = OnnxSession(GRAPH, CPU)
    ort.failure = failure
    with pytest.raises(OperatorError) as caught:
        session.run({"a": np.zeros((1, 1))}, "y")
    assert caught.value.message == f"inference failed on CPUExecutionProvider: {told}"
    assert caught.value.metadata["provider"] == "CPUExecutionProvider"
