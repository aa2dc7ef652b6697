"""SIGTERM and SIGINT: what the first one does, and that a second one does what it did before."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from shoal.rpc.signals import catch_signals, catch_signals_in_thread, note_interrupts

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@pytest.fixture(autouse=True)
def caught() -> Iterator[list[int]]:
    """The signals that reached the handlers of before; those of the test's runner are put back."""
    numbers: list[int] = []
    runner = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    for each in runner:
        signal.signal(each, lambda number, _: numbers.append(number))
    yield numbers
    for each, handler in runner.items():
        signal.signal(each, handler)


def send(number: signal.Signals) -> None:
    """Sends this process a signal."""
    os.kill(os.getpid(), number)


@BOTH
def test_first_signal_sets_the_event_of_a_loop(number: signal.Signals, caught: list[int]) -> None:
    """A loop that waits wakes up; the second signal, of either kind, goes where it went before."""

    async def scenario() -> None:
        with catch_signals() as signalled:
            assert not signalled.is_set()
            asyncio.get_running_loop().call_soon(send, number)
            await asyncio.wait_for(signalled.wait(), 10)
            assert caught == []
            send(signal.SIGTERM)
            send(signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    with asyncio.Runner() as runner:
        runner.run(scenario())
    assert caught == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is before


@BOTH
def test_first_signal_sets_the_event_of_a_thread(number: signal.Signals, caught: list[int]) -> None:
    """The second signal, of either kind, goes where it went before."""
    with catch_signals_in_thread() as signalled:
        assert not signalled.is_set()
        send(number)
        assert signalled.is_set()
        assert caught == []
        send(signal.SIGTERM)
        send(signal.SIGINT)
    assert caught == [signal.SIGTERM, signal.SIGINT]


@BOTH
def test_without_a_signal_the_handlers_of_before_are_back(
    number: signal.Signals, caught: list[int]
) -> None:
    """After leaving, however it was left."""
    with catch_signals_in_thread():
        pass
    with note_interrupts():
        pass
    with pytest.raises(ZeroDivisionError), catch_signals_in_thread():
        _ = 1 / 0
    send(number)
    assert caught == [number]


@BOTH
def test_interrupt_is_noted_where_somebody_checks(
    number: signal.Signals, caught: list[int]
) -> None:
    """The first one ends the work at a check, the second one at once, whatever kind it is."""
    with note_interrupts() as check:
        check()
        send(number)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                check()
        for second in (signal.SIGTERM, signal.SIGINT):
            with pytest.raises(KeyboardInterrupt):
                send(second)
    assert caught == []


def test_interrupts_are_not_noted_in_another_thread(caught: list[int]) -> None:
    """Where no handler can be set; the check is there, and raises nothing."""
    done: list[str] = []

    def work() -> None:
        with note_interrupts() as check:
            send(signal.SIGTERM)
            check()
            done.append("checked")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert done == ["checked"]
    assert caught == [signal.SIGTERM]


def test_handler_that_python_does_not_know_is_left_alone() -> None:
    """One that a library has set in C is None here, and cannot be put back."""
    known = signal.getsignal

    def unknown(number: int) -> object:
        return None if number == signal.SIGTERM else known(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "getsignal", unknown)
        with catch_signals_in_thread() as signalled:
            send(signal.SIGTERM)
    assert signalled.is_set()
