"""What goes wrong with the Hugging Face Hub, each in one sentence with what to do."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def endpoint() -> str | None:
    """Give the address of another Hub, where `HF_ENDPOINT` names one.

    Returns:
        The address, without a slash at its end; `None` for the usual one.

    Example:
        >>> endpoint() is None or endpoint().startswith("http")
        True
    """
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


@contextmanager
def plain_errors(repo_id: str, doing: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into built-in exceptions, each one sentence with what to do.

    Args:
        repo_id: The repository of the calls inside.
        doing: `"read"` or `"write"`, for the sentence.

    Raises:
        FileNotFoundError: If there is no such repository or revision, or this token does not see it.
        PermissionError: If the token is missing, not accepted or not enough.
        ConnectionError: If the Hub cannot be reached, limits the rate, or fails.
        OSError: If the disk is full, or the Hub refuses for another reason.

    Example:
        >>> import huggingface_hub
        >>> with plain_errors("user/repo", "read"):  # doctest: +SKIP
        ...     huggingface_hub.HfApi().model_info("user/repo")
    """
    try:
        yield
    except Exception as error:
        plain = _explain(error, repo_id, doing)
        if plain is None:
            raise
        raise plain from error


def _explain(error: BaseException, repo_id: str, doing: str) -> Exception | None:
    from huggingface_hub import errors as hf

    wraps = isinstance(error, (hf.LocalEntryNotFoundError, RuntimeError)) or "Force download failed" in str(error)
    if wraps and error.__cause__ is not None:
        return _explain(error.__cause__, repo_id, doing)
    host, log_in = endpoint() or "https://huggingface.co", "log in with `hf auth login` or give token=…"
    why = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
    if isinstance(error, hf.HfHubHTTPError):
        return _explain_answer(error, repo_id, doing, host, log_in)
    if isinstance(error, hf.LocalTokenNotFoundError):
        return PermissionError(f"there is no stored token: {log_in}")
    if isinstance(error, (hf.HfHubHTTPError.__bases__[0], hf.OfflineModeIsEnabled)):  # of the HTTP library
        advice = "check the network, the proxy and HF_HUB_OFFLINE, and try again"
        return ConnectionError(f"{host} cannot be reached ({why}): {advice}")
    if isinstance(error, (json.JSONDecodeError, KeyError)):  # for example the login page of a network
        advice = "check the network, which may want a login, the proxy and HF_ENDPOINT"
        return ConnectionError(f"{host} does not answer as the Hub does: {advice}")
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = "free some space, or choose another disk with cache_dir or HF_HOME"
        plain = OSError(f"the disk is full: {repo_id} could not be stored ({why}); {advice}")
        plain.errno = number
        return plain
    if isinstance(error, PermissionError) and error.filename:
        return PermissionError(f"{error.filename} cannot be written: choose another folder with cache_dir or HF_HOME")
    if isinstance(error, (OSError, RuntimeError, hf.XetDownloadError)) and number is None:
        return ConnectionError(f"the transfer of {repo_id} failed ({why}): try again")
    return None


def _explain_answer(error: Any, repo_id: str, doing: str, host: str, log_in: str) -> Exception:
    """What the Hub answered, in words."""
    from huggingface_hub import errors as hf

    status, headers = error.response.status_code, error.response.headers
    signed = "authorization" in error.response.request.headers
    said = next(iter((error.server_message or "").splitlines()), "no reason given")
    if isinstance(error, hf.GatedRepoError):
        return PermissionError(f"{repo_id} is gated: accept its conditions at {host}/{repo_id}, then {log_in}")
    if isinstance(error, hf.RepositoryNotFoundError):
        whom, access = ("to this token", "or ask its owner for access")
        if not signed:
            whom, access = "without a token", f"or, if it is private, {log_in}"
        return FileNotFoundError(f"the Hub shows no repository {repo_id} {whom}: check the name, {access}")
    if isinstance(error, hf.RevisionNotFoundError):
        return FileNotFoundError(f"{repo_id} has no such branch, tag or commit: see {host}/{repo_id}/tree/main")
    if status == 401:
        refused = "the Hub does not accept the token, which may be mistyped or expired"
        return PermissionError(f"{refused if signed else f'to {doing} {repo_id} the Hub wants a token'}: {log_in}")
    if status in (402, 403):
        advice = "use a token that may, or another repository"
        return PermissionError(f"the Hub does not let this token {doing} {repo_id} ({said}): {advice}")
    if status in (409, 412):
        return OSError(f"{repo_id} was changed by somebody else in the meantime ({said}): push again")
    if status == 429:
        seconds = re.search(r";\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))
        wait = headers.get("retry-after") or (seconds[1] if seconds else "")
        when = f"in {wait} seconds" if wait.isdigit() else "in some minutes"
        return ConnectionError(f"the Hub's rate limit is reached: try again {when}, with a token if you gave none")
    if status >= 500 or status == 408:
        return ConnectionError(f"the Hub has a fault of its own (HTTP status {status}): try again later")
    return OSError(f"the Hub refused to {doing} {repo_id} (HTTP status {status}: {said})")
