"""Where and how a graph runs: what may be said, and what ONNX Runtime is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from embedder.encoding.config import ON_GPU, PROVIDERS, RuntimeConfig
from shoal.errors import ConfigError

CPU = RuntimeConfig()


def test_runs_on_the_cpu_in_one_thread_by_default() -> None:
    """Nothing else is asked for."""
    assert (CPU.provider, CPU.threads, CPU.device) == ("cpu", 1, 0)
    assert (CPU.require_gpu, CPU.engine_cache, CPU.on_cpu) == (False, None, True)
    assert not any(RuntimeConfig(provider=name).on_cpu for name in PROVIDERS if name != "cpu")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"provider": "abacus"}, "provider"),
        ({"threads": -1}, "threads"),
        ({"device": -1}, "device"),
        ({"require_gpu": True}, "provider"),
        ({"require_gpu": True, "provider": "openvino"}, "provider"),
        ({"require_gpu": True, "provider": "coreml"}, "provider"),
    ],
)
def test_what_cannot_be_is_refused(bad: dict[str, Any], field: str) -> None:
    """An unknown provider or a negative number is found before anything is loaded."""
    with pytest.raises(ConfigError, match=f"^{field}: ") as told:
        RuntimeConfig(**bad)
    assert told.value.metadata["field"] == field


def test_gpu_that_is_required_may_be_any() -> None:
    """The message of the refusal names them."""
    for provider in ON_GPU:
        RuntimeConfig(provider=provider, require_gpu=True)
    with pytest.raises(ConfigError, match="a GPU is required: expected one of cuda, tensorrt, dir"):
        RuntimeConfig(require_gpu=True)


def test_gpu_batches_are_run_in_a_few_sizes() -> None:
    """On a GPU a batch is filled up, to a power of two or a multiple of 8; on a CPU never."""
    gpu, tensorrt = RuntimeConfig(provider="cuda"), RuntimeConfig(provider="tensorrt")
    rows = (1, 2, 3, 5, 8, 9, 16, 17, 33, 64)
    assert [gpu.bucket(n) for n in rows] == [1, 2, 4, 8, 8, 16, 16, 24, 40, 64]
    assert [tensorrt.bucket(n) for n in rows] == [1, 2, 4, 8, 8, 16, 16, 32, 64, 64]
    assert [CPU.bucket(n) for n in rows] == list(rows)


def test_arena_is_the_devices() -> None:
    """TensorRT shares CUDA's; others have none that is known."""
    assert CPU.arena == "cpu:0"
    assert RuntimeConfig(provider="cuda", device=1).arena == "gpu:1"
    assert RuntimeConfig(provider="tensorrt", device=2).arena == "gpu:2"
    assert RuntimeConfig(provider="directml", device=1).arena == ""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A file, as far as a name for it needs one."""
    file = tmp_path / "clip" / "image.onnx"
    file.parent.mkdir()
    file.write_bytes(b"graph")
    return file


def test_cuda_takes_as_much_memory_as_it_needs(graph: Path) -> None:
    """Arenas grow by what is asked for; the device is the one that was named."""
    assert RuntimeConfig(provider="cuda", device=1).options(graph) == {
        "device_id": 1,
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "do_copy_in_default_stream": True,
    }
    assert RuntimeConfig(provider="directml", device=3).options(graph) == {"device_id": 3}
    assert CPU.options(graph) == {}


def test_tensorrt_computes_in_float16_what_was_exported_so(graph: Path) -> None:
    """And nothing else: other vectors are another encoder's."""
    config = RuntimeConfig(provider="tensorrt", device=1)
    assert config.options(graph) == {"device_id": 1, "trt_fp16_enable": False}
    assert config.options(graph, half=True) == {"device_id": 1, "trt_fp16_enable": True}


def test_tensorrt_keeps_engines_by_graph(graph: Path, tmp_path: Path) -> None:
    """Where it is told; a file that changes gets engines of its own, one that does not its own."""
    cache = tmp_path / "cache"
    config = RuntimeConfig(provider="tensorrt", engine_cache=cache)
    options = config.options(graph)
    place = Path(str(options["trt_engine_cache_path"]))
    assert place.parent == cache
    assert place.name.startswith("clip-5-")
    assert options["trt_timing_cache_path"] == str(place)
    assert options["trt_engine_cache_enable"] is options["trt_timing_cache_enable"] is True
    assert config.options(graph) == options
    facts = graph.stat()
    os.utime(graph, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert config.options(graph) != options
    os.utime(graph, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert config.options(graph) == options
    graph.write_bytes(b"longer graph")
    os.utime(graph, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert config.options(graph) != options
