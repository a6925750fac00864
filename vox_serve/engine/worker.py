"""The loop around `Engine.step`, and the process that it runs in.

Drain the inbox, step, post the outbox; when idle, sleep in the inbox until something comes
or a heartbeat is due.  The same loop runs in a thread for tests.
"""

from __future__ import annotations

import logging
from multiprocessing.connection import Connection

from vox_serve.config import EngineConfig
from vox_serve.engine.engine import Engine
from vox_serve.engine.load import load_engine
from vox_serve.engine.messages import Abort, Add, Failed, LoadFailed, Ready, Shutdown, StepOutput
from vox_serve.errors import RequestError, SequenceFailed, VoxServeError
from vox_serve.plugins import load_plugins

HEARTBEAT_SECONDS = 0.25
log = logging.getLogger("vox_serve.worker")


def run_process(connection: Connection, config: EngineConfig, log_level: str) -> None:
    """Body of the worker process."""
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    run(connection, config)


def run(connection: Connection, config: EngineConfig) -> None:
    """Load the engine, say so, and serve until `Shutdown` or until the server is gone."""
    try:
        try:
            engine, info = load_engine(config, load_plugins(config.plugins))
        except VoxServeError as error:
            connection.send(LoadFailed(str(error)))
            return
        except Exception as error:
            log.exception("the model cannot be loaded")
            connection.send(LoadFailed(f"the model cannot be loaded: {error!r}"))
            return
        connection.send(Ready(info))
        serve(connection, engine)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        log.debug("the server is gone")


def serve(connection: Connection, engine: Engine) -> None:
    """Step while there is work; an exception out of `Engine.step` ends the worker."""
    while True:
        wait = 0.0 if engine.has_work else HEARTBEAT_SECONDS
        refused: list[Failed] = []
        while connection.poll(wait):
            message = connection.recv()
            wait = 0.0
            if isinstance(message, Shutdown):
                return
            if isinstance(message, Add):
                refused += _add(engine, message)
            elif isinstance(message, Abort):
                engine.abort(message.request_id)
        if refused:
            connection.send(StepOutput(tuple(refused), engine.stats))
        connection.send(engine.step())


def _add(engine: Engine, message: Add) -> list[Failed]:
    request_id = message.request.id
    try:
        engine.add(message.request)
    except RequestError as error:
        return [Failed(request_id, error.plain())]
    except Exception as error:  # prompt building is a plugin's; it may raise anything
        log.error("request %s could not be prepared", request_id, exc_info=error)
        reason = f"the prompt could not be built ({type(error).__name__}); see the server's log"
        return [Failed(request_id, SequenceFailed(reason))]
    return []
