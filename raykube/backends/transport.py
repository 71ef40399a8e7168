"""What may go wrong between here and a server, told without the secrets that the words of others quote."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import httpx

from raykube.errors import BackendError, Unreachable

#: Up to the last @: a password may hold what should have been written otherwise.
_USER = re.compile(r"(?<=://).*@")


def shown(address: str) -> str:
    """Return an address as it may be shown: without the user and password that it may hold."""
    return _USER.sub("", address)


def sendable(token: str) -> str:
    """Return a token as a header takes it: a file or an output that it was read from ends in a newline.

    Raises:
        ValueError: it cannot stand in a header, which whoever sends it would say with the whole of it.
    """
    token = token.strip()
    if not token:
        raise ValueError("the token is empty")
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the token has several lines, or characters that HTTP does not allow in a header")
    return token


@contextlib.contextmanager
def listening(silence: Callable[[str], Unreachable]) -> Iterator[None]:
    """Tell that a request was not answered as the error that `silence` makes of the words about it.

    Raises:
        Unreachable: there was no answer, or not all of it.
        BackendError: there was no request: HTTP does not allow it.
    """
    try:
        yield
    except httpx.LocalProtocolError:
        # Its words quote the header, which may be a token, and so would a traceback.
        why = "HTTP does not allow what stands in it, as a line break in a header"
        raise BackendError("a request could not be sent", why=why) from None
    except (httpx.TransportError, httpx.StreamError) as error:
        raise silence(f"{type(error).__name__}: {error}") from error
