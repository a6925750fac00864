"""Processes for work with limits: their results, and every way in which they fail."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from tests.workers.work import (
    bomb,
    crash,
    double,
    fail,
    hang,
    hold,
    leave,
    noise,
    process_id,
    refuse,
    stop,
    unsendable,
)
from vox_serve.errors import NothingToSpeak, QueueFull, RequestError
from vox_serve.workers.jobs import JobFailed, Jobs


@asynccontextmanager
async def jobs(**settings: Any) -> AsyncIterator[Jobs]:
    made = Jobs("test", **{"processes": 1, **settings})
    try:
        yield made
    finally:
        made.close()


def run(*work: Callable[..., Any], **settings: Any) -> list[Any]:
    """Run jobs one after another; returns what each returned or raised."""

    async def main() -> list[Any]:
        async with jobs(**settings) as made:
            return [
                (await asyncio.gather(made.run(one), return_exceptions=True))[0] for one in work
            ]

    return asyncio.run(main())


def test_a_process_does_one_job_after_another() -> None:
    ours, first, second = os.getpid(), *run(process_id, process_id)
    assert first == second != ours


def test_arguments_and_results_may_be_large() -> None:
    async def main() -> None:
        async with jobs() as made:
            assert np.array_equal(await made.run(double, np.ones(2**20)), np.full(2**20, 2.0))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (crash, "its process was killed by SIGSEGV"),
        (leave, "its process ended with exit code 3"),
        (hang, "it took longer than 0.3 seconds"),
        (hold, "it took longer than 0.3 seconds"),
        (stop, "it took longer than 0.3 seconds"),
        (bomb, "it needs more than 512 MiB of memory"),
        (fail, "KeyError"),
        (unsendable, "its process ended with exit code 1"),
    ],
)
def test_a_job_that_fails_says_why_and_the_next_one_succeeds(
    work: Callable[[], Any], reason: str, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    failed, after = run(work, process_id, seconds=0.3)
    assert isinstance(failed, JobFailed)
    assert str(failed) == reason
    assert after != os.getpid()
    assert "secret" not in caplog.text
    assert capfd.readouterr() == ("", "")


def test_an_error_is_logged_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        run(fail)
    assert "KeyError" in caplog.text
    assert "in fail" in caplog.text


def test_a_plugins_refusal_arrives_as_one_of_our_errors() -> None:
    (refused,) = run(refuse)
    assert type(refused) is NothingToSpeak
    assert isinstance(refused, RequestError)
    assert (refused.message, refused.param) == ("nothing to say", "text")


def test_the_output_of_a_job_is_discarded(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(noise) == ["done"]
    assert capfd.readouterr() == ("", "")


def test_another_job_does_not_wait_for_one_that_hangs() -> None:
    async def main() -> None:
        async with jobs(processes=2, seconds=60) as made:
            hanging = asyncio.ensure_future(made.run(hang))
            assert await made.run(process_id) != os.getpid()
            assert not hanging.done()
            hanging.cancel()

    asyncio.run(main())


def test_the_number_of_waiting_jobs_is_limited() -> None:
    async def main() -> None:
        async with jobs(waiting=1, seconds=60) as made:
            tasks = [asyncio.ensure_future(made.run(hang)) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="2 test jobs are open"):
                await made.run(process_id)
            for task in tasks:
                task.cancel()

    asyncio.run(main())


def test_closing_ends_the_processes_and_their_jobs() -> None:
    async def main() -> tuple[int, BaseException | None]:
        async with jobs(processes=2, seconds=60) as made:
            pid = await made.run(process_id)
            hanging = asyncio.ensure_future(made.run(hang))
            await asyncio.sleep(0.05)
        await asyncio.wait((hanging,))
        return pid, hanging.exception()

    pid, error = asyncio.run(main())
    assert isinstance(error, JobFailed)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    for thread in threading.enumerate():
        if thread.name.startswith("test"):
            thread.join(5)
            assert not thread.is_alive()
