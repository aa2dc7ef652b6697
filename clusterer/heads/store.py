"""The place of trained heads: a directory, or any place that fsspec knows.

A head is a directory ``NAME-HASH`` with ``head.onnx`` and ``head.json``. The hash is that of both,
so a head never changes; a newer one of the same name lies beside it. ``head.json`` is written last:
a directory without it is no head.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Self

import fsspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shoal.clock import seen_through
from shoal.errors import ArtefactError, ConfigError, EncoderMismatch, InvalidArgument, NotFound
from shoal.values import VectorInfo

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_HASH_DIGITS: Final = 12
_LEAST_DIGITS: Final = 4
"""The fewest digits that stand for a hash."""

_ID: Final = re.compile(rf"{NAME.pattern}-[0-9a-f]{{{_HASH_DIGITS}}}")
_GRAPH, _MANIFEST = "head.onnx", "head.json"


class HeadVector(BaseModel):
    """A named vector that a head was trained on, and the encoder behind it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dim: Annotated[int, Field(gt=0)]
    fingerprint: str

    @classmethod
    def of(cls, spec: VectorInfo) -> Self:
        """``spec`` as a manifest has it."""
        return cls(name=spec.name, dim=spec.dim, fingerprint=spec.fingerprint)


class HeadSeed(BaseModel):
    """One of the trainings that a head was made of: its quality, and whether it votes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    agreement: float
    cohesion: float
    used: int
    kept: bool


class HeadManifest(BaseModel):
    """All that is known of a head.

    ``curves`` has the mean of each of the ``terms``, by seed and epoch. ``seeds`` has the qualities
    by which some were chosen. ``parent`` is the id of the head that this one was trained on from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Annotated[int, Field(ge=1, le=1)] = 1
    name: str
    clusters: Annotated[int, Field(ge=2)]
    vector: HeadVector
    objective: str
    pairs: str
    graph_sha256: str
    created_at: float
    parent: str = ""
    options: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    terms: list[str] = []
    curves: dict[str, list[list[float]]] = {}
    seeds: list[HeadSeed] = []

    @property
    def hash(self) -> str:
        """The head's identity: a hash of its graph's hash and of the whole manifest.

        An empty parent and empty seeds do not count: older manifests have no such fields.
        """
        empty = {name for name in ("parent", "seeds") if not getattr(self, name)}
        text = self.model_dump_json(exclude=empty)
        return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]

    @property
    def id(self) -> str:
        """``NAME-HASH``."""
        return f"{self.name}-{self.hash}"

    def check(self, spec: VectorInfo) -> None:
        """EncoderMismatch unless the head is for the vectors of ``spec``."""
        if (self.vector.dim, self.vector.fingerprint) != (spec.dim, spec.fingerprint):
            msg = (
                f"head {self.id}: expected vectors of encoder {self.vector.name} "
                f"({self.vector.fingerprint[:12]}, {self.vector.dim}-d), got "
                f"{spec.name} ({spec.fingerprint[:12]}, {spec.dim}-d)"
            )
            raise EncoderMismatch(msg, head=self.id, vector=spec.name)


