"""The options of an embedder, and the settings that they make."""

from __future__ import annotations

import click

from embedder.config import EmbedderConfig
from embedder.encoding.runtime import RuntimeConfig
from embedder.flow.admission import Capacity
from shoal.app.cli.options.embedder import embedder_options


def test_capacities_are_options() -> None:
    """What calls and streams may have in process is the operator's to set, in images and MiB."""
    made: list[EmbedderConfig] = []

    @click.command()
    @embedder_options
    def command(*, embedder: EmbedderConfig) -> None:
        made.append(embedder)

    asked = {
        "--max-call-images": "5",
        "--max-call-mib": "6",
        "--stream-images": "7",
        "--max-stream-images": "8",
        "--max-stream-mib": "9",
    }
    command.main([word for pair in asked.items() for word in pair], standalone_mode=False)
    command.main([], standalone_mode=False)
    chosen, default = made
    assert (chosen.calls, chosen.stream_window) == (Capacity(5, 6 * 2**20), 7)
    assert chosen.streams == Capacity(8, 9 * 2**20)
    plain = EmbedderConfig()
    assert (default.calls, default.streams) == (plain.calls, plain.streams)
    assert (default.stream_window, default.runtime.on_cpu) == (64, True)
    assert EmbedderConfig(runtime=RuntimeConfig(provider="cuda")).stream_window == 256
