"""Runs ONNX graphs. Only this module of the embedder imports ONNX Runtime (the exporters do too).

It knows no artefact and no image: arrays go into a graph, and an array comes out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedder.encoding.config import PROVIDERS, RuntimeConfig
from shoal.errors import ArtefactError, ConfigError, OperatorError

__all__ = ["PROVIDERS", "OnnxSession", "RuntimeConfig"]

BREAKS_IN_FLOAT16: Final = "NchwcTransformer"
"""An optimisation of convolutions on CPUs. It kills the process on some graphs in float16 (ONNX
Runtime 1.32)."""

IDLE_S: Final = 10.0
"""After this many seconds without a run, the next run gives memory back."""

_QUIET: Final = 3  # errors only: ONNX Runtime's warnings are about its own optimisations


class OnnxSession:
    """An open graph. Thread-safe: runs may overlap."""

    def __init__(self, graph: Path, config: RuntimeConfig, *, half: bool = False) -> None:
        """Opens ``graph`` with the provider that ``config`` asks for, and never with another.

        ``half``: the graph computes in float16.

        Raises:
            ConfigError: ONNX Runtime is not installed, lacks the provider, or fell back to another.
            ArtefactError: ONNX Runtime cannot load the file.
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
        # A provider without its driver or libraries is dropped with only a log line, and the CPU
        # silently takes its place (onnxruntime#23372).
        got = self._session.get_providers()
        if not got or got[0] != self.provider:
            raise _no_provider(self.provider, got)
        self.inputs: tuple[str, ...] = tuple(node.name for node in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(node.name for node in self._session.get_outputs())

    def run(self, feeds: dict[str, npt.NDArray[np.generic]], output: str) -> npt.NDArray[Any]:
        """The array ``output`` of one run; blocks, without holding the GIL.

        The arenas keep the memory of the largest batch for the next one. The first run after
        IDLE_S without a run (the self-test's, if nobody calls) gives back what it does not need.

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
    """``array`` filled up with rows of zeros to ``rows`` rows."""
    padded = np.zeros((rows, *array.shape[1:]), array.dtype)
    padded[: len(array)] = array
    return padded


def _providers(
    provider: str, config: RuntimeConfig, graph: Path, *, half: bool
) -> list[tuple[str, dict[str, object]]]:
    """The providers of a session. CUDA runs the operators that TensorRT does not have."""
    chosen = [(provider, config.options(graph, half=half))]
    if config.provider == "tensorrt":
        cuda = replace(config, provider="cuda")
        chosen.append((PROVIDERS["cuda"], cuda.options(graph, half=half)))
    return chosen


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
