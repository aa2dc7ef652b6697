"""Where and how graphs run: provider, threads, device. Light: ``--help`` imports this module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shoal.errors import ConfigError

PROVIDERS: Final = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
"""Names in settings to ONNX Runtime's own."""
ON_GPU: Final = ("cuda", "tensorrt", "directml")
"""Those that run on a GPU and nowhere else."""

_STEP: Final = 8
"""Rows from one size of batch on a GPU to the next."""


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Where and how a graph runs.

    Raises:
        ConfigError: the provider is unknown, or the number of threads negative.
    """

    provider: str = "cpu"
    """One of ``PROVIDERS``."""
    threads: int = 1
    """Threads inside one run of the model on a CPU; 0 is one per core.

    One, with as many runs at the same time as cores, because that is never slower and bears
    neighbours (decoding, the store, the event loop) better. EfficientNet-Lite0, images/s on two
    cores, quiet | with other processes on both cores:
        batch                       1         4         8
        1 thread,  2 at a time    192 | 92  161 | 87  163 | 86
        2 threads, 1 at a time    112 | 45  111 | 50  159 | 55
    A thread pool that is denied one core spins on the other; a single thread cannot.
    """
    device: int = 0
    """Which GPU."""
    require_gpu: bool = False
    """Refuse the CPU: set where a GPU is paid for, so that no setting forgotten wastes it."""
    engine_cache: Path | None = None
    """Where TensorRT keeps the engines that it builds for one GPU; None builds them anew at each
    start, which takes minutes."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.provider not in PROVIDERS:
            known = ", ".join(PROVIDERS)
            msg = f"provider: expected one of {known}, got {self.provider!r}"
            raise ConfigError(msg, field="provider")
        if self.threads < 0 or self.device < 0:
            msg = (
                "threads and device: expected 0 or more, "
                f"got threads {self.threads}, device {self.device}"
            )
            raise ConfigError(msg, field="threads")
        if self.require_gpu and self.provider not in ON_GPU:
            wanted = ", ".join(ON_GPU)
            msg = f"provider: a GPU is required: expected one of {wanted}, got {self.provider}"
            raise ConfigError(msg, field="provider")

    @property
    def on_cpu(self) -> bool:
        """True when the cores that decode also run the model."""
        return self.provider == "cpu"

    def bucket(self, rows: int) -> int:
        """How many rows a batch of ``rows`` is run with.

        On a GPU the next power of two up to 8, and from there the next multiple of 8: each new
        shape costs memory that the arena keeps and a choice of algorithms, and each row that only
        fills up costs as much as one that is asked for. With TensorRT it costs an engine, minutes
        to build: always a power of two. A CPU takes any shape alike.
        """
        if self.on_cpu:
            return rows
        if rows <= _STEP or self.provider == "tensorrt":
            return 1 << (rows - 1).bit_length()
        return -(-rows // _STEP) * _STEP

    @property
    def arena(self) -> str:
        """The name of the arena that can be told to shrink; empty for providers without one."""
        names = {"cpu": "cpu:0", "cuda": f"gpu:{self.device}", "tensorrt": f"gpu:{self.device}"}
        return names.get(self.provider, "")

    def options(self, graph: Path, *, half: bool = False) -> dict[str, object]:
        """What ONNX Runtime is told of the provider, for ``graph``; ``half``: it is in float16.

        The arenas grow by what is asked for and not by doubling, or an odd batch takes half of
        a GPU for good. TensorRT computes in float16 only what was exported and measured so: other
        vectors are another encoder's.
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
                # Engines are of one graph: two of one name must not share them.
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
    """A name for the file ``graph`` as it is now."""
    facts = graph.stat()
    return f"{graph.parent.name}-{facts.st_size:x}-{facts.st_mtime_ns:x}"
