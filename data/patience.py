"""What goes wrong with a disk or a store, in words; what may pass is tried again for a while.

A store that can't be reached, that answers 5xx or "slow down", a disk that gives an input/output error: tried again until
patience is at its end, with a line a minute. Access refused, no such file or bucket, no credentials, a wrong region: said
at once, as no waiting helps.
"""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from data.refusal import UserError

T = TypeVar("T")
FIRST = (0.2, 1.0, 4.0)  # seconds between the first tries
LATER = 10.0  # between those after them
EVERY = 60.0  # seconds between lines
SLICE = 0.5  # seconds between looks whether to stop
PASSING = {
    errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED,
    errno.ECONNABORTED, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.EREMOTEIO, errno.EPIPE, errno.ENOLCK,
}  # fmt: skip
CREDENTIALS = {  # by scheme: where they are looked for
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login",
}
ENDPOINT = {"s3": "AWS_ENDPOINT_URL or FSSPEC_S3_ENDPOINT_URL"}  # by scheme: what says where the store is
UNKNOWN = {  # names of what libraries raise without credentials
    "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError",
    "DefaultCredentialsError", "TokenRetrievalError", "UnauthorizedSSOTokenError", "SSOTokenLoadError", "RefreshError",
}  # fmt: skip
CONNECTION = {  # names of what they raise where nothing answers; what derives from ConnectionError or TimeoutError too
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "ConnectionError",
    "HTTPClientError", "ClientConnectionError", "ClientConnectorError", "ClientOSError", "ServerDisconnectedError",
    "ServerTimeoutError", "ClientPayloadError", "TimeoutError", "FSTimeoutError", "gaierror",
}  # fmt: skip
BROKEN = {"HTTPClientError", "HttpProcessingError"}  # what came was no answer: their status is the library's own


@dataclass
class Patience:
    """How long is waited; set once by who begins, before any process is forked."""

    seconds: float = 600.0
    quiet: bool = False  # another process says that it waits
    leave: Callable[[], bool] = lambda: False  # whether the process was asked to stop


class Left(BaseException):
    """A wait was given up, since the process was asked to stop; no fault of what it waits for."""


PATIENCE = Patience()


class Fault(NamedTuple):
    """What went wrong, what helps, and whether it may pass by itself."""

    words: str
    remedy: str
    passes: bool


def scheme(path: str) -> str:
    """Of a URL; empty for a local path."""
    head, colon, _ = path.partition(":")
    return head if colon and "/" not in head else ""


def with_retries(path: str, action: Callable[[], T], patience: Patience = PATIENCE) -> T:
    """What the action gives, tried again while what stops it may pass; UserError if it can't, or when patience ends, Left if
    the process is to stop."""
    began = said = time.monotonic()
    tries = 0
    while True:
        try:
            return action()
        except UserError:
            raise
        except Exception as error:  # every store has its own kinds
            if not scheme(path) and not isinstance(error, OSError):
                raise
            fault = fault_of(path, error)
        tries += 1
        waited = time.monotonic() - began
        if not fault.passes:
            raise UserError(f"{path}: {fault.words}; {fault.remedy}", alone=True)
        if waited >= patience.seconds:
            raise UserError(
                f"{path}: {fault.words} ({tries:,} tries in {_span(waited)}, data.patience); nothing is lost: "
                f"{fault.remedy}, then start the same command again",
                alone=True,
            )
        if tries == len(FIRST) or tries > len(FIRST) and time.monotonic() - said >= EVERY:
            said = time.monotonic()
            _say(patience, f"waiting for {path}: {fault.words}; trying again for {_span(patience.seconds - waited)}")
        pause = FIRST[tries - 1] if tries <= len(FIRST) else LATER
        _sleep(min(pause, max(0.0, patience.seconds - waited)), patience)


def _sleep(seconds: float, patience: Patience) -> None:
    """Left if the process is asked to stop meanwhile."""
    while seconds > 0:
        time.sleep(min(SLICE, seconds))
        seconds -= SLICE
        if patience.leave():
            raise Left


def _say(patience: Patience, words: str) -> None:
    if not patience.quiet:
        print(words, file=sys.stderr, flush=True)


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def fault_of(path: str, error: BaseException) -> Fault:
    """What an error of reading a path says."""
    chain = list(_chain(error))
    return _of_store(path, chain) if scheme(path) else _of_disk(chain)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came from, the last first."""
    met: set[int] = set()
    while error is not None and id(error) not in met:
        met.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _of_disk(chain: list[BaseException]) -> Fault:
    number = chain[0].errno if isinstance(chain[0], OSError) else None
    words = os.strerror(number) if number else str(chain[0]) or type(chain[0]).__name__
    if number in PASSING:
        return Fault(f"can't be read: {words}", "look at the disk", True)
    return Fault(words, "check the path and its rights", False)


def _of_store(path: str, chain: list[BaseException]) -> Fault:
    status, code, said = _answer(chain)
    kinds = {base.__name__ for error in chain for base in type(error).__mro__}
    if kinds & BROKEN:
        status = None
    text = " ".join(said.split())[:300]
    where, bucket = scheme(path), path.partition("://")[2].partition("/")[0]
    rights = CREDENTIALS.get(where, "what the server asks for")
    endpoint = f"check the endpoint ({ENDPOINT[where]})" if where in ENDPOINT else "check the address"
    if kinds & UNKNOWN:
        return Fault(f"the store asks for credentials and there are none ({text})", f"set {rights}", False)
    if code == "NoSuchBucket" or "bucket does not exist" in said:
        return Fault(f"the store has no bucket '{bucket}'", f"check the bucket's name; {endpoint}", False)
    if status in (401, 403) or "PermissionError" in kinds:
        return Fault(
            f"the store refuses access ({status or 403}: {text})", f"check the credentials ({rights}) and rights", False
        )
    if "CertificateError" in kinds or "ClientConnectorSSLError" in kinds or "SSLError" in kinds:
        return Fault(f"no secure connection to the store ({text})", endpoint, False)
    if kinds & CONNECTION and status is None:
        return Fault(f"the store can't be reached ({text or type(chain[0]).__name__})", f"{endpoint} and the network", True)
    if status in (404, 410) or "FileNotFoundError" in kinds:
        return Fault("not found (404)", "check the path and the bucket's rights", False)
    if status is not None and (status >= 500 or status in (408, 429)):
        return Fault(f"the store answers {status} ({text})", "look at the store", True)
    if status is not None and status >= 300:
        return Fault(f"the store answers {status} ({text})", f"check the region (AWS_DEFAULT_REGION); {endpoint}", False)
    if isinstance(chain[0], ValueError | TypeError | ImportError | AttributeError | KeyError):
        return Fault(f"can't be opened: {type(chain[0]).__name__}: {text}", endpoint, False)
    return Fault(f"can't be read: {type(chain[0]).__name__}: {text}", "look at the store and the network", True)


def _answer(chain: list[BaseException]) -> tuple[int | None, str, str]:
    """(the HTTP status that a store gave, its code, its words) as the libraries' errors hold them."""
    status, code, said = None, "", ""
    for error in chain:
        said = said or str(error)
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore's
            code = code or str(response.get("Error", {}).get("Code", ""))
            number: object = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            number = getattr(error, "status", None) or getattr(error, "code", None)
        if status is None and isinstance(number, int | str) and str(number).isdigit():
            status = int(number)
    return status, code, said
