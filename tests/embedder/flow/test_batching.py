"""The batcher: answers, batches, failures, closing. Pure asyncio, no images."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedder.flow.batching import FOR_EVER, Batcher, Lane, Patience, Portion
from shoal.errors import (
    ConfigError,
    DeadlineExceeded,
    ServiceUnavailable,
    StoreUnavailable,
)

pytestmark = pytest.mark.timeout(10)
"""A batcher that loses an item is found in seconds."""


class Doubler:
    """Doubles numbers, when told to; remembers its batches. Negative numbers are poison."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_run = asyncio.Event()
        self.under_way = 0
        self.most_under_way = 0

    async def __call__(self, batch: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(batch))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            async with asyncio.timeout(5):  # a test that fails tells nothing, and closes
                await self.may_run.wait()
        except TimeoutError:
            self.may_run.set()
            raise
        finally:
            self.under_way -= 1
        if any(number < 0 for number in batch):
            msg = f"poison in a batch of {len(batch)}"
            raise ValueError(msg)
        return [2 * number for number in batch]


def batcher(run: Doubler, *, workers: int = 1, max_batch: int = 8) -> Batcher[int, int]:
    return Batcher(run, name="doubling", workers=workers, portion=Portion(max_batch))


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def moment(when: float) -> None:
    """Wait until the loop's time is past ``when``."""
    come = asyncio.Event()
    asyncio.get_running_loop().call_at(when + 0.001, come.set)
    await come.wait()


def test_batcher_takes_what_waits_when_a_worker_is_free() -> None:
    """An idle worker takes a lone item at once; what arrives meanwhile is one batch."""

    async def scenario() -> None:
        run = Doubler()
        async with batcher(run) as doubling:
            first = asyncio.create_task(doubling.submit(1))
            await settled()
            rest = [asyncio.create_task(doubling.submit(number)) for number in range(2, 7)]
            await settled()
            assert run.batches == [[1]]
            assert len(doubling) == 5
            run.may_run.set()
            assert await asyncio.gather(first, *rest) == [2, 4, 6, 8, 10, 12]
            assert run.batches == [[1], [2, 3, 4, 5, 6]]

    asyncio.run(scenario())


def test_batcher_keeps_its_limits() -> None:
    """No batch is larger than max_batch, and no more than workers are under way."""

    async def scenario() -> None:
        run = Doubler()
        async with batcher(run, workers=2, max_batch=3) as doubling:
            tasks = [asyncio.create_task(doubling.submit(number)) for number in range(20)]
            await settled()
            assert run.most_under_way == 2
            run.may_run.set()
            assert await asyncio.gather(*tasks) == [2 * number for number in range(20)]
        assert max(map(len, run.batches)) == 3
        assert run.most_under_way == 2

    asyncio.run(scenario())


def test_batcher_leaves_no_worker_idle_beside_a_full_batch() -> None:
    """Items that wait together are shared among all workers: whoever is free next finds some."""

    async def scenario() -> None:
        run = Doubler()
        async with batcher(run, workers=2, max_batch=8) as doubling:
            tasks = [asyncio.create_task(doubling.submit(number)) for number in range(6)]
            await settled()
            assert run.batches == [[0, 1, 2], [3, 4]]
            run.may_run.set()
            await asyncio.gather(*tasks)
            assert run.batches[2:] == [[5]]

    asyncio.run(scenario())


def test_batcher_counts_a_busy_worker_half() -> None:
    """A worker takes its part of what waits, where each free worker counts whole, a busy one half.

    Of 12 items, the first of three free workers takes 12 / 3; the second 8 / 2.5, rounded up; the
    third 4 / 2. Whoever is free next takes what is left, and all are free again after that.
    """

    async def scenario() -> None:
        run = Doubler()
        async with batcher(run, workers=3, max_batch=8) as doubling:
            tasks = [asyncio.create_task(doubling.submit(number)) for number in range(12)]
            await settled()
            assert run.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
            run.may_run.set()
            await asyncio.gather(*tasks)
            assert run.batches[3] == [10]
            run.may_run.clear()
            tasks = [asyncio.create_task(doubling.submit(number)) for number in range(12)]
            await settled()
            assert run.batches[-3:] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
            run.may_run.set()
            await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_batcher_without_a_limit_of_weight_weighs_nothing() -> None:
    """A weight of 0 is no limit, whatever the items weigh; and an item weighs 1 by default."""

    async def scenario() -> None:
        run = Doubler()
        run.may_run.set()
        unlimited: Portion[int] = Portion(8, weigh=lambda number: number)
        weightless: Portion[int] = Portion(8, weight=3)
        for portion in (unlimited, weightless):
            async with Batcher(run, name="doubling", workers=1, portion=portion) as doubling:
                await asyncio.gather(*map(doubling.submit, (3, 30, 300)))
        assert run.batches == [[3, 30, 300]] * 2

    asyncio.run(scenario())


