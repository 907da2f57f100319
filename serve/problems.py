"""Errors that are answers: problem details for HTTP APIs (RFC 9457)."""

from __future__ import annotations

from typing import Any


class Problem(Exception):
    """An answer that says what was wrong. detail: for a person; more: members of the answer for programs."""

    status = 500
    kind = "internal-error"
    title = "The service failed"

    def __init__(self, detail: str, **more: Any):
        super().__init__(detail)
        self.detail, self.more = detail, more

    def to_json(self) -> dict[str, Any]:
        """The body, `application/problem+json`."""
        about = {"type": f"urn:tesserec:problem:{self.kind}", "title": self.title, "status": self.status}
        return {**about, "detail": self.detail, **self.more}

    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer."""
        return {"Retry-After": str(self.more["retry_after"])} if "retry_after" in self.more else {}


class BadBody(Problem):
    """A body that is no JSON, no Arrow, or of another media type's form."""

    status, kind, title = 400, "bad-body", "The body cannot be read"


class Unauthorized(Problem):
    """No token, or an unknown one."""

    status, kind, title = 401, "unauthorized", "A bearer token is needed"

    def headers(self) -> dict[str, str]:
        """Which kind of token."""
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(Problem):
    """A token without the scope that is asked for."""

    status, kind, title = 403, "forbidden", "The token does not allow this"


class NotFound(Problem):
    """No such model or version."""

    status, kind, title = 404, "not-found", "There is no such thing here"


class NotAllowed(Problem):
    """A method that the path does not have."""

    status, kind, title = 405, "method-not-allowed", "The path has no such method"


class Conflict(Problem):
    """A change that the state does not allow, such as promoting a version that is not ready."""

    status, kind, title = 409, "conflict", "That cannot be done now"


class TooLarge(Problem):
    """A body, a list or a number of candidates beyond the limits."""

    status, kind, title = 413, "too-large", "The request is too large"


class UnsupportedMedia(Problem):
    """A body of another kind than the path takes."""

    status, kind, title = 415, "unsupported-media-type", "Bodies of this type are not taken here"


class Unprocessable(Problem):
    """A body with a value that its place cannot hold. more: `field`, the path of the value."""

    status, kind, title = 422, "invalid-request", "The request has a value that cannot be"


class Overloaded(Problem):
    """The queue is full. more: retry_after, seconds."""

    status, kind, title = 429, "overloaded", "Too many requests are waiting"


class NotReady(Problem):
    """Nothing can answer yet, or any more. more: retry_after, seconds."""

    status, kind, title = 503, "not-ready", "The service is not ready"


class TookTooLong(Problem):
    """The request was not scored within its time."""

    status, kind, title = 504, "timeout", "The request took too long"
