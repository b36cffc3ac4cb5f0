"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}} and a status that picks their class.

400 the request, 401 the key, 403 the host, 404 model or path, 408 too slow, 413 too large, 422 a clip that can't be
used, 429 the queue or memory is full, 503 not now (draining, or the remote LLM is away), 504 the deadline. A fault of the server is 500
without details.
"""

from __future__ import annotations

from runtime.core.errors import ContextError, PromptError, UserError, VideoError
from runtime.llm.chat import DeadlineError
from runtime.llm.remote import RemoteError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


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


def forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of an error that was handled.

    Their frames refer to the request, its body above all, and to the error itself: a cycle, which stays in memory until Python collects
    cycles, while more requests come.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


def api_error(error: BaseException) -> ApiError:
    """The answer for any exception; only a user's error shows its text."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextError):
        return ApiError(400, str(error), "context_length_exceeded", "messages")
    if isinstance(error, PromptError):
        return ApiError(400, str(error), "invalid_prompt", "messages")
    if isinstance(error, VideoError):
        return ApiError(422, str(error), "invalid_video", "messages")
    if isinstance(error, RemoteError):
        # what the remote refuses in the request is the client's error; everything else is the remote's or the operator's
        known = error.status in (400, 413, 422, 429)
        headers = {"Retry-After": "5"} if error.status == 429 or not known else {}
        return ApiError(error.status if known and error.status else 503, str(error), "remote_llm", headers=headers)
    if isinstance(error, DeadlineError):
        return ApiError(504, str(error), "deadline_exceeded")
    return ApiError(500, "the server failed on this request; its log says why", "internal_error")
