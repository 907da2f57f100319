"""Bodies as they come in: their media type, and no more of their bytes than is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import Message, Receive

from tesserec.serve.problems import BadBody, TookTooLong, TooLarge, UnsupportedMedia

JSON = b"application/json"
ARROW = b"application/vnd.apache.arrow.stream"
Headers = Mapping[bytes, bytes]


def media_types(headers: Headers) -> tuple[bytes, bytes]:
    """The media types of the body, JSON where nothing is said, and of the answer. UnsupportedMedia."""
    given = headers.get(b"content-type", JSON)
    kind = given.partition(b";")[0].strip().lower()
    if kind not in (JSON, ARROW):
        raise UnsupportedMedia(
            f"Content-Type {given.decode('latin-1')!r}: wanted {JSON.decode()} or {ARROW.decode()}"
        )
    coding = headers.get(b"content-encoding", b"identity")
    if coding != b"identity":
        raise UnsupportedMedia(f"Content-Encoding {coding.decode('latin-1')!r}: bodies are taken as they are")
    accept = headers.get(b"accept", b"")
    return kind, next((known for known in (ARROW, JSON) if known in accept), kind)


async def read_body(headers: Headers, receive: Receive, limit: int, seconds: float) -> bytes:
    """The body. TooLarge as soon as it is; TookTooLong when it does not come, BadBody when it never will."""
    declared = int(headers.get(b"content-length", b"0"))
    if declared > limit:
        raise TooLarge(f"the body has {declared:,} bytes, wanted at most {limit:,}")
    try:
        async with asyncio.timeout(seconds):
            message = await receive()
            if not message.get("more_body"):
                return _part(message)
            return await _read_on(bytearray(_part(message)), receive, limit)
    except TimeoutError:
        raise TookTooLong(f"the body did not come in within {seconds:g} s") from None


def bounded(receive: Receive, limit: int) -> Receive:
    """The same messages, but TooLarge when the body has more bytes."""
    left = limit

    async def receive_bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise TooLarge(f"the body has more than {limit:,} bytes, the most that is taken here")
        return message

    return receive_bounded


async def _read_on(body: bytearray, receive: Receive, limit: int) -> bytes:
    more = True
    while more:
        message = await receive()
        body += _part(message)
        if len(body) > limit:
            raise TooLarge(f"the body has more than {limit:,} bytes, the most that is taken")
        more = message.get("more_body", False)
    return bytes(body)


def _part(message: Message) -> bytes:
    if message["type"] != "http.request":
        raise BadBody("the client left before its body had come")
    body: bytes = message.get("body", b"")
    return body
