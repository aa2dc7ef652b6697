"""The settings of the embedder: their ranges, and the defaults that depend on the machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from embedder import config
from embedder.config import EmbedderConfig
from embedder.encoding.config import RuntimeConfig
from embedder.flow.admission import Capacity
from shoal.errors import ConfigError

ON_GPU = RuntimeConfig(provider="cuda")


@pytest.fixture(autouse=True)
def _six_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "usable_cores", lambda: 6)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_batch": -1},
        {"run_size": -1},
        {"inference_workers": -1},
        {"decode_workers": -1},
        {"stream_images": -1},
        {"store_workers": 0},
        {"max_call_images": 0},
        {"max_call_mib": 0},
        {"max_stream_images": 0},
        {"max_stream_mib": 0},
        {"idle_encoder_s": 0},
        {"canary_interval_s": -1e-9},
        {"canary_interval_s": float("nan")},
        {"canary_timeout_s": 0},
        {"give_up_s": 0},
    ],
)
def test_config_refuses_what_cannot_be(bad: dict[str, Any]) -> None:
    """A value out of range is found before anything is loaded, and named."""
    with pytest.raises(ConfigError) as caught:
        replace(EmbedderConfig(), **bad)
    assert [caught.value.metadata["field"]] == list(bad)


def test_config_takes_the_least_of_each_range() -> None:
    """0 where it means a default or no time at all, 1 where something must be there."""
    least = dict.fromkeys(("store_workers", "max_call_images", "max_call_mib"), 1)
    least |= dict.fromkeys(("max_stream_images", "max_stream_mib"), 1)
    seconds = {"canary_interval_s": 0.0, "idle_encoder_s": 1e-9, "give_up_s": float("inf")}
    assert EmbedderConfig(**least, **seconds).store_workers == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("runtime", "expected"), [(RuntimeConfig(), (8, 64, 6, 6)), (ON_GPU, (64, 256, 2, 6))]
)
def test_defaults_are_those_of_where_the_model_runs(
    runtime: RuntimeConfig, expected: tuple[int, ...]
) -> None:
    """Batch, window of a stream, runs at the same time, and decoders; what is said wins."""

    def sizes(chosen: EmbedderConfig) -> tuple[int, ...]:
        return chosen.batch, chosen.stream_window, chosen.inferences, chosen.decoders

    assert sizes(EmbedderConfig(runtime=runtime)) == expected
    said = EmbedderConfig(
        runtime=runtime, max_batch=3, stream_images=4, inference_workers=5, decode_workers=7
    )
    assert sizes(said) == (3, 4, 5, 7)


def test_capacities_are_in_images_and_bytes() -> None:
    """Settings are in MiB."""
    chosen = EmbedderConfig(
        max_call_images=1, max_call_mib=2, max_stream_images=3, max_stream_mib=4
    )
    assert chosen.calls == Capacity(1, 2 * 2**20)
    assert chosen.streams == Capacity(3, 4 * 2**20)
    assert EmbedderConfig().calls == Capacity(512, 256 * 2**20)
    assert EmbedderConfig().streams == Capacity(1024, 256 * 2**20)


def test_processes_share_the_cores() -> None:
    """Rounded up; a GPU's runs are not divided, and what is said stays."""
    for processes, share in ((1, 6), (2, 3), (4, 2), (6, 1), (9, 1)):
        on_cpu = EmbedderConfig().among(processes)
        assert (on_cpu.inferences, on_cpu.decoders) == (share, share)
        on_gpu = EmbedderConfig(runtime=ON_GPU).among(processes)
        assert (on_gpu.inferences, on_gpu.decoders) == (2, share)
    said = EmbedderConfig(inference_workers=5, decode_workers=7)
    assert said.among(3) == said