def test_batcher_serves_callers_in_turn_by_what_their_items_weigh() -> None:
    """One caller's many items do not hold up another's few; the lanes still take turns."""

    async def scenario() -> None:
        run = Doubler()
        portion: Portion[int] = Portion(1, weigh=lambda number: 10 if number >= 100 else 1)
        async with Batcher(run, name="doubling", workers=1, portion=portion) as doubling:

            def submit(number: int, caller: str, lane: Lane = Lane.CALL) -> asyncio.Task[int]:
                return asyncio.create_task(doubling.submit(number, Patience(lane, None, caller)))

            tasks = [submit(number, "slow") for number in (100, 101, 102)]
            await settled()
            tasks += [submit(number, "quick") for number in range(1, 12)]
            tasks += [submit(number, "other", Lane.STREAM) for number in (50, 51)]
            await settled()
            run.may_run.set()
            assert await asyncio.gather(*tasks)
        order = [number for (number,) in run.batches]
        assert order[0] == 100
        assert sorted(order[1:5]) == [1, 2, 50, 51]
        assert [number for number in order if number < 50] == list(range(1, 12))
        assert order.index(9) < order.index(101) < order.index(11) < order.index(102)

    asyncio.run(scenario())


def test_batcher_takes_nothing_more_once_a_batch_weighs_enough() -> None:
    """What is too heavy beside others waits for the next batch, and may be as heavy as it is."""

    async def scenario() -> None:
        run = Doubler()
        run.may_run.set()
        portion: Portion[int] = Portion(8, weight=10, weigh=lambda number: number)
        async with Batcher(run, name="doubling", workers=1, portion=portion) as doubling:
            numbers = [3, 3, 30, 30, 1, 9, 2]
            answers = await asyncio.gather(*map(doubling.submit, numbers))
        assert answers == [2 * number for number in numbers]
        assert run.batches == [[3, 3], [30], [30], [1, 9], [2]]
        run.batches.clear()
        least: Portion[int] = Portion(8, weight=1, weigh=lambda number: number)
        async with Batcher(run, name="doubling", workers=1, portion=least) as doubling:
            await asyncio.gather(*map(doubling.submit, [1, 1]))
        assert run.batches == [[1], [1]]

    asyncio.run(scenario())


def test_batcher_that_does_not_spread_makes_one_batch() -> None:
    """The first worker takes all that a batch holds, the next what is left."""

    async def scenario() -> None:
        run = Doubler()
        run.may_run.set()
        together = Batcher(run, name="doubling", workers=2, portion=Portion(8, spread=False))
        async with together as doubling:
            answers = await asyncio.gather(*(doubling.submit(number) for number in range(11)))
        assert answers == [2 * number for number in range(11)]
        assert run.batches == [list(range(8)), [8, 9, 10]]

    asyncio.run(scenario())


def test_batcher_serves_lanes_in_turn() -> None:
    """A call that comes after a long stream is in the very next batch."""

    async def scenario() -> None:
        run = Doubler()
        async with batcher(run, max_batch=4) as doubling:
            tasks = [
                asyncio.create_task(doubling.submit(number, Patience(Lane.STREAM)))
                for number in range(12)
            ]
            await settled()
            tasks.append(asyncio.create_task(doubling.submit(100, Patience(Lane.CALL))))
            await settled()
            run.may_run.set()
            await asyncio.gather(*tasks)
        assert 100 in run.batches[1]
        assert sorted(chain.from_iterable(run.batches)) == [*range(12), 100]

    asyncio.run(scenario())


