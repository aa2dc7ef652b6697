"""Contexts: how to reach a deployment of Shoal, kept under a name in a file of the user's.

The file is ``contexts.json`` in ``$XDG_CONFIG_HOME/shoal``, by default ``~/.config/shoal``. Only
its owner can read it. It has no token, but may have the path of a file with one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import click
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from shoal.errors import ConfigError, NotFound
from shoal.files import replacing
from shoal.rpc.config import ChannelConfig
from shoal.settings import Setting

_ADDRESS = Setting(metavar="HOST:PORT")
_NAME = Setting(metavar="NAME")

ADDRESSES: Final = ("address", "embedder_address", "clusterer_address", "search_address")
"""The settings that say where a server is."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class ClientContext:
    """How to reach one deployment. None: as without a context."""

    address: Annotated[str | None, _ADDRESS] = None
    """The server with all services, or with those that have no address of their own."""
    embedder_address: Annotated[str | None, _ADDRESS] = None
    """The embedder, where it is a server of its own."""
    clusterer_address: Annotated[str | None, _ADDRESS] = None
    """The clusterer, where it is a server of its own."""
    search_address: Annotated[str | None, _ADDRESS] = None
    """The search service, where it is a server of its own."""
    token_file: Annotated[Path | None, Setting(metavar="FILE", path="file")] = None
    """File with the bearer token. It is read by each command."""
    tls: bool | None = None
    """Encrypt, and verify the server."""
    tls_ca: Annotated[Path | None, Setting(metavar="FILE")] = None
    """PEM file of the authority to verify the servers by; implies TLS."""
    via_proxy: bool | None = None
    """Go through the proxy that `https_proxy` or `http_proxy` names in the environment."""
    collection: Annotated[str | None, _NAME] = None
    """The collection."""
    clustering: Annotated[str | None, _NAME] = None
    """The clustering."""

    def settings(self, *, without: Collection[str] = ()) -> dict[str, Any]:
        """The settings that it has, by the names of a command's parameters, but for some.

        Raises:
            ConfigError: the file of the token cannot be read, or is empty.
        """
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        path = values.pop("token_file")
        found = {k: v for k, v in values.items() if v is not None and k not in without}
        if path is not None and "token" not in without:
            found["token"] = _token_in(path)
        return found


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True)
class Contexts:
    """All contexts of a user, and the name of the current one; empty if none is."""

    current: str = ""
    contexts: dict[str, ClientContext] = field(default_factory=dict)

    def find(self, name: str = "") -> ClientContext:
        """The context ``name``, or the current one; an empty one where none is current.

        Raises:
            NotFound: there is none of that name; the message has those that there are.
        """
        name = name or self.current
        if not name:
            return ClientContext()
        if name not in self.contexts:
            known = ", ".join(sorted(self.contexts)) or "none"
            raise NotFound(f"context {name!r} does not exist; existing: {known}", context=name)
        return self.contexts[name]


_FORMAT = TypeAdapter(Contexts)


def contexts_file() -> Path:
    """Where the contexts are kept."""
    return Path(click.get_app_dir("shoal")) / "contexts.json"


def read_contexts() -> Contexts:
    """The user's contexts; none if there is no file.

    Raises:
        ConfigError: the file is not what ``write_contexts`` writes.
    """
    path = contexts_file()
    try:
        return _FORMAT.validate_json(path.read_bytes())
    except FileNotFoundError:
        return Contexts()
    except ValidationError as exc:
        first = exc.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        msg = f"contexts file {path} cannot be used: {place}: {first['msg']}"
        raise ConfigError(msg, path=str(path)) from exc


def write_contexts(contexts: Contexts) -> None:
    """Puts ``contexts`` in place of those that there were.

    Raises:
        ConfigError: an address of a context is malformed.
    """
    for each in contexts.contexts.values():
        for name in ADDRESSES:
            if (address := getattr(each, name)) is not None:
                ChannelConfig(address=address).validate()
    path = contexts_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(path) as fresh:
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o600)  # whatever a file was there before
            file.write(_FORMAT.dump_json(contexts, indent=2, exclude_none=True) + b"\n")


def _token_in(path: Path) -> str:
    """The bearer token in the file at ``path``."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigError(f"token file {path} cannot be read: {why}", path=str(path)) from exc
    if not token:
        raise ConfigError(f"token file {path} is empty: expected a bearer token", path=str(path))
    return token
