"""Every error that vox_serve raises on purpose.

    VoxServeError
    ├── ConfigError            a flag or setting is out of range
    ├── PluginError            a plugin cannot be used; the others still work
    ├── UnknownModel           no installed plugin serves what --model names
    ├── CheckpointError        the files of a model cannot be used; says what to do
    ├── EngineError            the engine could not start, or died
    ├── BenchError             the server being measured returns no audio
    ├── AudioUnreadable        an audio file cannot be used (`vox_serve.audio`)
    └── RequestError           one request cannot be served; the others go on
        ├── InvalidRequest     malformed, or a field out of range
        ├── NotFound           no such voice, speaker, model, request or conversation
        ├── Conflict           the conversation's last turn is still being spoken
        ├── AlreadyExists      the name is taken
        ├── UnspeakableText    well formed, but this model cannot speak it
        │   ├── NothingToSpeak no letter, digit or sign in it that has a reading
        │   └── PromptTooLong  text and context do not fit the model's context
        ├── QueueFull          try again later
        ├── Unavailable        the engine is starting, draining or dead
        ├── TimedOut           the request took longer than the server allows
        ├── Cancelled          another connection ended it: DELETE /requests/{id}
        └── SequenceFailed     the engine gave up on this request

Only the server turns the `code` of a `RequestError` into an HTTP status.
"""

from __future__ import annotations


class VoxServeError(Exception):
    """Root of the tree; its message is one line that can be shown to a person."""


class ConfigError(VoxServeError):
    pass


class PluginError(VoxServeError):
    pass


class UnknownModel(VoxServeError):
    pass


class CheckpointError(VoxServeError):
    pass


class EngineError(VoxServeError):
    pass


class BenchError(VoxServeError):
    pass


class RequestError(VoxServeError):
    """One request cannot be served.

    Args:
        message: one sentence that names the field and the limit.
        param: the request field at fault, if there is one.
    """

    code = "request_error"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def plain(self) -> RequestError:
        """This error as a class of this module: a plugin's own class cannot cross processes."""
        kind: type[RequestError] = next(c for c in type(self).__mro__ if c.__module__ == __name__)
        return kind(self.message, self.param)

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, str | None]]:
        return type(self), (self.message, self.param)


class InvalidRequest(RequestError):
    code = "invalid_request"


class NotFound(RequestError):
    code = "not_found"


class Conflict(RequestError):
    code = "conflict"


class AlreadyExists(RequestError):
    code = "already_exists"


class UnspeakableText(RequestError):
    code = "unspeakable_text"


class NothingToSpeak(UnspeakableText):
    code = "nothing_to_speak"


class PromptTooLong(UnspeakableText):
    code = "prompt_too_long"


class QueueFull(RequestError):
    code = "queue_full"


class Unavailable(RequestError):
    code = "unavailable"


class TimedOut(RequestError):
    code = "timeout"


class Cancelled(RequestError):
    code = "cancelled"


class SequenceFailed(RequestError):
    code = "generation_failed"