@pytest.mark.parametrize("max_batch", [1, 3, 8])
def test_batcher_serves_a_stream_beside_ever_more_calls(max_batch: int) -> None:
    """While both lanes wait they take turns, from batch to batch too; calls come first."""

    async def scenario() -> None:
        run = Doubler()
        async with batcher(run, max_batch=max_batch) as doubling:
            first = asyncio.create_task(doubling.submit(0, Patience(Lane.STREAM)))
            await settled()
            tasks = [
                asyncio.create_task(doubling.submit(number, Patience(lane)))
                for lane, numbers in ((Lane.STREAM, (10, 11, 12)), (Lane.CALL, (1, 2, 3, 4, 5)))
                for number in numbers
            ]
            await settled()
            run.may_run.set()
            await asyncio.gather(first, *tasks)
        assert list(chain.from_iterable(run.batches)) == [0, 1, 10, 2, 11, 3, 12, 4, 5]
        assert max(map(len, run.batches)) == max_batch

    asyncio.run(scenario())


def test_batcher_gives_no_turn_to_items_that_nobody_waits_for() -> None:
    """A call that comes after expired and cancelled ones is not behind a stream's items too."""

    async def scenario() -> None:
        run = Doubler()
        async with batcher(run, max_batch=1) as doubling:
            first = asyncio.create_task(doubling.submit(0, Patience(Lane.STREAM)))
            await settled()
            now = asyncio.get_running_loop().time()
            late, gone = (
                asyncio.create_task(doubling.submit(number, patience))
                for number, patience in ((7, Patience(deadline=now)), (8, FOR_EVER))
            )
            tasks = [
                asyncio.create_task(doubling.submit(number, Patience(lane)))
                for lane, number in ((Lane.STREAM, 10), (Lane.STREAM, 11), (Lane.CALL, 1))
            ]
            await settled()
            gone.cancel()
            await settled()
            run.may_run.set()
            await asyncio.gather(first, *tasks)
            with pytest.raises(DeadlineExceeded):
                await late
        assert run.batches == [[0], [1], [10], [11]]

    asyncio.run(scenario())


def test_batcher_tells_how_long_each_item_waited_and_how_many_wait_on() -> None:
    """The watch is called once for each batch that a worker takes, before it runs."""
    told: list[tuple[list[float], int]] = []

    async def scenario() -> None:
        run = Doubler()
        loop = asyncio.get_running_loop()
        watched: Batcher[int, int] = Batcher(
            run,
            name="watched",
            workers=1,
            portion=Portion(2),
            watch=lambda waited_s, left: told.append((list(waited_s), left)),
        )
        async with watched:
            before = loop.time()
            late = asyncio.create_task(watched.submit(0, Patience(deadline=before)))
            tasks = [asyncio.create_task(watched.submit(1))]
            await settled()
            submitted = loop.time()
            tasks += [asyncio.create_task(watched.submit(number)) for number in (-2, 3, 4)]
            await settled()
            await moment(submitted + 0.01)
            run.may_run.set()
            await asyncio.gather(late, *tasks, return_exceptions=True)
        assert [(len(waited_s), left) for waited_s, left in told] == [(1, 0), (2, 1), (1, 0)]
        assert 0 <= told[0][0][0] <= submitted - before
        for waited in (*told[1][0], *told[2][0]):
            assert 0.01 <= waited <= loop.time() - submitted

    asyncio.run(scenario())


def test_batcher_keeps_no_item_that_it_has_answered() -> None:
    """An idle batcher holds nothing: an image is up to 20 MiB."""

    class Image:
        pass

    async def run(batch: Sequence[Image]) -> list[int | Exception]:
        return [len(batch)] * len(batch)

    async def scenario() -> None:
        images: Batcher[Image, int] = Batcher(run, name="images", workers=2, portion=Portion(8))
        async with images:
            image = Image()
            known = weakref.ref(image)
            assert await images.submit(image) == 1
            del image
            await settled()
            assert known() is None

    asyncio.run(scenario())


def test_batcher_skips_callers_who_have_gone() -> None:
    """An item whose caller was cancelled while it waited never reaches the model."""

    async def scenario() -> None:
        run = Doubler()
        async with batcher(run) as doubling:
            first = asyncio.create_task(doubling.submit(1))
            await settled()
            gone, stays = (asyncio.create_task(doubling.submit(number)) for number in (2, 3))
            await settled()
            gone.cancel()
            await settled()
            run.may_run.set()
            assert [await first, await stays] == [2, 6]
        assert run.batches == [[1], [3]]

    asyncio.run(scenario())


