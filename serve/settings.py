"""How the service runs: addresses, limits, queue, access. One frozen model, from a file and options."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from tesserec.dataio.config import StrictModel
from tesserec.serve.decode import Limits


class QueueSettings(StrictModel):
    """What may wait for scoring, and in what pieces it is scored.

    max_requests, max_rows: beyond either, requests are refused. max_batch_rows: rows scored at once, by one
    version. slice_rows: how many of them one request has at most, so that large ones let small ones pass.
    max_delay_seconds: how long a request waits for others to be scored with; 0: not at all.
    timeout_seconds: how long a request may wait before it is given up.
    """

    max_requests: int = Field(default=1024, ge=1)
    max_rows: int = Field(default=100_000, ge=1)
    max_batch_rows: int = Field(default=1024, ge=1)
    slice_rows: int = Field(default=512, ge=1)
    max_delay_seconds: float = Field(default=0.0, ge=0, le=1)
    timeout_seconds: float = Field(default=2.0, gt=0)


class ServeSettings(StrictModel):
    """Everything `tesserec serve` can be told.

    port: 0 takes any free one. memory_bytes: for all loaded versions of one worker; null: no limit.
    read_seconds: how long a body may take to come in. tokens: file of bearer tokens, needed for addresses
    that other machines can reach, unless `insecure`. access_log: a file for JSON lines, or `-` for stderr.
    drain_seconds: how long a worker that was told to end goes on taking requests while /readyz says 503;
    shutdown_seconds: how long it then waits for those that it has.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    workers: int = Field(default=1, ge=1)
    memory_bytes: int | None = Field(default=None, gt=0)
    auto_promote: bool = True
    poll_seconds: float = Field(default=0.25, gt=0)
    limits: Limits = Limits()
    queue: QueueSettings = Field(default_factory=QueueSettings)
    read_seconds: float = Field(default=10.0, gt=0)
    tokens: Path | None = None
    insecure: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    access_log: Path | None = None
    drain_seconds: float = Field(default=1.0, ge=0)
    shutdown_seconds: int = Field(default=30, ge=0)
    otel: bool = False

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("TLS needs both a certificate (tls_cert) and its key (tls_key)")
        if self.tokens is None and not self.insecure and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines: give a file of tokens (made by "
                "`tesserec token`), or say that anybody may do anything with insecure"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
