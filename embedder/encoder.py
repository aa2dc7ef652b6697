"""An artefact and its open session: pixels to vectors. Blocking; knows no image files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from embedder.artefact import bundled_artefact, check_self_test, load_artefact
from embedder.runtime import RuntimeConfig, Session
from shoal.errors import ArtefactError

if TYPE_CHECKING:
    from pathlib import Path

    from embedder.artefact import EncoderArtefact
    from embedder.manifest import Preprocessing


class OpenGraph(Protocol):
    """What an encoder needs of a runtime: ``embedder.runtime.Session``, or another in its place."""

    @property
    def provider(self) -> str:
        """The execution provider in use."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""

    def run(self, feeds: dict[str, npt.NDArray[np.generic]], output: str) -> npt.NDArray[Any]:
        """The array ``output`` of one run; from several threads at once."""


class Encoder:
    """A loaded encoder. Thread-safe: calls may overlap."""

    def __init__(self, artefact: EncoderArtefact, session: OpenGraph) -> None:
        """Join them.

        Raises:
            ArtefactError: the graph has not the input and the output of the manifest.
        """
        manifest = artefact.manifest
        wanted = ((manifest.input.name,), (manifest.output.name,))
        if (session.inputs, session.outputs) != wanted:
            msg = (
                f"{artefact.image_model}: expected a graph with input and output {wanted}, "
                f"got {(session.inputs, session.outputs)}"
            )
            raise ArtefactError(msg, file=str(artefact.image_model))
        self.artefact = artefact
        self._session = session

    @classmethod
    def open(cls, directory: Path | None, config: RuntimeConfig) -> Self:
        """The encoder in ``directory`` (None: the one that ships with Shoal), proven right.

        Raises:
            ArtefactError: the directory is damaged.
            ConfigError: the provider is not there.
            SelfTestFailed: the encoder does not reproduce its reference vectors.
        """
        artefact = load_artefact(bundled_artefact() if directory is None else directory)
        encoder = cls(artefact, Session(artefact.image_model, config))
        encoder.self_test()
        return encoder

    @property
    def name(self) -> str:
        """Its name in requests, and the name of its vectors in a collection."""
        return self.artefact.manifest.name

    @property
    def dim(self) -> int:
        """Length of its vectors."""
        return self.artefact.dim

    @property
    def fingerprint(self) -> str:
        """The identity of its vectors, 64 hex digits."""
        return self.artefact.fingerprint

    @property
    def provider(self) -> str:
        """The execution provider in use, as ONNX Runtime names it."""
        return self._session.provider

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes pixels."""
        return self.artefact.manifest.preprocessing

    def embed(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The vectors float32 (B, D), unit length, of ``pixels`` uint8 (B, H, W, 3) RGB.

        Raises:
            OperatorError: the run failed.
        """
        manifest = self.artefact.manifest
        vectors = self._session.run({manifest.input.name: pixels}, manifest.output.name)
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def self_test(self) -> None:
        """Embed the reference images; SelfTestFailed if a vector is not the reference's."""
        check_self_test(self.artefact, self.embed)
