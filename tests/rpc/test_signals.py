"""SIGTERM, SIGINT, SIGHUP: what the first one does; a second one does what it did before."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from shoal.rpc.signals import (
    catch_signals,
    catch_signals_in_thread,
    interrupted_by_signals,
    note_interrupts,
)

ALL = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EACH = pytest.mark.parametrize("number", ALL)


@pytest.fixture(autouse=True)
def caught() -> Iterator[list[int]]:
    """The signals that reached the handlers of before; those of the test's runner are put back."""
    numbers: list[int] = []
    runner = {each: signal.getsignal(each) for each in ALL}
    for each in runner:
        signal.signal(each, lambda number, _: numbers.append(number))
    yield numbers
    for each, handler in runner.items():
        signal.signal(each, handler)


def send(number: signal.Signals) -> None:
    """Sends this process a signal."""
    os.kill(os.getpid(), number)


@EACH
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


@EACH
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


@EACH
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


@EACH
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_interrupt_with_their_number(number: signal.Signals, caught: list[int]) -> None:
    """As Ctrl-C does; afterwards the handlers of before are back."""

    def wait() -> None:
        with interrupted_by_signals():
            send(number)
            threading.Event().wait(10)

    with pytest.raises(KeyboardInterrupt) as interrupt:
        wait()
    assert interrupt.value.args == (number,)
    send(number)
    assert caught == [number]


def test_a_hangup_that_is_ignored_stays_so(caught: list[int]) -> None:
    """With nohup, the end of the terminal ends nothing."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interrupted_by_signals(), catch_signals_in_thread() as signalled, note_interrupts() as ask:
        send(signal.SIGHUP)
        assert not signalled.is_set()
        ask()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert caught == []


def test_signals_of_other_threads_are_left_alone() -> None:
    """Only the main thread may set handlers."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with interrupted_by_signals():
                pass
        except BaseException as exc:  # noqa: BLE001 - whatever it is
            errors.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
