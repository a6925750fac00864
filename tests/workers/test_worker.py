"""The body of the worker process."""

from __future__ import annotations

import pytest

from tests.conftest import TONE
from vox_serve.logs import LogSettings
from vox_serve.workers import worker


def test_an_exception_that_ends_it_is_in_the_log_and_not_beside_it(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(worker, "configure", lambda settings: None)
    monkeypatch.setattr(worker, "run", fails)
    with pytest.raises(SystemExit) as ended:
        worker.run_process(None, TONE, LogSettings())
    assert ended.value.code == 1
    (record,) = caplog.records
    assert record.levelname == "CRITICAL"
    assert record.exc_info[0] is ZeroDivisionError
    assert capsys.readouterr().err == ""
