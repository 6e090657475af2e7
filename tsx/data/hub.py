"""Speaks to the Hub through huggingface_hub: a data set repository's commit, its files, one file.

The token is the client's own (`hf auth login` or HF_TOKEN); it is never read here. A file comes
through the client's `http_get` and not through `snapshot_download`, which since 1.31 throws an
unfinished file away when its process ends: here a shard goes on at the byte where it broke off.
The client repeats requests by itself (dropped connections, 429); what it leaves, a server's 5xx
and resets, is repeated here, a bounded number of times.

Does not cover: files over 50 GB, which the Hub serves by its xet protocol only.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import tsx
from registry.redact import Redactor
from tsx.errors import ConfigError, TsxError

DEFAULT_REPO = "Maple728/Time-300B"
DEFAULT_REVISION = "main"
OLD_TOKEN = "HUGGINGFACE_HUB_TOKEN"  # noqa: S105 - a variable's name; no client reads it
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
ATTEMPTS = 5  # of one request, in a row without a byte gained
_MAX_WAIT_S = 300.0  # the longest window of the Hub's rate limits
_TIMEOUT_S = 30.0
PIECE_BYTES = 1 << 20
MAX_FILES = 1_000_000
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|git:[0-9a-f]{40}")
_URL = re.compile(r"https?://\S*?/resolve/[0-9a-f]+/|https?://[^\s/]+|\?\S+")

Notify = Callable[[str], None]
Answer = TypeVar("Answer")


class Unreachable(TsxError):
    """The Hub cannot be reached, or must not be."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a commit."""

    path: str
    size: int  # bytes
    digest: str  # "sha256:<hex>" of large files, "git:<hex>" of the others


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    repo: str
    revision: str  # as asked for
    commit: str
    files: tuple[RemoteFile, ...]


class Growing(Protocol):
    """Where a file's bytes go: a binary file that appends, or begins again."""

    size: int  # bytes there are

    def write(self, chunk: bytes) -> int:
        """Append bytes."""


