"""The application of a head's graph: the clusterer's only module that knows ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clusterer.heads.graph import INPUT, OUTPUT
from shoal.cores import usable_cores
from shoal.errors import ArtefactError, ConfigError

if TYPE_CHECKING:
    from shoal.vectors import Vectors

_ROWS = 8192
"""The most vectors of one call: 16 MB of hidden units at a width of 512."""


class HeadSession:
    """A head, ready to be applied. Thread-safe."""

    def __init__(self, graph: bytes) -> None:
        """Opens ``graph`` on the CPU.

        Raises:
            ConfigError: ONNX Runtime is not installed.
            ArtefactError: ``graph`` is not a head's graph.
        """
        try:
            import onnxruntime  # noqa: PLC0415 - an extra
        except ImportError as exc:
            msg = "method scp needs ONNX Runtime: pip install 'shoal[cpu]'"
            raise ConfigError(msg, package="onnxruntime") from exc
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cores()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # errors are raised, and need no log
        try:
            self._session: Any = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # ONNX Runtime raises errors of many classes
            msg = f"head: expected an ONNX graph, got one that cannot be opened: {exc}"
            raise ArtefactError(msg) from exc
        names = [each.name for each in self._session.get_inputs()]
        outputs = [each.name for each in self._session.get_outputs()]
        if (names, outputs) != ([INPUT], [OUTPUT]):
            msg = f"head: expected a graph from {INPUT} to {OUTPUT}, got {names} to {outputs}"
            raise ArtefactError(msg)
        self.clusters = int(self._session.get_outputs()[0].shape[1])

    def probabilities(self, vectors: Vectors) -> npt.NDArray[np.float32]:
        """The soft assignments (B, K) of ``vectors`` (B, D)."""
        found = np.empty((len(vectors), self.clusters), np.float32)
        for at in range(0, len(vectors), _ROWS):
            rows = slice(at, at + _ROWS)
            found[rows] = self._session.run([OUTPUT], {INPUT: vectors[rows]})[0]
        return found
