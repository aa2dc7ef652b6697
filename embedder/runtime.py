"""ONNX Runtime, and nothing else of ours: the one module that imports it.

Owns the choice of provider and threads. Knows no artefact and no image: a graph with one input
and one output, arrays in and out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

    @property
    def on_cpu(self) -> bool:
        """True when the cores that decode also run the model."""
        return self.provider == "cpu"


class Session:
    """An open graph. Thread-safe: runs may overlap."""

    def __init__(self, graph: Path, config: RuntimeConfig) -> None:
        """Open ``graph`` with the provider that ``config`` asks for, and no other in its place.

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
        settings = {} if config.on_cpu else {"device_id": config.device}
        try:
            self._session: Any = ort.InferenceSession(
                graph, options, providers=[(self.provider, settings)]
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

        Raises:
            OperatorError: the run failed (memory, driver, a shape that the graph refuses).
        """
        try:
            (result,) = self._session.run([output], feeds)
        except Exception as exc:  # its exceptions have no common base
            msg = f"inference failed on {self.provider}: {_first_line(exc)}"
            raise OperatorError(msg, provider=self.provider) from exc
        return np.asarray(result)


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
