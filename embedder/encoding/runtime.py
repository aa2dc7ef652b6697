"""ONNX Runtime, and nothing else of ours: the one module that imports it.

Owns the choice of provider and threads. Knows no artefact and no image: a graph with one input
and one output, arrays in and out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from shoal.errors import ArtefactError, ConfigError, OperatorError

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

BREAKS_IN_FLOAT16: Final = "NchwcTransformer"
"""An optimisation of convolutions on CPUs: on some in float16 it kills the process (1.32)."""

IDLE_S: Final = 10.0
"""Seconds without a run after which the next one gives memory back."""

_STEP: Final = 8
"""Rows from one size of batch on a GPU to the next."""

_QUIET: Final = 3  # errors only: its warnings are about graph optimisations, not about us


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


class OnnxSession:
    """An open graph. Thread-safe: runs may overlap."""

    def __init__(self, graph: Path, config: RuntimeConfig, *, half: bool = False) -> None:
        """Open ``graph`` with the provider that ``config`` asks for, and no other in its place.

        ``half``: the graph computes in float16.

        Raises:
            ConfigError: ONNX Runtime is not installed, or lacks the provider, or fell back.
            ArtefactError: the file is not a graph that it can load.
        """
        ort = _onnxruntime()
        self.provider = PROVIDERS[config.provider]
        available = ort.get_available_providers()
        if self.provider not in available:
            raise _no_provider(self.provider, available)
        options = ort.SessionOptions()
        options.intra_op_num_threads = config.threads
        options.inter_op_num_threads = 1  # an image encoder is one chain of operators
        options.log_severity_level = _QUIET
        self._config = config
        self._ran_at = time.monotonic()
        self._giving_back: Any = None
        if arena := config.arena:
            self._giving_back = ort.RunOptions()
            self._giving_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)
        try:
            self._session: Any = ort.InferenceSession(
                graph,
                options,
                providers=_providers(self.provider, config, graph, half=half),
                disabled_optimizers=[BREAKS_IN_FLOAT16] if half and config.on_cpu else [],
            )
        except Exception as exc:  # its exceptions have no common base
            msg = f"{graph}: expected a graph that ONNX Runtime can load, got {_first_line(exc)}"
            raise ArtefactError(msg, file=str(graph)) from exc
        # Without its driver or libraries a provider is dropped with no more than a log line, and
        # the CPU silently serves in its place (onnxruntime#23372).
        got = self._session.get_providers()
        if not got or got[0] != self.provider:
            raise _no_provider(self.provider, got)
        self.inputs: tuple[str, ...] = tuple(node.name for node in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(node.name for node in self._session.get_outputs())

    def run(self, feeds: dict[str, npt.NDArray[np.generic]], output: str) -> npt.NDArray[Any]:
        """The array ``output`` of one run; blocks, without holding the GIL.

        The arenas keep what the largest batch took, which the next one needs again; the first run
        after IDLE_S without one (the canary's, if nobody comes) gives back what it does not need.

        Raises:
            OperatorError: the run failed (memory, driver, a shape that the graph refuses).
        """
        rows = len(next(iter(feeds.values())))
        wanted = self._config.bucket(rows)
        if wanted != rows:
            feeds = {name: _padded(array, wanted) for name, array in feeds.items()}
        before, self._ran_at = self._ran_at, time.monotonic()
        idle = self._ran_at - before >= IDLE_S
        try:
            (result,) = self._session.run([output], feeds, self._giving_back if idle else None)
        except Exception as exc:  # its exceptions have no common base
            msg = f"inference failed on {self.provider}: {_first_line(exc)}"
            raise OperatorError(msg, provider=self.provider) from exc
        return np.asarray(result)[:rows]


def _padded(array: npt.NDArray[np.generic], rows: int) -> npt.NDArray[np.generic]:
    """``array`` with zeros after it, ``rows`` rows in all."""
    padded = np.zeros((rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def _providers(
    provider: str, config: RuntimeConfig, graph: Path, *, half: bool
) -> list[tuple[str, dict[str, object]]]:
    """What the session may use. TensorRT leaves to CUDA the operators that it has not."""
    chosen = [(provider, config.options(graph, half=half))]
    if config.provider == "tensorrt":
        cuda = replace(config, provider="cuda")
        chosen.append((PROVIDERS["cuda"], cuda.options(graph, half=half)))
    return chosen


def _identity(graph: Path) -> str:
    """A name for the file ``graph`` as it is now."""
    facts = graph.stat()
    return f"{graph.parent.name}-{facts.st_size:x}-{facts.st_mtime_ns:x}"


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime  # noqa: PLC0415 - an extra: a server without an embedder lacks it
    except ImportError as exc:
        msg = "ONNX Runtime is not installed: run `pip install 'shoal[cpu]'`"
        raise ConfigError(msg, package="onnxruntime") from exc
    return onnxruntime  # type: ignore[no-any-return]


def _no_provider(wanted: str, got: Sequence[str]) -> ConfigError:
    msg = (
        f"provider {wanted} was asked for, and ONNX Runtime offers only {', '.join(got)}: "
        "install the build for this device and check its driver, or choose another provider"
    )
    return ConfigError(msg, field="provider", provider=wanted)


def _first_line(exc: Exception) -> str:
    return str(exc).strip().partition("\n")[0] or type(exc).__name__
