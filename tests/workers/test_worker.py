"""The body of the worker process."""

from __future__ import annotations

from multiprocessing import Pipe

import pytest

from tests.conftest import TONE
from tests.tone import ToneModel
from vox_serve.engine.engine import Engine
from vox_serve.logs import LogSettings
from vox_serve.messages import AddVoice, RemoveVoice, Shutdown
from vox_serve.workers import worker


def test_an_exception_that_ends_it_is_logged_and_not_printed(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(worker, "configure", lambda settings, descriptor: None)
    monkeypatch.setattr(worker, "redirect_prints", lambda to: 2)
    monkeypatch.setattr(worker, "run", fails)
    _, prints = Pipe(duplex=False)
    with pytest.raises(SystemExit) as ended:
        worker.run_process(None, prints, TONE, LogSettings())
    assert ended.value.code == 1
    (record,) = caplog.records
    assert record.levelname == "CRITICAL"
    assert record.exc_info[0] is ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_the_last_reported_list_of_voices_is_the_newest() -> None:
    """A voice is removed after another was added but before that was reported."""
    engine = Engine(ToneModel(), TONE)
    engine.prompts.voices.add("bob", 0, ())
    server, end = Pipe()
    with server, end:
        body = worker.Worker(end, engine)
        report = body._add_voice(AddVoice("add", "ann", 0, ()))
        body._handle(RemoveVoice("remove", "bob"))
        report()
        server.send(Shutdown())
        body.serve()
        lists = [server.recv().events[0].voices for _ in range(2)]
    assert lists[-1] == engine.prompts.voices.names
    assert ("bob", 0) not in lists[-1]
