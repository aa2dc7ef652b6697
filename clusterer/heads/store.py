"""Trained heads where they are kept: a directory, or any place that fsspec knows.

A head is a directory ``NAME-HASH`` with ``head.onnx`` and ``head.json``. The hash is of both, so a
head never changes; a newer one of the same name lies beside it. ``head.json`` is written last: what
lacks it is not there.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Final, Self

import fsspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shoal.errors import ArtefactError, ConfigError, EncoderMismatch, InvalidArgument, NotFound
from shoal.values import VectorInfo

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_HASH_DIGITS: Final = 12
_LEAST_DIGITS: Final = 4
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
    """One of the trainings that a head was made of: what was known of it, and whether it votes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    agreement: float
    cohesion: float
    used: int
    kept: bool


class HeadManifest(BaseModel):
    """What is known of a head.

    ``curves`` hold, per seed and epoch, the mean of each term; ``seeds`` what the choice among
    them was made by; ``parent`` is the head that this one was trained on from.
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
        """The head's identity: of its graph and all that is said of it.

        Without a parent or seeds as if there were no such fields, which once there were not.
        """
        unsaid = {name for name in ("parent", "seeds") if not getattr(self, name)}
        said = self.model_dump_json(exclude=unsaid)
        return hashlib.sha256(said.encode()).hexdigest()[:_HASH_DIGITS]

    @property
    def id(self) -> str:
        """``NAME-HASH``."""
        return f"{self.name}-{self.hash}"

    def check(self, spec: VectorInfo) -> None:
        """EncoderMismatch unless the head is for vectors such as ``spec``."""
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
        """The place ``url``: a directory, or ``s3://bucket/heads`` and the like.

        Raises:
            InvalidArgument: fsspec cannot reach it, or lacks the package for its scheme.
        """
        self.url = str(url)
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as exc:
            msg = f"heads: expected a directory or a URL that fsspec knows, got {self.url!r}: {exc}"
            raise InvalidArgument(msg, field="heads") from exc

    def put(self, manifest: HeadManifest, graph: bytes) -> str:
        """Keeps a head; returns its id. The same one again changes nothing.

        Raises:
            InvalidArgument: its name cannot be one.
            ConfigError: nothing can be written there.
        """
        check_name(manifest.name)
        place = f"{self._root}/{manifest.id}"
        try:
            self._files.makedirs(place, exist_ok=True)
            self._files.pipe_file(f"{place}/{_GRAPH}", graph)
            part = f"{place}/{_MANIFEST}.part"
            self._files.pipe_file(part, manifest.model_dump_json(indent=1).encode())
            self._files.mv(part, f"{place}/{_MANIFEST}")  # whole or not there
        except OSError as exc:
            msg = f"heads: {self.url} cannot be written: {exc}"
            raise ConfigError(msg, field="heads") from exc
        return manifest.id

    def manifests(self) -> list[HeadManifest]:
        """All heads that are whole, newest first; none if the place is not there."""
        return self.survey()[0]

    def survey(self) -> tuple[list[HeadManifest], dict[str, ArtefactError]]:
        """The heads that are whole, newest first, and what is wrong with others, by their ids."""
        # An object store lists from a cache: another process may have written since.
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
        return sorted(found, key=lambda m: m.created_at, reverse=True), damaged

    def drop_retrained(self, name: str, *, keep: int) -> None:
        """Removes heads called ``name`` that came of training another on, but the newest ``keep``.

        Raises:
            ConfigError: one cannot be removed.
        """
        retrained = [each for each in self.manifests() if each.name == name and each.parent]
        for manifest in retrained[keep:]:
            place = f"{self._root}/{manifest.id}"
            try:
                self._files.rm_file(f"{place}/{_MANIFEST}")  # from here on it is not there
                self._files.rm(place, recursive=True)
            except FileNotFoundError:  # an object store has no directories, or another was first
                continue
            except OSError as exc:
                msg = f"heads: {place} cannot be removed: {exc}"
                raise ConfigError(msg, field="heads") from exc

    def find(self, reference: str) -> HeadManifest:
        """The newest head called ``reference``, or the one of that id or beginning of a hash.

        Raises:
            NotFound: there is none; the message names those that there are.
            InvalidArgument: several hashes begin so.
            ArtefactError: one that it may mean is damaged. Others that are do not matter.
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
            ArtefactError: it is not there, or not what the manifest says.
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
        file = f"{place}/{_MANIFEST}"
        try:
            data = self._files.cat_file(file)
        except OSError:  # not a head, or not a whole one
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
    """What a manifest says of its graph's bytes."""
    return hashlib.sha256(graph).hexdigest()


def _last(place: str) -> str:
    return place.rstrip("/").rpartition("/")[2]


def _begins(digits: str, reference: str) -> bool:
    return len(reference) >= _LEAST_DIGITS and digits.startswith(reference)


def check_name(name: str) -> str:
    """``name``, or InvalidArgument if it cannot name a head."""
    if not NAME.fullmatch(name):
        msg = (
            f"head name {name!r}: expected 1 to 64 lower-case letters, digits, "
            '"_", "." and "-", beginning with a letter or digit'
        )
        raise InvalidArgument(msg, field="name")
    return name