def test_batcher_drops_expired_items() -> None:
    """An item whose deadline passed while it waited is refused and never reaches the model."""

    async def scenario() -> None:
        run = Doubler()
        run.may_run.set()
        async with batcher(run) as doubling:
            now = asyncio.get_running_loop().time()
            answers = await asyncio.gather(
                doubling.submit(1, Patience(deadline=now - 1)),
                doubling.submit(2, Patience(deadline=now + 60)),
                return_exceptions=True,
            )
        assert isinstance(answers[0], DeadlineExceeded)
        message = "doubling: the deadline passed while the item was waiting"
        assert str(answers[0]) == message
        assert answers[1] == 4
        assert run.batches == [[2]]

    asyncio.run(scenario())


def test_batcher_does_not_try_again_for_callers_who_have_gone() -> None:
    """An item whose caller goes while its batch fails is not run alone."""

    async def scenario() -> None:
        run = Doubler()
        async with batcher(run) as doubling:
            poison, gone, stays = (
                asyncio.create_task(doubling.submit(number)) for number in (-1, 2, 3)
            )
            await settled()
            gone.cancel()
            await settled()
            run.may_run.set()
            answers = await asyncio.gather(poison, stays, return_exceptions=True)
            assert [str(answer) for answer in answers] == ["poison in a batch of 1", "6"]
        assert run.batches == [[-1, 2, 3], [-1], [3]]

    asyncio.run(scenario())


def test_batcher_does_not_try_again_for_expired_items() -> None:
    """An item whose deadline passes while its batch fails is refused, and is not run alone."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        batches: list[list[int]] = []
        deadline = loop.time() + 0.05

        async def run(batch: Sequence[int]) -> list[int | Exception]:
            batches.append(list(batch))
            await moment(deadline)  # the batch takes longer than one of its items may wait
            if len(batch) > 1:
                msg = "too many"
                raise ValueError(msg)
            return list(batch)

        slow: Batcher[int, int] = Batcher(run, name="slow", workers=1, portion=Portion(8))
        async with slow:
            answers = await asyncio.gather(
                slow.submit(1, Patience(deadline=loop.time() + 600)),
                slow.submit(2, Patience(deadline=deadline)),
                slow.submit(3, FOR_EVER),
                return_exceptions=True,
            )
        assert [answers[0], answers[2]] == [1, 3]
        assert isinstance(answers[1], DeadlineExceeded)
        assert batches == [[1, 2, 3], [1], [3]]

    asyncio.run(scenario())


def test_batcher_drops_items_at_their_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline that is now has passed."""

    async def scenario() -> None:
        run = Doubler()
        run.may_run.set()
        loop = asyncio.get_running_loop()
        now = loop.time()
        with monkeypatch.context() as stopped:
            stopped.setattr(loop, "time", lambda: now)
            async with batcher(run) as doubling:
                answers = await asyncio.gather(
                    doubling.submit(1, Patience(deadline=now)),
                    doubling.submit(2, Patience(deadline=now + 1e-6)),
                    return_exceptions=True,
                )
        assert isinstance(answers[0], DeadlineExceeded)
        assert answers[1] == 4
        assert run.batches == [[2]]

    asyncio.run(scenario())


def test_batcher_poison_costs_only_itself() -> None:
    """After a batch failed, each of its items is tried alone; the next batch is served too."""

    async def scenario() -> None:
        run = Doubler()
        async with batcher(run) as doubling:
            first = asyncio.create_task(doubling.submit(0))
            await settled()
            tasks = [asyncio.create_task(doubling.submit(number)) for number in (1, -2, 3)]
            await settled()
            run.may_run.set()
            answers = await asyncio.gather(first, *tasks, return_exceptions=True)
            assert answers[:2] == [0, 2]
            assert str(answers[2]) == "poison in a batch of 1"
            assert answers[3] == 6
            assert await doubling.submit(4) == 8
        assert run.batches == [[0], [1, -2, 3], [1], [-2], [3], [4]]

    asyncio.run(scenario())


