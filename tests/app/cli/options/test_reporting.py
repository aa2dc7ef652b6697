"""What a server's process tells whoever started it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.app.cli.options.reporting import Reporting


def test_the_ready_file_is_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever waits for it never reads half an address: a full disk leaves the old one."""
    ready = tmp_path / "ready"
    reporting = Reporting(ready_file=ready)
    reporting.announce("127.0.0.1:7800", what="store x")
    assert ready.read_text() == "127.0.0.1:7800\n"
    assert capsys.readouterr().err == "shoal: serving on 127.0.0.1:7800 (store x)\n"

    def half(file: Path, text: str, **_: object) -> None:
        file.write_bytes(text[:3].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        reporting.announce("127.0.0.1:7801", what="store x")
    assert ready.read_text() == "127.0.0.1:7800\n"
    assert [file.name for file in tmp_path.iterdir()] == ["ready"]
