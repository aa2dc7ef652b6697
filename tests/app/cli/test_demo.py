"""``shoal demo`` and what it draws."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shoal.app.cli.pictures import Digits
from shoal.app.cli.printing.contact_sheet import (
    CAPTION_PX,
    GAP_PX,
    TILE_PX,
    Row,
    draw_contact_sheet,
)
from tests.app.cli.conftest import clean_environment

Run = Callable[..., Any]


def png(colour: tuple[int, int, int], size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def test_contact_sheet_has_a_row_per_cluster_and_a_tile_per_exemplar(tmp_path: Path) -> None:
    """Tiles stand where their row and column say; what is missing or broken is left grey."""
    red, blue = png((255, 0, 0), (200, 200)), png((0, 0, 255), (8, 8))
    path = tmp_path / "new" / "sheet.png"
    rows = [Row(("cluster 0", "2 images"), (red, blue)), Row(("cluster 1",), (None, b"broken"))]
    draw_contact_sheet(rows, path=path)
    with Image.open(path) as opened:
        sheet = opened.convert("RGB")
    step = TILE_PX + GAP_PX
    assert sheet.size == (CAPTION_PX + 2 * step + GAP_PX, 2 * step + GAP_PX)

    def middle(row: int, column: int) -> Any:
        half = TILE_PX // 2
        return sheet.getpixel((CAPTION_PX + column * step + half, GAP_PX + row * step + half))

    assert (middle(0, 0), middle(0, 1)) == ((255, 0, 0), (0, 0, 255))
    assert middle(1, 0) == middle(1, 1) == (225, 225, 225)
    caption = np.asarray(sheet.crop((0, 0, CAPTION_PX, TILE_PX)))
    assert caption.min() < 100


def test_digits_are_all_there_and_come_back() -> None:
    """1,797 PNG files of 8 x 8 pixels with their label, found again by their payload."""
    digits = Digits()
    items = list(digits.items())
    assert len(items) == digits.total == 1797
    last: Any = items[-1]
    with Image.open(io.BytesIO(last.data)) as image:
        assert (image.size, image.mode) == ((8, 8), "L")
        assert image.getextrema() == (0, 255)
    assert digits.data({"key": last.key}) == last.data
    assert last.payload == {"label": 8}


def test_demo_shows_clusters_a_search_and_a_contact_sheet(
    in_process: Run, tmp_path: Path, pictures: Any
) -> None:
    """On a directory of images, every part of the demo is there, and nothing is left running."""
    before = set(threading.enumerate())
    pictures(tmp_path / "p", [f"{i}.png" for i in range(12)])
    result = in_process("demo", "--images", "p", "-k", "3", "--data", "d")
    assert result.code == 0, result.stderr
    assert "stored 12, updated 0, unchanged 0, failed 0" in result.stdout
    assert "3 clusters over 12 points: 3 born" in result.stdout
    assert "images of cluster " in result.stdout
    assert result.stdout.splitlines()[-1] == "contact sheet: d/contact-sheet.png"
    with Image.open(tmp_path / "d" / "contact-sheet.png") as sheet:
        assert sheet.height == 3 * (TILE_PX + GAP_PX) + GAP_PX
    assert "Traceback" not in result.stderr
    assert not [each for each in set(threading.enumerate()) - before if each.name == "shoal-local"]


def test_demo_with_too_many_clusters_is_one_line(
    in_process: Run, tmp_path: Path, pictures: Any
) -> None:
    """A failure inside the demo is told as by any other command, and ends the server."""
    pictures(tmp_path / "p", ["1.png", "2.png"])
    result = in_process("demo", "--images", "p", "-k", "3")
    assert result.code == 1
    assert result.stderr.splitlines()[-1].startswith("shoal: error: ")


def reached(stage: str, directory: Path, said: str) -> bool:
    """Whether a demo with its temporary files in ``directory`` has come this far."""
    if stage == "store":  # it is being opened, and no model is loaded
        return bool(list(directory.glob("shoal-demo-*/store")))
    return f"shoal: {stage} " in said


@pytest.mark.parametrize("stage", ["starting", "store", "serving"])
def test_demo_interrupted_ends_and_leaves_nothing(tmp_path: Path, stage: str) -> None:
    """Ctrl-C at any stage of the start is one line; no temporary store is left behind."""
    log = tmp_path / "stderr"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "shoal", "demo"],
            cwd=tmp_path,
            env={**clean_environment(), "TMPDIR": str(tmp_path)},
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        ) as demo,
    ):
        while not reached(stage, tmp_path, log.read_text()):
            assert demo.poll() is None, log.read_text()
            time.sleep(0.005)
        demo.send_signal(signal.SIGINT)
        demo.wait(60)
    assert demo.returncode != 0
    assert "Traceback" not in log.read_text()
    assert list(tmp_path.glob("shoal-demo-*")) == []