class Hub:
    """One data set repository on the Hub that HF_ENDPOINT names.

    Args:
        repo: "<owner>/<name>".
        notify: told of every wait and repetition, from any thread.

    Raises:
        ConfigError: HF_ENDPOINT is no address.
    """

    def __init__(self, repo: str, notify: Notify) -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        self.repo = repo
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self._shown = _check_endpoint(self.endpoint)
        self._notify = notify
        self._headers = build_hf_headers(
            library_name="tsx",
            library_version=tsx.__version__,
            headers={"Accept-Encoding": "identity"},  # ranges and sizes are those of the file
        )

    def list_files(self, revision: str) -> Listing:
        """Return all files of a revision.

        Raises:
            ConfigError: no such repository or revision.
            Unreachable: there is no way to the Hub, or HF_HUB_OFFLINE is set.
            TsxError: refused, limited, out of order, or no Hub.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi(endpoint=self.endpoint, library_name="tsx", library_version=tsx.__version__)
        revision = revision or DEFAULT_REVISION

        def ask() -> Listing:
            info = api.dataset_info(self.repo, revision=revision, timeout=_TIMEOUT_S)
            commit = str(info.sha)
            if not _COMMIT.fullmatch(commit):
                raise ValueError(f"a commit {commit!r:.60}")
            tree = api.list_repo_tree(
                self.repo, recursive=True, revision=commit, repo_type="dataset"
            )
            files = (_read_entry(entry) for entry in tree if isinstance(entry, RepoFile))
            bounded = tuple(itertools.islice(files, MAX_FILES))
            if len(bounded) == MAX_FILES:
                raise TsxError(f"{self.repo} lists more than {MAX_FILES:,} files")
            if len({file.path for file in bounded}) < len(bounded):
                raise ValueError("a file that is listed twice")
            return Listing(self.repo, revision, commit, bounded)

        try:
            return self._repeat(ask, lambda: 0)
        except UnicodeEncodeError:
            raise TsxError(
                "the token is none: it holds characters that no header can carry",
                next_command=_login(),
            ) from None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if _find_status(error) is not None:
                raise self.explain(error, f"revision {revision!r}") from None
            if type(error).__name__ == "HFValidationError":
                raise ConfigError(
                    f"--repo {self.repo!r}: {_first_line(error)}",
                    next_command="--repo OWNER/NAME",
                ) from None
            raise TsxError(
                f"{self._shown} does not answer as a Hub does ({type(error).__name__}: "
                f"{_first_line(error)})",
                next_command="check HF_ENDPOINT and proxies",
            ) from None
        except Exception as error:
            raise self.explain(error, f"revision {revision!r}") from None

    def fetch(self, file: RemoteFile, commit: str, part: Growing) -> None:
        """Append what a part lacks of a file.

        Raises:
            TsxError: see `explain`.
            OSError: the part cannot be written.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get

        url = hf_hub_url(
            self.repo, file.path, repo_type="dataset", revision=commit, endpoint=self.endpoint
        )

        def ask() -> None:
            http_get(
                url,
                cast(BinaryIO, part),
                resume_size=part.size,
                headers=dict(self._headers),
                expected_size=file.size,
                displayed_filename=file.path,
                tqdm_class=cast(Any, _NoBar),
            )

        try:
            self._repeat(ask, lambda: part.size)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise self.explain(error, file.path) from None
        except Exception as error:
            raise self.explain(error, file.path) from None

    @contextmanager
    def session(self) -> Iterator[None]:
        """Hold the client to what is wanted here; all calls belong inside.

        What it logs goes to `notify` (by itself it writes to stderr), and a body is handed over in
        pieces of 1 MiB: with the client's own 10 MiB it costs twice the processor time, and a break
        loses ten times as much.
        """
        from huggingface_hub import constants

        logger = logging.getLogger("huggingface_hub")
        before = logger.handlers, constants.DOWNLOAD_CHUNK_SIZE
        logger.handlers, constants.DOWNLOAD_CHUNK_SIZE = [_Forward(self._notify)], PIECE_BYTES
        try:
            yield
        finally:
            logger.handlers, constants.DOWNLOAD_CHUNK_SIZE = before

    def _repeat(self, ask: Callable[[], Answer], gained: Callable[[], int]) -> Answer:
        """Return what `ask` gives; where it fails for a while only, ask again."""
        tries, before = 0, gained()
        while True:
            try:
                return ask()
            except Exception as error:
                if gained() > before:
                    tries, before = 0, gained()
                tries += 1
                wait_s = _find_wait(error, tries)
                if wait_s is None or tries >= ATTEMPTS:
                    raise
                self._notify(f"{_name(error)}; again in {wait_s:g} s ({tries} of {ATTEMPTS - 1})")
                time.sleep(wait_s)

    def explain(self, error: Exception, what: str) -> TsxError:
        """Return what the user is told of a client's error about a file or revision."""
        if isinstance(error, TsxError):
            return error
        place = f"{self.repo} on {self._shown}"
        status = _find_status(error)
        kind = type(error).__name__
        if status is None:
            return _explain_transport(error, self._shown, what)
        if kind == "RevisionNotFoundError":
            return ConfigError(f"{place} has no {what}", next_command="--revision main")
        if kind == "GatedRepoError" or status == 403:
            return TsxError(
                f"{place} does not let you in ({status}): the repository is gated, or the token "
                f"lacks the right to read it; {_describe_token()}",
                next_command=f"ask for access at {self._shown}/datasets/{self.repo}, then "
                f"{_login()}",
            )
        if status == 401 or kind == "RepositoryNotFoundError":
            kind_of_error = TsxError if status == 401 else ConfigError
            return kind_of_error(
                f"{place} does not exist, or is not shown to you ({status}): {_describe_token()}",
                next_command=f"check --repo, or {_login()}",
            )
        if status == 404:
            return ConfigError(
                f"{place}: {what} is not found (404)", next_command="check --repo and HF_ENDPOINT"
            )
        after = _find_retry_after(error) if status == 429 else None
        rate = f": too many requests; try again in {after:g} s" if after else ""
        return TsxError(
            f"{place} answers {status} for {what}{rate}",
            next_command="the same command later; it goes on where it broke off",
        )


class _NoBar:
    """Stands in for the client's progress bar: progress is counted where bytes are written."""

    def __init__(self, **_: object) -> None:
        pass

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _: float = 1) -> None:
        """Take a count and forget it."""