def test_batcher_does_not_repeat_an_item_that_was_alone() -> None:
    """A batch of one that fails has failed: running it once more could tell nothing new."""

    async def scenario() -> None:
        run = Doubler()
        run.may_run.set()
        async with batcher(run) as doubling:
            with pytest.raises(ValueError, match="poison in a batch of 1"):
                await doubling.submit(-1)
        assert run.batches == [[-1]]

    asyncio.run(scenario())


def test_batcher_does_not_repeat_what_is_transient() -> None:
    """A batch that fails because the store is away fails at once for all, without a retry."""
    batches: list[int] = []

    async def run(batch: Sequence[int]) -> list[int | Exception]:
        batches.append(len(batch))
        msg = "the store is away"
        raise StoreUnavailable(msg)

    async def scenario() -> None:
        away: Batcher[int, int] = Batcher(run, name="away", workers=1, portion=Portion(8))
        async with away:
            answers = await asyncio.gather(
                *(away.submit(number) for number in range(3)), return_exceptions=True
            )
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 3
        assert batches == [3]

    asyncio.run(scenario())


def test_batcher_passes_on_the_exception_of_one_item() -> None:
    """An exception among the answers goes to its own caller, and nobody is asked again."""
    batches: list[int] = []

    async def run(batch: Sequence[int]) -> list[int | Exception]:
        batches.append(len(batch))
        return [ValueError(str(number)) if number % 2 else number for number in batch]

    async def scenario() -> None:
        odd: Batcher[int, int] = Batcher(run, name="odd", workers=1, portion=Portion(8))
        async with odd:
            answers = await asyncio.gather(
                *(odd.submit(number) for number in range(4)), return_exceptions=True
            )
        assert [str(answer) for answer in answers] == ["0", "1", "2", "3"]
        assert [isinstance(answer, ValueError) for answer in answers] == [False, True] * 2
        assert batches == [4]

    asyncio.run(scenario())


def test_batcher_refuses_a_wrong_number_of_answers() -> None:
    """A model that answers too few fails its callers; nobody gets another's answer."""

    async def run(batch: Sequence[int]) -> list[int | Exception]:
        return list(batch[:-1])

    async def scenario() -> None:
        short: Batcher[int, int] = Batcher(run, name="short", workers=1, portion=Portion(8))
        async with short:
            answers = await asyncio.gather(
                *(short.submit(number) for number in range(3)), return_exceptions=True
            )
        assert [str(answer) for answer in answers] == ["short: expected 1 answers, got 0"] * 3

    asyncio.run(scenario())


def test_batcher_close_answers_what_waits_and_refuses_the_rest() -> None:
    """Closing drains: all that was accepted is answered, nothing new is accepted."""

    async def scenario() -> None:
        run = Doubler()
        doubling = batcher(run, max_batch=2)
        doubling.start()
        tasks = [asyncio.create_task(doubling.submit(number)) for number in range(5)]
        await settled()
        closing = asyncio.create_task(doubling.close())
        await settled()
        message = "doubling: shutting down, nothing new is accepted"
        with pytest.raises(ServiceUnavailable, match=f"^{message}$"):
            await doubling.submit(9)
        run.may_run.set()
        await closing
        assert [task.result() for task in tasks] == [0, 2, 4, 6, 8]

    asyncio.run(scenario())


