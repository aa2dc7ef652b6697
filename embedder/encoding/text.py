"""The text tower: texts to vectors in the space of the images. Blocking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import numpy.typing as npt

from embedder.encoding.manifest import UNIT_LENGTH_TOLERANCE
from embedder.encoding.runtime import OnnxSession, RuntimeConfig
from embedder.encoding.tokenizer import Tokenizer
from shoal.errors import ArtefactError, SelfTestFailed

if TYPE_CHECKING:
    from embedder.encoding.artefact import EncoderArtefact
    from embedder.encoding.manifest import TextSpec


class Encodes(Protocol):
    """What a text tower needs of a tokenizer."""

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """The tokens of ``texts``, (N, context_length)."""


class TextTower:
    """A text graph, its tokenizer and what the manifest says of them. Thread-safe."""

    def __init__(
        self, artefact: EncoderArtefact, spec: TextSpec, session: OnnxSession, tokenizer: Encodes
    ) -> None:
        """Joins them; ArtefactError if the graph has another input or output than ``spec`` says."""
        if (session.inputs, session.outputs) != ((spec.input,), (spec.output,)):
            msg = (
                f"{artefact.text_model}: expected a graph with input {spec.input!r} and output "
                f"{spec.output!r}, got {session.inputs} and {session.outputs}"
            )
            raise ArtefactError(msg, file=str(artefact.text_model))
        self._name = artefact.name
        self._dim = artefact.dim
        self._spec = spec
        self._session = session
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, artefact: EncoderArtefact, config: RuntimeConfig) -> Self | None:
        """The text tower of ``artefact``; None if it has none.

        Raises:
            ArtefactError: a file of the text tower is damaged.
            ConfigError: the package of tokenizers is not installed.
        """
        spec = artefact.manifest.text
        if spec is None or artefact.text_model is None or artefact.tokenizer is None:
            return None
        tokenizer = Tokenizer(artefact.tokenizer, spec)
        return cls(artefact, spec, OnnxSession(artefact.text_model, config), tokenizer)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The vectors float32 (N, D), unit length, of N texts. OperatorError if the run fails."""
        feeds: dict[str, npt.NDArray[np.generic]] = {
            self._spec.input: self._tokenizer.encode(texts)
        }
        return np.ascontiguousarray(self._session.run(feeds, self._spec.output), dtype=np.float32)

    def self_test(self) -> None:
        """Embeds the reference texts.

        Raises:
            SelfTestFailed: the tokens of a text, or its vector, are not the reference's.
        """
        cases = self._spec.self_test
        texts = [case.text for case in cases]
        for case, tokens in zip(cases, self._tokenizer.encode(texts), strict=True):
            if tuple(tokens.tolist()) != case.tokens:
                msg = (
                    f"encoder {self._name}, text {case.text!r}: the tokens are not the reference's"
                )
                raise SelfTestFailed(msg, encoder=self._name)
        got = self.embed(texts)
        if got.shape != (len(cases), self._dim):
            msg = f"encoder {self._name}: expected {(len(cases), self._dim)}, got {got.shape}"
            raise SelfTestFailed(msg, encoder=self._name)
        for case, vector in zip(cases, got, strict=True):
            length = float(np.linalg.norm(vector))
            cosine = float(vector @ case.reference())
            # The comparison is written such that NaN fails too.
            if not (abs(length - 1.0) <= UNIT_LENGTH_TOLERANCE and cosine >= case.min_cosine):
                msg = (
                    f"encoder {self._name}, text {case.text!r}: expected unit length and cosine "
                    f">= {case.min_cosine} with the reference vector, got length {length} and "
                    f"cosine {cosine:.6f}"
                )
                raise SelfTestFailed(msg, encoder=self._name)
