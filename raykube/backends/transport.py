"""Errors between here and a server, without the secrets that an HTTP library's messages quote."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import httpx

from raykube.errors import BackendError, Unreachable

#: Up to the last @: a password may hold an @ that should have been written %40.
_USER = re.compile(r"(?<=://).*@")


def shown(address: str) -> str:
    """Return an address without the user and password that it may hold, so that it can be shown."""
    return _USER.sub("", address)


def sendable(token: str) -> str:
    """Return a token as a header takes it, without the newline at the end of the file or output that it came from.

    Raises:
        ValueError: it cannot stand in a header. The HTTP library's own error would quote all of it.
    """
    token = token.strip()
    if not token:
        raise ValueError("the token is empty")
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the token has several lines, or characters that HTTP does not allow in a header")
    return token


@contextlib.contextmanager
def listening(silence: Callable[[str], Unreachable]) -> Iterator[None]:
    """Raise the error that `silence` makes of the reason when a request is not answered.

    Raises:
        Unreachable: there was no answer, or only a part of one.
        BackendError: the request was not sent, for HTTP does not allow it.
    """
    try:
        yield
    except httpx.LocalProtocolError:
        # The error quotes the header, which may be a token, and so would a traceback.
        why = "HTTP does not allow what stands in it, as a line break in a header"
        raise BackendError("a request could not be sent", why=why) from None
    except (httpx.TransportError, httpx.StreamError) as error:
        raise silence(f"{type(error).__name__}: {error}") from error
