"""An open encoder: pixels and texts to vectors. It blocks, and knows no image files.

A mix has one image tower per part; its vector is their unit vectors side by side, scaled to
length 1 (SCP-MIX: "Keep it Light!", arXiv 2502.04226).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from embedder.encoding.artefact import bundled_artefact, check_self_test, load_any_artefact
from embedder.encoding.runtime import OnnxSession, RuntimeConfig
from embedder.encoding.text import TextTower
from shoal.errors import ArtefactError, SelfTestFailed, Unsupported

if TYPE_CHECKING:
    from pathlib import Path

    from embedder.encoding.artefact import Artefact, EncoderArtefact
    from embedder.encoding.manifest import Preprocessing

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


class OpenGraph(Protocol):
    """What an encoder needs of an open graph: ``runtime.OnnxSession``, or a fake."""

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
        """The array ``output`` of one run. Several threads may call at the same time."""


class ImageTower:
    """One image graph and its artefact. Thread-safe: calls may overlap."""

    def __init__(self, artefact: EncoderArtefact, session: OpenGraph) -> None:
        """Joins the artefact and its open graph.

        Raises:
            ArtefactError: the graph has another input or output than the manifest says.
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
        self.provider = session.provider
        self._session = session

    def embed(self, pixels: UInt8) -> Float32:
        """The vectors float32 (B, D), unit length, of ``pixels`` uint8 (B, H, W, 3) RGB."""
        manifest = self.artefact.manifest
        vectors = self._session.run({manifest.input.name: pixels}, manifest.output.name)
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def self_test(self) -> None:
        """Embeds the reference images; raises SelfTestFailed if a vector is not the reference's."""
        check_self_test(self.artefact, self.embed)


class Encoder:
    """A loaded encoder. Thread-safe: calls may overlap."""

    def __init__(
        self,
        artefact: Artefact,
        sessions: Sequence[OpenGraph],
        *,
        text: TextTower | None = None,
    ) -> None:
        """Joins ``artefact`` and one session for each part of it.

        Raises:
            ArtefactError: a graph has another input or output than its manifest says.
        """
        self.artefact = artefact
        self.towers = tuple(
            ImageTower(part, session)
            for part, session in zip(artefact.parts, sessions, strict=True)
        )
        self._text = text

    @classmethod
    def open(cls, directory: Path | None, config: RuntimeConfig) -> Self:
        """The encoder in ``directory`` (None: the one that ships with Shoal), after its self-test.

        Raises:
            ArtefactError: the artefact is damaged.
            ConfigError: the provider is not available, or a package that a text tower needs.
            SelfTestFailed: the encoder does not give its reference vectors.
        """
        return cls.of(
            load_any_artefact(bundled_artefact() if directory is None else directory), config
        )

    @classmethod
    def of(cls, artefact: Artefact, config: RuntimeConfig) -> Self:
        """The encoder of a verified ``artefact``; raises as ``open``."""
        sessions = [
            OnnxSession(part.image_model, config, half=part.manifest.precision == "float16")
            for part in artefact.parts
        ]
        alone = artefact.parts[0] if len(artefact.parts) == 1 else None
        text = TextTower.open(alone, config) if alone is not None else None
        encoder = cls(artefact, sessions, text=text)
        encoder.self_test()
        return encoder

    @property
    def name(self) -> str:
        """The encoder's name in requests, and the name of its vectors in a collection."""
        return self.artefact.name

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self.artefact.dim

    @property
    def fingerprint(self) -> str:
        """The identity of the vectors that it makes, 64 hex digits."""
        return self.artefact.fingerprint

    @property
    def provider(self) -> str:
        """The execution provider in use, as ONNX Runtime names it."""
        return self.towers[0].provider

    @property
    def preprocessings(self) -> tuple[Preprocessing, ...]:
        """How an image becomes the pixels of each part."""
        return tuple(part.manifest.preprocessing for part in self.artefact.parts)

    @property
    def has_text(self) -> bool:
        """Whether it embeds texts too."""
        return self._text is not None

    def embed(self, pixels: Sequence[UInt8]) -> Float32:
        """The vectors float32 (B, D), unit length, of B images.

        ``pixels``: for each part uint8 (B, H, W, 3) RGB, made by that part's preprocessing.

        Raises:
            OperatorError: a run failed.
        """
        made = [tower.embed(each) for tower, each in zip(self.towers, pixels, strict=True)]
        if len(made) == 1:
            return made[0]
        return np.concatenate(made, axis=1) / np.float32(np.sqrt(len(made)))

    def embed_texts(self, texts: Sequence[str]) -> Float32:
        """The vectors float32 (B, D), unit length, of B texts.

        Raises:
            Unsupported: the encoder has no text tower.
            OperatorError: the run failed.
        """
        if self._text is None:
            msg = f"encoder {self.name} has no text tower: it embeds images only"
            raise Unsupported(msg, encoder=self.name)
        return self._text.embed(texts)

    def self_test(self) -> None:
        """Embeds the reference images and texts, tower by tower.

        A mix needs no test of its own: it only joins its towers' vectors.

        Raises:
            SelfTestFailed: a vector is not the reference's.
        """
        try:
            for tower in self.towers:
                tower.self_test()
            if self._text is not None:
                self._text.self_test()
        except SelfTestFailed as exc:
            exc.metadata["encoder"] = self.name
            raise
