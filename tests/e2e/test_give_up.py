"""A process whose model has gone for good ends, so that whoever runs it starts another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SERVER = """
import asyncio, contextlib, sys, threading
from pathlib import Path

from embedder.config import EmbedderConfig
from embedder.encoding.encoder import Encoder
from embedder.service import EmbedderService
from shoal.app import local
from shoal.errors import SelfTestFailed
from shoal.rpc.server import ServerConfig
from shoal.store import StoreConfig


def hang(self):
    threading.Event().wait()


def fail(self):
    raise SelfTestFailed("other vectors")


@contextlib.asynccontextmanager
async def embedder(store):
    times = {"canary_interval_s": 0.0, "canary_timeout_s": 1.0, "give_up_s": 3.0}
    yield EmbedderService(EmbedderConfig(run_size=1, **times), store)


def go_wrong(address):
    Encoder.self_test = {"hangs": hang, "fails": fail}[sys.argv[2]]
    print("serving", flush=True)


local._END_S = 1.0
server = ServerConfig("127.0.0.1:0", grace_s=1.0, health_interval_s=0.05)
config = local.ServeConfig(server, StoreConfig(path=Path(sys.argv[1])), "off")
asyncio.run(local.serve(config, embedder, on_ready=go_wrong))
"""


LOST = "Unrecoverable: for 3 s"
MODEL = "encoder efficientnet-lite0"


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("hangs", f"{LOST} a run of {MODEL} has not ended"),
        ("fails", f"{LOST} {MODEL} has failed its self-test: other vectors"),
    ],
)
def test_process_of_a_lost_model_ends(tmp_path: Path, how: str, why: str) -> None:
    """With an error and a status, also where a thread hangs in the model and cannot be joined."""
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(tmp_path / "store"), how],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "serving\n", done.stderr
    assert done.returncode == 1
    assert why in done.stderr
