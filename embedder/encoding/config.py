"""Where and how graphs run: provider, threads, device. Light: ``--help`` imports this module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from annotated_types import Ge

from shoal.errors import ConfigError
from shoal.settings import Setting, check_ranges

Provider = Literal["cpu", "cuda", "tensorrt", "openvino", "coreml", "directml"]

PROVIDERS: Final[dict[Provider, str]] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
"""Names in settings to ONNX Runtime's own."""
ON_GPU: Final[tuple[Provider, ...]] = ("cuda", "tensorrt", "directml")
"""The providers that run on a GPU and nowhere else."""

_STEP: Final = 8
"""Rows from one size of batch on a GPU to the next."""


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Where and how a graph runs.

    Raises:
        ConfigError: a value is out of range, or a GPU is required and the provider has none.
    """

    provider: Provider = "cpu"
    """What runs the models. Shoal never falls back to another provider."""
    device: Annotated[int, Ge(0)] = 0
    """The number of the GPU."""
    require_gpu: Annotated[bool, Setting("--require-gpu/--no-require-gpu")] = False
    """Refuse to start with a provider that runs on no GPU. The GPU image sets it, so that a
    forgotten setting wastes no GPU."""
    threads: Annotated[int, Ge(0)] = 1
    """Threads of one run of a model on a CPU; 0 is one per core. One thread, with as many runs at
    the same time as cores, is never slower where there are enough callers.

    A single thread also bears neighbours (decoding, the store, the event loop) better.
    EfficientNet-Lite0, images/s on two cores, quiet | with other processes on both cores:
        batch                       1         4         8
        1 thread,  2 at a time    192 | 92  161 | 87  163 | 86
        2 threads, 1 at a time    112 | 45  111 | 50  159 | 55
    A thread pool that is denied one core spins on the other; a single thread cannot.
    """
    engine_cache: Annotated[Path | None, Setting(path="directory")] = None
    """Where TensorRT keeps the engines that it builds for one GPU. Default: nowhere; it builds
    them at each start, which takes minutes."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_ranges(self)
        if self.require_gpu and self.provider not in ON_GPU:
            wanted = ", ".join(ON_GPU)
            msg = f"provider: a GPU is required: expected one of {wanted}, got {self.provider}"
            raise ConfigError(msg, field="provider")

    @property
    def on_cpu(self) -> bool:
        """True when the cores that decode also run the model."""
        return self.provider == "cpu"

    def bucket(self, rows: int) -> int:
        """The number of rows that a batch of ``rows`` is filled up to.

        On a GPU that is the next power of two up to 8, and the next multiple of 8 beyond. Each new
        shape costs a choice of algorithms and memory that the arena keeps; each row that fills up
        costs as much as any other. With TensorRT a new shape costs an engine, which takes minutes
        to build: there it is always a power of two. A CPU takes every shape as it is.
        """
        if self.on_cpu:
            return rows
        if rows <= _STEP or self.provider == "tensorrt":
            return 1 << (rows - 1).bit_length()
        return -(-rows // _STEP) * _STEP

    @property
    def arena(self) -> str:
        """The name of the memory arena that can shrink; empty for providers without one."""
        names = {"cpu": "cpu:0", "cuda": f"gpu:{self.device}", "tensorrt": f"gpu:{self.device}"}
        return names.get(self.provider, "")

    def options(self, graph: Path, *, half: bool = False) -> dict[str, object]:
        """ONNX Runtime's options of the provider for ``graph``; ``half``: the graph is in float16.

        Arenas grow by the size that is needed: if they doubled, an odd batch would take half of a
        GPU for good. TensorRT computes in float16 only if the graph was exported and measured in
        float16: other vectors are another encoder's.
        """
        match self.provider:
            case "cpu":
                return {}
            case "cuda":
                return {
                    "device_id": self.device,
                    "arena_extend_strategy": "kSameAsRequested",
                    "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE: seconds for each shape
                    "do_copy_in_default_stream": True,
                }
            case "tensorrt":
                # An engine belongs to one graph: two graphs of one name must not share it.
                cache = self.engine_cache and self.engine_cache / _identity(graph)
                return {
                    "device_id": self.device,
                    "trt_fp16_enable": half,
                    **(
                        {
                            "trt_engine_cache_enable": True,
                            "trt_engine_cache_path": str(cache),
                            "trt_timing_cache_enable": True,
                            "trt_timing_cache_path": str(cache),
                        }
                        if cache
                        else {}
                    ),
                }
            case _:
                return {"device_id": self.device}


def _identity(graph: Path) -> str:
    """A name for the file ``graph`` that changes when the file does."""
    facts = graph.stat()
    return f"{graph.parent.name}-{facts.st_size:x}-{facts.st_mtime_ns:x}"
