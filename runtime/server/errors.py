"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}} and a status that selects the exception.

400 the request, 401 the key, 403 the host, 404 model or path, 408 too slow, 413 too large, 422 an unusable clip, 429 queue or
memory full, 503 not now (draining, or the remote LLM is unreachable), 504 the deadline. A failure of the server itself is 500
without details.
"""

from __future__ import annotations

from runtime.core.errors import ContextError, PromptError, UserError, VideoError
from runtime.llm.chat import DeadlineError
from runtime.llm.remote import RemoteError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_KNOWN: dict[type[UserError], tuple[int, str, str | None]] = {  # status, code, param; subclasses first
    ContextError: (400, "context_length_exceeded", "messages"),
    PromptError: (400, "invalid_prompt", "messages"),
    VideoError: (422, "invalid_video", "messages"),
    DeadlineError: (504, "deadline_exceeded", None),
}


class ApiError(UserError):
    """An error with its HTTP status; headers: in addition to the usual ones, e.g. Retry-After."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, headers: dict[str, str] | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers or {}

    def body(self) -> dict:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def media_too_large(most: int) -> ApiError:
    return ApiError(413, f"the clip is larger than {most} bytes, the most that this server takes", "media_too_large")


def forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of an error that has been handled.

    Their frames refer to the request and its large body, and to the error itself. That is a reference cycle, which stays in memory
    until the garbage collector runs, while more requests arrive.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def api_error(error: BaseException) -> ApiError:
    """The response to any exception. Only the text of a user's error is shown to the client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RemoteError):
        # what the remote refuses in the request is the client's error; everything else is the remote's or the operator's
        status = next((known for known in (400, 413, 422, 429) if known == error.status), 503)
        return ApiError(status, str(error), "remote_llm", headers={"Retry-After": "5"} if status in (429, 503) else {})
    for kind, (status, code, param) in _KNOWN.items():
        if isinstance(error, kind):
            return ApiError(status, str(error), code, param)
    return ApiError(500, "the server failed on this request; its log says why", "internal_error")
