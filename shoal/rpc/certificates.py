"""A server's TLS certificate, read again when its files change: to renew it needs no restart."""

from __future__ import annotations

import logging
from pathlib import Path

import grpc

from shoal.errors import ConfigError
from shoal.rpc.config import check_pair, read_pem

_LOG = logging.getLogger(__name__)

_Version = tuple[tuple[int, int, int], ...]


def server_credentials(cert: Path, key: Path) -> grpc.ServerCredentials:
    """Credentials that look at the files with every new connection.

    An open connection keeps the certificate that it began with.

    Raises:
        ConfigError: the files cannot be read, or do not belong together.
    """
    files = _Files(cert, key)
    # The types leave out that None means no change.
    return grpc.dynamic_ssl_server_credentials(files.read(), files.changed)  # type: ignore[arg-type]


class _Files:
    """A certificate chain and its key, and the version of both that was read last."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self._read: _Version = ()
        self._told = ""

    def read(self) -> grpc.ServerCertificateConfiguration:
        """The certificate and key as they are now; ConfigError if they cannot be used."""
        version = self._version()
        check_pair(self._cert, self._key)
        found = grpc.ssl_server_certificate_configuration(
            [(read_pem(self._key), read_pem(self._cert))]
        )
        if self._version() != version:
            msg = f"TLS certificate {self._cert} and key {self._key} changed while they were read"
            raise ConfigError(msg)
        self._read = version
        return found

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The certificate and key if they have changed; None to go on with the last ones.

        Files that cannot be used are logged once, and read again with every connection: perhaps
        one of the two has not been replaced yet.
        """
        try:
            if self._version() == self._read:
                return None
            found = self.read()
        except ConfigError as exc:
            if str(exc) != self._told:
                self._told = str(exc)
                _LOG.warning("the old TLS certificate stays in use: %s", exc)
            return None
        self._told = ""
        _LOG.info("took up a new TLS certificate", extra={"file": str(self._cert)})
        return found

    def _version(self) -> _Version:
        """A value that differs when a file is another one, or has another time or size."""
        try:
            stats = [path.stat() for path in (self._cert, self._key)]
        except OSError as exc:
            msg = f"TLS file {exc.filename} cannot be read: {exc.strerror}"
            raise ConfigError(msg, path=str(exc.filename)) from exc
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in stats)
