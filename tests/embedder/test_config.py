"""The settings of the embedder: their ranges, and the defaults that depend on the machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from embedder import config
from embedder.config import EmbedderConfig
from embedder.encoding.config import RuntimeConfig
from embedder.flow.admission import Capacity
from embedder.images.limits import DecodeMemory
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
        {"max_decode_memory_mib": -1},
        {"max_call_decode_s": 0},
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


def test_config_shares_out_the_memory_for_decoding() -> None:
    """By default 1 GiB and 64 MiB a core; processes on one machine share what is set."""
    assert EmbedderConfig().decode_memory == DecodeMemory(64 * 2**20, 2**30)
    on_gpu = EmbedderConfig(runtime=ON_GPU, decode_workers=2)
    assert on_gpu.decode_memory == DecodeMemory(64 * 2**20, 2**30)
    shared = EmbedderConfig(max_decode_memory_mib=900).among(3)
    assert shared.max_decode_memory_mib == 300
    assert shared.decode_memory.each * 2 + shared.decode_memory.apart == 300 * 2**20
    assert EmbedderConfig().among(3).max_decode_memory_mib == 0


def test_config_bounds_slow_images_by_their_seconds() -> None:
    """All calls may have twice in process what one call may; so may all streams."""
    settings = EmbedderConfig(max_call_decode_s=1.5, max_call_mib=3, max_stream_mib=5)
    assert settings.slow_calls == Capacity(3000, 3 * 2**20)
    assert settings.slow_streams == Capacity(3000, 5 * 2**20)