class _Forward(logging.Handler):
    """Hands warnings on as one line without addresses, which may carry signatures."""

    def __init__(self, notify: Notify) -> None:
        super().__init__(logging.WARNING)
        self._notify = notify

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one warning on."""
        self._notify(_first_line(record.getMessage()))


def warn_old_token() -> str:
    """Return a warning where only the variable of the notes holds a token, else nothing."""
    if not os.environ.get(OLD_TOKEN) or any(os.environ.get(name) for name in TOKENS):
        return ""
    return f"{OLD_TOKEN} is set, but huggingface_hub does not read it: " + _move_token()


def _move_token() -> str:
    return f'export HF_TOKEN="${OLD_TOKEN}"'


def _login() -> str:
    """Return how a token is given."""
    return _move_token() if warn_old_token() else "hf auth login (or export HF_TOKEN)"


def _describe_token() -> str:
    """Tell whether the client sends a token; never which."""
    from huggingface_hub import get_token

    return "the token that was sent does not suffice" if get_token() else "no token was sent"


def _check_endpoint(endpoint: str) -> str:
    """Return an address as it may be shown: a password in it is not.

    Raises:
        ConfigError: no address of a server.
    """
    shown = Redactor.from_environ(os.environ).text(endpoint)
    try:
        url = urlsplit(endpoint)
        is_address = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ConfigError(
            f"HF_ENDPOINT={shown!r} is no address of a Hub", next_command="unset HF_ENDPOINT"
        )
    return shown


def _read_entry(entry: Any) -> RemoteFile:
    """Return one file of the tree, checked for what is relied on later.

    The digest becomes part of a file's name on disk, so it must be one.
    """
    size = entry.lfs.size if entry.lfs else entry.size
    digest = f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}"
    if not isinstance(entry.path, str) or type(size) is not int or size < 0:
        raise ValueError(f"a file {entry.path!r:.200} of size {size!r:.60}")
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"a file {entry.path!r:.200} of digest {digest!r:.80}")
    return RemoteFile(entry.path, size, digest)


def _find_status(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _find_retry_after(error: Exception) -> float | None:
    """Return the seconds that a 429 asks to wait."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    limit = re.search(r";t=(\d{1,6})", headers.get("ratelimit", ""))
    after = headers.get("retry-after", "") or (limit[1] if limit else "")
    return float(after) if re.fullmatch(r"\d{1,6}", after) else None


def _find_wait(error: Exception, tries: int) -> float | None:
    """Return how long to wait before asking again; None where that would not help."""
    status = _find_status(error)
    if status == 429:
        after = _find_retry_after(error) or 2.0**tries
        return after if after <= _MAX_WAIT_S else None
    if status is not None:
        return 2.0 ** (tries - 1) if status in (408, 500, 502, 503, 504) else None
    kind = type(error).__name__
    if kind in ("ReadError", "WriteError", "CloseError", "RemoteProtocolError", "ReadTimeout"):
        return 2.0 ** (tries - 1)
    broke_off = isinstance(error, OSError) and "Consistency check failed" in str(error)
    return 2.0 ** (tries - 1) if broke_off else None


def _explain_transport(error: Exception, endpoint: str, what: str) -> TsxError:
    """Explain an error that came without an answer."""
    kind = type(error).__name__
    if kind == "OfflineModeIsEnabled":
        return Unreachable(
            "HF_HUB_OFFLINE is set: nothing is asked of the Hub", next_command="unset it"
        )
    if kind in ("ConnectError", "ConnectTimeout", "ProxyError", "ReadTimeout", "PoolTimeout"):
        return Unreachable(
            f"cannot reach {endpoint}: {_first_line(error)}",
            next_command="the same command when the network is back",
        )
    return TsxError(
        f"{what} could not be fetched from {endpoint}: {kind}: {_first_line(error)}",
        next_command="the same command; it goes on where it broke off",
    )


def _name(error: Exception) -> str:
    status = _find_status(error)
    return f"the Hub answers {status}" if status else f"connection lost ({type(error).__name__})"


def _first_line(error: object) -> str:
    """Return the first line of a client's text, without tokens and addresses."""
    text = str(error).strip().partition("\n")[0]
    return Redactor.from_environ(os.environ).text(_URL.sub("", text)).strip()