class HeadStore:
    """The heads at one place."""

    def __init__(self, url: str | Path) -> None:
        """Opens ``url``: a directory, or ``s3://bucket/heads`` and the like.

        Raises:
            InvalidArgument: fsspec cannot reach it, or lacks the package for its scheme.
        """
        self.url = str(url)
        if not self.url:
            msg = "heads: expected a directory or a URL that fsspec knows, got an empty text"
            raise InvalidArgument(msg, field="heads")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as exc:
            msg = f"heads: expected a directory or a URL that fsspec knows, got {self.url!r}: {exc}"
            raise InvalidArgument(msg, field="heads") from exc

    def put(self, manifest: HeadManifest, graph: bytes) -> str:
        """Keeps a head; gives its id. The same one again changes nothing.

        Raises:
            InvalidArgument: no head can be called so.
            ConfigError: the place cannot be written to.
        """
        check_name(manifest.name)
        place = f"{self._root}/{manifest.id}"
        try:
            self._files.makedirs(place, exist_ok=True)
            self._files.pipe_file(f"{place}/{_GRAPH}", graph)
            part = f"{place}/{_MANIFEST}.part"
            self._files.pipe_file(part, manifest.model_dump_json(indent=1).encode())
            self._files.mv(part, f"{place}/{_MANIFEST}")  # the manifest is whole or absent
        except OSError as exc:
            msg = f"heads: {self.url} cannot be written: {exc}"
            raise ConfigError(msg, field="heads") from exc
        return manifest.id

    def manifests(self) -> list[HeadManifest]:
        """All heads that are whole, newest first; none if the place does not exist."""
        return self.survey()[0]

    def survey(self) -> tuple[list[HeadManifest], dict[str, ArtefactError]]:
        """The heads that are whole, newest first, and the errors of the others by their ids.

        Heads that were made in the future, by a clock that was wrong, are the oldest.
        """
        # fsspec lists an object store from a cache: another process may have written since.
        self._files.invalidate_cache()
        if not self._files.isdir(self._root):
            return [], {}
        found: list[HeadManifest] = []
        damaged: dict[str, ArtefactError] = {}
        for place in self._files.ls(self._root, detail=False):
            try:
                manifest = self._manifest(place)
            except ArtefactError as exc:
                damaged[_last(place)] = exc
                continue
            if manifest is not None:
                found.append(manifest)
        now = time.time()
        newest = sorted(found, key=lambda m: seen_through(m.created_at, now), reverse=True)
        return newest, damaged

    def drop_retrained(self, name: str, *, keep: int) -> None:
        """Removes retrained heads called ``name``, except the newest ``keep``.

        Raises:
            ConfigError: one cannot be removed.
        """
        retrained = [each for each in self.manifests() if each.name == name and each.parent]
        for manifest in retrained[keep:]:
            place = f"{self._root}/{manifest.id}"
            try:
                self._files.rm_file(f"{place}/{_MANIFEST}")  # from here on it is no head
                self._files.rm_file(f"{place}/{_GRAPH}")
            except FileNotFoundError:  # another process was faster
                continue
            except OSError as exc:
                msg = f"heads: {place} cannot be removed: {exc}"
                raise ConfigError(msg, field="heads") from exc
            # In an object store the directory goes with its last file. One that holds other
            # people's files stays.
            with suppress(OSError):
                self._files.rmdir(place)

    def find(self, reference: str) -> HeadManifest:
        """The newest head called ``reference``, or the one with that id or beginning of a hash.

        Raises:
            NotFound: there is no such head; the message names those that exist.
            InvalidArgument: several hashes begin so.
            ArtefactError: a head that ``reference`` may mean is damaged. Other damage is ignored.
        """
        if _ID.fullmatch(reference):
            found = self._manifest(f"{self._root}/{reference}")
            if found is not None:
                return found
        there, damaged = self.survey()
        for place, error in damaged.items():
            name, _, digits = place.rpartition("-")
            if reference == name or _begins(digits, reference):
                raise error
        for manifest in there:
            if reference in (manifest.name, manifest.id):
                return manifest
        begun = [m for m in there if _begins(m.hash, reference)]
        if len(begun) > 1:
            msg = f"head {reference!r}: expected one head, got {', '.join(m.id for m in begun)}"
            raise InvalidArgument(msg, field="head")
        if not begun:
            known = ", ".join(m.id for m in there[:10]) or "none"
            msg = f"head {reference!r}: expected a head at {self.url}: {known}"
            raise NotFound(msg, head=reference)
        return begun[0]

    def graph(self, manifest: HeadManifest) -> bytes:
        """The ONNX graph of a head.

        Raises:
            ArtefactError: it cannot be read, or its hash is not the manifest's.
        """
        file = f"{self._root}/{manifest.id}/{_GRAPH}"
        try:
            graph = bytes(self._files.cat_file(file))
        except OSError as exc:
            msg = f"head {manifest.id}: {_GRAPH} cannot be read: {exc}"
            raise ArtefactError(msg, file=file) from exc
        got = sha256(graph)
        if got != manifest.graph_sha256:
            msg = f"{file}: expected SHA-256 {manifest.graph_sha256[:12]}, got {got[:12]}"
            raise ArtefactError(msg, file=file)
        return graph

    def _manifest(self, place: str) -> HeadManifest | None:
        """The manifest of the directory ``place``; None if there is none.

        Raises:
            ArtefactError: it is damaged, or belongs to another directory.
        """
        file = f"{place}/{_MANIFEST}"
        try:
            data = self._files.cat_file(file)
        except OSError:  # no head, or only a part of one
            return None
        try:
            found = HeadManifest.model_validate(json.loads(data))
        except (ValueError, ValidationError) as exc:
            msg = f"{file}: expected a head's manifest, got {exc}"
            raise ArtefactError(msg, file=file) from exc
        if _last(place) != found.id:
            msg = f"{file}: expected the manifest of this directory's head, got that of {found.id}"
            raise ArtefactError(msg, file=file)
        return found


def sha256(graph: bytes) -> str:
    """The hash of a graph's bytes, as manifests have it."""
    return hashlib.sha256(graph).hexdigest()


def _last(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2]


def _begins(digits: str, reference: str) -> bool:
    return len(reference) >= _LEAST_DIGITS and digits.startswith(reference)


def check_name(name: str) -> str:
    """``name``; InvalidArgument if no head can be called so."""
    if not NAME.fullmatch(name):
        msg = (
            f"head name {name!r}: expected 1 to 64 lower-case letters, digits, "
            '"_", "." and "-", beginning with a letter or digit'
        )
        raise InvalidArgument(msg, field="name")
    return name