def test_batcher_forced_close_leaves_no_caller_waiting() -> None:
    """A close that is cancelled answers everybody with ServiceUnavailable."""

    async def scenario() -> None:
        run = Doubler()
        doubling = batcher(run, max_batch=2)
        doubling.start()
        tasks = [asyncio.create_task(doubling.submit(number)) for number in range(5)]
        await settled()
        closing = asyncio.create_task(doubling.close())
        await settled()
        closing.cancel()
        answers = await asyncio.gather(closing, *tasks, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert [type(answer) for answer in answers[1:]] == [ServiceUnavailable] * 5
        assert {str(answer) for answer in answers[1:]} == {
            "doubling: shutting down, nothing new is accepted"
        }
        assert len(doubling) == 0

    asyncio.run(scenario())


def test_batcher_tasks_are_named_and_end_with_it() -> None:
    """A worker in a dump of all tasks tells whose it is; a closed batcher leaves none."""

    async def scenario() -> None:
        async with batcher(Doubler(), workers=2):
            others = asyncio.all_tasks() - {asyncio.current_task()}
            assert {task.get_name() for task in others} == {"doubling-0", "doubling-1"}
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


@pytest.mark.parametrize(("workers", "max_batch"), [(0, 1), (1, 0)])
def test_batcher_refuses_nothing_to_work_with(workers: int, max_batch: int) -> None:
    """Without a worker or room for an item, a batcher would accept and never answer."""

    async def scenario() -> None:
        with pytest.raises(ConfigError) as caught:
            batcher(Doubler(), workers=workers, max_batch=max_batch)
        assert caught.value.message == (
            "doubling: expected at least 1 worker and 1 item per batch, "
            f"got {workers} and {max_batch}"
        )
        assert caught.value.metadata["field"] == "doubling"

    asyncio.run(scenario())


ITEM = st.fixed_dictionaries(
    {
        "poison": st.sampled_from(["no", "no", "no", "batch", "item"]),
        "cancel": st.booleans(),
        "patience_s": st.sampled_from([None, None, None, -1.0, 1e-4]),
        "lane": st.sampled_from(Lane),
        "pause": st.integers(0, 3),
    }
)


@settings(max_examples=150, deadline=None)
@given(
    items=st.lists(ITEM, max_size=30),
    workers=st.integers(1, 3),
    max_batch=st.integers(1, 5),
    steps=st.integers(0, 3),
    spread=st.booleans(),
)
def test_batcher_answers_each_exactly_once_in_its_own_slot(  # noqa: C901 - one list of cases
    *, items: list[dict[str, object]], workers: int, max_batch: int, steps: int, spread: bool
) -> None:
    """Under failures, cancels and deadlines each caller gets one answer, and it is its own.

    Nothing that was cancelled at once, or had expired, reaches the model, also where it expired
    while it waited; no item that is not part of a failed batch is run twice.
    """
    runs: dict[int, int] = {}
    failed: set[int] = set()

    async def run(batch: Sequence[int]) -> list[str | Exception]:
        for number in batch:
            runs[number] = runs.get(number, 0) + 1
        for _ in range(steps):
            await asyncio.sleep(0)
        if any(items[number]["poison"] == "batch" for number in batch):
            failed.update(batch)
            msg = f"batch {sorted(batch)}"
            raise ValueError(msg)
        return [
            ValueError(f"item {number}") if items[number]["poison"] == "item" else f"ok {number}"
            for number in batch
        ]

    async def scenario() -> list[str | BaseException]:
        answering: Batcher[int, str] = Batcher(
            run, name="answering", workers=workers, portion=Portion(max_batch, spread=spread)
        )
        now = asyncio.get_running_loop().time()
        tasks: list[asyncio.Task[str]] = []
        async with answering:
            for number, item in enumerate(items):
                patience = item["patience_s"]
                assert patience is None or isinstance(patience, float)
                deadline = None if patience is None else now + patience
                lane = item["lane"]
                assert isinstance(lane, Lane)
                submission = answering.submit(number, Patience(lane, deadline))
                tasks.append(asyncio.create_task(submission))
                assert isinstance(item["pause"], int)
                for _ in range(item["pause"]):
                    await asyncio.sleep(0)
                if item["cancel"]:
                    tasks[-1].cancel()
            await asyncio.sleep(0)  # every task has submitted before the door closes
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(scenario())
    assert len(answers) == len(items)
    for number, (item, answer) in enumerate(zip(items, answers, strict=True)):
        if isinstance(answer, asyncio.CancelledError):
            assert item["cancel"]
        elif item["patience_s"] == -1 or isinstance(answer, DeadlineExceeded):
            assert isinstance(answer, DeadlineExceeded)
            assert item["patience_s"] is not None
            assert runs.get(number, 0) <= (number in failed)
        elif item["poison"] == "batch":
            assert str(answer) == f"batch [{number}]"
        else:
            assert str(answer) == f"{'item' if item['poison'] == 'item' else 'ok'} {number}"
        if item["patience_s"] == -1 or (item["cancel"] and item["pause"] == 0):
            assert number not in runs
        assert runs.get(number, 0) <= (2 if number in failed else 1)
