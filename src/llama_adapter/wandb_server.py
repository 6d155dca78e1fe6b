"""Whether W&B's server is there, asked quickly and never on the terminal."""

import io
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Value = TypeVar("Value")

PROBE_SECONDS = 2.0  # a server that has not answered by then counts as one that is not there


def unreachable(url: str) -> str:
    """Why a server cannot be reached; "" when it answered something within two seconds.

    W&B itself tries for a minute and a half.

    Args:
        url: of the server. Proxies of the environment are used.
    """
    try:
        # Looking up a name obeys no timeout of its own.
        return within(PROBE_SECONDS + 0.5, lambda: _ask(url))
    except TimeoutError:
        return f"{url} has not answered within {PROBE_SECONDS:g} seconds"


def _ask(url: str) -> str:
    try:
        urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # an answer, even though not to a question
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # certificates are W&B's business: it may know others than Python does
            return f"{url} cannot be reached: {first_line(reason)}"
    return ""


def within(seconds: float, call: Callable[[], Value]) -> Value:
    """What a call gives, in a thread of its own that is left alone when it takes too long.

    Args:
        seconds: that are waited.
        call: its error is raised here.

    Raises:
        TimeoutError: it has not ended by then.
    """
    ended: list[tuple[Value | None, Exception | None]] = []

    def work() -> None:
        try:
            ended.append((call(), None))
        except Exception as error:
            ended.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        raise TimeoutError(f"no end within {seconds:g} seconds")
    value, error = ended[0]
    if error is not None:
        raise error
    return value


@contextmanager
def without_terminal() -> Iterator[None]:
    """Within, W&B finds no terminal to ask for a key on, and says that it has none."""
    terminal, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = terminal


def first_line(error: object) -> str:
    """Of an error's message, without the full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
