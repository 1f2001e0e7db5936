"""Push a folder to the Hugging Face Hub and pull one from it. The only importer of huggingface_hub.

Files are moved and hashed here, never interpreted: what a bundle is, the caller says. Nothing that was downloaded is deserialised.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cxrlib.config import BundleError, check_file_name

CONFIG = "config.json"
MODEL_ADDRESS = "model.txt"  # in a Space: which model at which commit it serves
MAX_CONFIG_BYTES = 16 * 2**20
MAX_BUNDLE_BYTES = 2**30
TIMEOUT = 10.0  # seconds the Hub may take to say what a repository holds

_log = logging.getLogger(__name__)
_REPO_ID = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?/[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_](?:[\w.+/-]*[A-Za-z0-9_])?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Published:
    """What a push left on the Hub.

    Args:
        revision: The commit's SHA-1, 40 hexadecimal digits: `from_hub(repo_id, revision=…)` gives exactly this state for ever.
        tag: The version tag put on the commit; None on a pull request.
        url: Where to look at it: the pull request, or the repository at that commit.

    Example:
        >>> Published(revision="0" * 40, tag="v1", url="https://huggingface.co/user/repo").tag
        'v1'
    """

    revision: str
    tag: str | None
    url: str


def parse_address(address: str) -> tuple[str, str | None]:
    """Split the address of a model on the Hub.

    Args:
        address: `hf://user/repo` or `hf://user/repo@revision`; a revision is a branch, a tag or a commit.

    Returns:
        The repository and the revision, None where the address names none.

    Raises:
        ValueError: If the address has another form.

    Example:
        >>> parse_address("hf://user/repo@v1")
        ('user/repo', 'v1')
    """
    repo_id, at, revision = address.removeprefix("hf://").partition("@")
    if not address.startswith("hf://") or not _is_repo_id(repo_id) or (at and not _is_revision(revision)):
        raise ValueError(
            f"an address on the Hub has the form hf://user/repo or hf://user/repo@revision. Received: address={address!r}"
        )
    return repo_id, revision or None


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    files: Sequence[str],
    contents: Mapping[str, bytes] | None = None,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    tag: str | None = None,
    obsolete: Sequence[str] = (),
) -> Published:
    """Upload files of a folder to a model repository, in one commit, and tag it.

    The repository and the branch are created when missing. Until the commit, which is atomic, nobody sees a change: an interrupted push leaves
    the repository as it was, and pushing again completes it. Pushing an unchanged folder makes no new commit and no new tag.

    Args:
        folder: The folder.
        repo_id: `user/repo`.
        files: The files to upload, relative to `folder`; nothing else leaves the folder.
        contents: Files by name that are uploaded from memory, in the place of the folder's own if it has them.
        private: Whether the repository must be private. False leaves a new repository as the account's default has it, normally public.
        revision: The branch to commit to; None is `main`.
        commit_message: Title of the commit.
        create_pr: Whether to open a pull request instead of committing to the branch; a pull request gets no tag.
        token: Token with write access; None or True takes the one that `hf auth login` or `HF_TOKEN` gave.
        tag: A new version tag; None takes the next free one of v1, v2, …
        obsolete: Patterns such as `figures/*`: files of the repository that match one and are not in `files` are deleted by the same commit.

    Returns:
        Commit, tag and address.

    Raises:
        ValueError: If the repository's, branch's or tag's name is not valid.
        FileNotFoundError: If a file is missing, or the repository cannot be seen with this token.
        FileExistsError: If the tag exists.
        PermissionError: If there is no token or it may not write, or `private` is asked of a repository that is public.
        ConnectionError: If the Hub cannot be reached, limits the rate, or fails.
        OSError: If the Hub refuses the commit, for example because somebody else pushed meanwhile.

    Example:
        >>> push("runs/first", "user/repo", files=["config.json", "model.tflite"])  # doctest: +SKIP
        Published(revision='4f0c…', tag='v1', url='https://huggingface.co/user/repo/tree/4f0c…')
    """
    from huggingface_hub import CommitOperationAdd

    root = Path(folder)
    sources: dict[str, Path | bytes] = {check_file_name(name): root / name for name in files}
    sources |= {check_file_name(name): content for name, content in (contents or {}).items()}
    if not sources:
        raise ValueError("files must name at least one file. Received: files=[]")
    if missing := [name for name, source in sources.items() if isinstance(source, Path) and not source.is_file()]:
        raise FileNotFoundError(f"{root} lacks {', '.join(missing)}")
    return _publish(
        repo_id,
        "model",
        [CommitOperationAdd(name, source) for name, source in sources.items()],
        private=private,
        revision=revision,
        commit_message=commit_message or "Publish a cxrlib bundle",
        create_pr=create_pr,
        token=token,
        tag=tag,
        obsolete=obsolete,
    )


def publish_space(
    folder: str | os.PathLike[str],
    space_id: str,
    *,
    model: str,
    revision: str,
    library: str | os.PathLike[str] | None = None,
    private: bool = False,
    token: str | bool | None = None,
) -> Published:
    """Upload a Gradio demo as a Space that serves one model at one revision.

    The same commit that brings the demo binds it: `model.txt` holds `hf://user/repo@revision`, and the Space's README links the model. With `library`, the
    Space runs the very code that published it, whatever a package index has under that name.

    Args:
        folder: The demo, with a `README.md` that begins with the Space's metadata. All its files travel, except what is hidden or compiled.
        space_id: `user/space`; created when missing.
        model: The model repository, `user/repo`.
        revision: The commit, tag or branch of it.
        library: Folder of a Python package to put beside the demo, under its own name: the files that lie in it, not its subfolders.
        private: Whether the Space must be private. A Space that serves a private model also needs a secret `HF_TOKEN`, set by hand.
        token: As for `push`.

    Returns:
        Commit, tag and address of the Space.

    Raises:
        ValueError: If a name is not valid, or the README has no metadata.
        OSError: As for `push`, with the same subclasses.

    Example:
        >>> publish_space("space", "user/demo", model="user/repo", revision="v1")  # doctest: +SKIP
        Published(revision='91ab…', tag='v1', url='https://huggingface.co/spaces/user/demo/tree/91ab…')
    """
    from huggingface_hub import CommitOperationAdd

    check_names(model, revision)
    root = Path(folder)
    if not (root / "README.md").is_file():
        raise FileNotFoundError(f"{root} lacks README.md")
    names = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()]
    content: dict[str, Path | bytes] = {
        name.as_posix(): root / name for name in names if not any(part.startswith((".", "__")) for part in name.parts)
    }
    if library is not None:
        package = Path(library)
        content |= {
            f"{package.name}/{path.name}": path
            for path in sorted(package.iterdir())
            if path.is_file() and not path.name.startswith(".")
        }
    content[MODEL_ADDRESS] = f"hf://{model}@{revision}\n".encode()
    content["README.md"] = _link_model((root / "README.md").read_text(encoding="utf-8"), model).encode()
    return _publish(
        space_id,
        "space",
        [CommitOperationAdd(name, source) for name, source in content.items()],
        private=private,
        commit_message=f"Serve {model} at {revision}",
        token=token,
    )


def pull(
    repo_id: str,
    *,
    list_files: Callable[[bytes], Mapping[str, str]],
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> tuple[Path, str]:
    """Bring the listed files of a model repository into the cache, and verify each.

    `config.json` comes first; only what `list_files` then names is fetched, after its size was checked, and is accepted by its hash alone. What the
    cache already holds is not fetched again; a damaged copy is, once. A full commit that is in the cache needs no network; a branch or a tag falls
    back to the commit it last stood for when the Hub cannot be reached. A revision counts as cached when all its files are there and verified: an
    interrupted download is never taken for a whole one.

    Args:
        repo_id: `user/repo`.
        list_files: Reads the bytes of `config.json`, and returns the name and SHA-256 (hexadecimal) of every other file to take. It must raise
            `BundleError` for anything it does not trust.
        revision: Branch, tag or commit; None is `main`.
        token: Token for a private or gated repository; None takes the one that `hf auth login` or `HF_TOKEN` gave.
        cache_dir: The cache's folder; None is the one that all Hugging Face libraries share.
        local_files_only: Whether to take what is in the cache and ask nobody.

    Returns:
        The folder that holds the files, and the commit's SHA-1.

    Raises:
        ValueError: If the repository's or the revision's name is not valid.
        BundleError: If the repository holds no bundle, or a file is missing, too large or altered.
        FileNotFoundError: If there is no such repository or revision, or, offline, no complete copy in the cache.
        PermissionError: If the repository is gated, or the token is not accepted.
        ConnectionError: If the Hub cannot be reached, limits the rate, or fails, and the cache has no copy.
        OSError: If the disk is full.

    Example:
        >>> pull("user/repo", list_files=lambda config: {})  # doctest: +SKIP
        (PosixPath('…/models--user--repo/snapshots/4f0c…'), '4f0c…')
    """
    check_names(repo_id, revision)
    repository = _Repository(repo_id, token, cache_dir)
    if revision is not None and _COMMIT.fullmatch(revision):
        commit: str | None = revision
    elif local_files_only:
        commit = repository.cached_commit(revision)
    else:
        try:
            commit = repository.ask(revision)
        except ConnectionError as error:
            commit = repository.cached_commit(revision)
            if commit is None:
                raise
            _log.warning("%s. Using the copy in the cache, commit %s.", error, commit)
            local_files_only = True
    if commit is None:
        raise repository.not_cached(revision)

    for again in (False, True):
        try:
            [config] = repository.fetch([CONFIG], commit, MAX_CONFIG_BYTES, offline=local_files_only, again=again)
            listed = {
                check_file_name(name): digest for name, digest in list_files(_read_config(config, repo_id)).items()
            }
            for path, digest in zip(
                repository.fetch(list(listed), commit, MAX_BUNDLE_BYTES, offline=local_files_only, again=again),
                listed.values(),
                strict=True,
            ):
                _verify(path, digest, repo_id)
            break
        except BundleError:
            if again or local_files_only or not repository.reused:
                raise  # else it may be the cached copy that is damaged: fetch anew
    repository.remember(revision, config)
    if not local_files_only:
        repository.clear_up()
    return config.parent, commit


class _Repository:
    """A model repository as seen from here: what it holds, and what the cache holds of it."""

    def __init__(self, repo_id: str, token: str | bool | None, cache_dir: str | os.PathLike[str] | None) -> None:
        from huggingface_hub import constants

        self.repo_id = repo_id
        self.token = token
        self.cache_dir = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute()
        self.sizes: dict[str, int | None] | None = None  # of the files at the commit, once the Hub has been asked
        self.reused = False  # whether anything came from the cache

    def ask(self, revision: str | None) -> str:
        """Ask the Hub which commit a revision is, and what that holds."""
        with plain_errors(self.repo_id, "read"):
            info = connect(self.token).model_info(self.repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT)
        self.sizes = {file.rfilename: file.size for file in info.siblings or ()}
        return str(info.sha)

    def cached(self, name: str, revision: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.repo_id, name, cache_dir=self.cache_dir, revision=revision)
        return Path(path) if isinstance(path, str) else None

    def cached_commit(self, revision: str | None) -> str | None:
        path = self.cached(CONFIG, revision or "main")
        return path.parent.name if path else None

    def not_cached(self, revision: str | None) -> FileNotFoundError:
        name = self.repo_id + (f" at {revision}" if revision else "")
        return FileNotFoundError(
            f"the cache in {self.cache_dir} holds no complete copy of {name}: load it once with a network"
        )

    def fetch(self, names: Sequence[str], commit: str, limit: int, *, offline: bool, again: bool) -> list[Path]:
        """Bring files into the cache, all of them or an exception. Sizes are checked before the first byte is fetched."""
        from huggingface_hub import hf_hub_download

        kept = {name: path for name in names if not again and (path := self.cached(name, commit))}
        self.reused |= bool(kept)
        missing = [name for name in names if name not in kept]
        if missing and offline:
            raise self.not_cached(commit)
        if missing and self.sizes is None:
            self.ask(commit)
        sizes = {name: self._size(name) for name in missing}
        if (total := sum(sizes.values())) > limit:
            raise BundleError(
                f"{self.repo_id} is no cxrlib bundle: {_listing(missing)} would take {total:,} bytes, more than the {limit:,} allowed"
            )
        self._check_disk(total)
        for name in missing:
            with plain_errors(self.repo_id, "read"):
                fetched: str = hf_hub_download(
                    self.repo_id,
                    name,
                    revision=commit,
                    cache_dir=self.cache_dir,
                    token=self.token,
                    endpoint=_endpoint(),
                    force_download=again,
                )
            kept[name] = Path(fetched)
        return [kept[name] for name in names]

    def _size(self, name: str) -> int:
        size = (self.sizes or {}).get(name)
        if size is None and name == CONFIG:
            raise BundleError(f"{self.repo_id} is no cxrlib bundle: it has no {CONFIG}")
        if size is None:
            raise BundleError(
                f"{self.repo_id} is incomplete: its {CONFIG} lists {name}, which the repository does not have"
            )
        return size

    def _check_disk(self, need: int) -> None:
        place = next(path for path in (self.cache_dir, *self.cache_dir.parents) if path.is_dir())
        if need > (free := shutil.disk_usage(place).free):
            raise _disk_full(f"{self.repo_id} needs {need:,} bytes in {self.cache_dir}, where {free:,} are free")

    def remember(self, revision: str | None, config: Path) -> None:
        """Note which commit a branch or tag stands for, in the cache's own form, so that it is found without a network."""
        name, commit = revision or "main", config.parent.name
        if name == commit or self.cached_commit(name) == commit:
            return
        reference = config.parents[2] / "refs" / name
        draft = reference.with_name(f"{reference.name}.tmp")
        try:
            reference.parent.mkdir(parents=True, exist_ok=True)
            with self._lock(f"refs--{name.replace('/', '--')}", config.parents[2].name):
                draft.write_text(commit)
                draft.replace(reference)
        except OSError as error:  # a read-only cache serves as well
            _log.info("could not note %s in the cache: %s", name, error)

    def clear_up(self) -> None:
        """Remove what killed downloads left behind: the library that fetches does not go on with it."""
        from huggingface_hub.file_download import repo_folder_name

        folder = self.cache_dir / repo_folder_name(repo_id=self.repo_id, repo_type="model")
        for part in folder.glob("blobs/*.incomplete"):
            with (
                suppress(OSError),
                self._lock(part.name.partition(".")[0], folder.name, timeout=0.01),
            ):  # held by whoever still fetches it
                part.unlink(missing_ok=True)

    def _lock(self, name: str, folder: str, timeout: float | None = None) -> AbstractContextManager[Any]:
        """One of the cache's own locks."""
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        place = self.cache_dir / ".locks" / folder
        place.mkdir(parents=True, exist_ok=True)
        return WeakFileLock(place / f"{name}.lock", timeout=timeout)


def _read_config(path: Path, repo_id: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise BundleError(
            f"{repo_id} is no cxrlib bundle: its {CONFIG} has more than the {MAX_CONFIG_BYTES:,} bytes allowed"
        )
    return data


def _verify(path: Path, digest: str, repo_id: str) -> None:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            found.update(chunk)
    if found.hexdigest() != digest.lower():
        raise BundleError(
            f"{path.name} of {repo_id} is not the file that its {CONFIG} lists (SHA-256 {found.hexdigest()}, expected {digest}): do not use it"
        )


def _publish(
    repo_id: str,
    kind: str,
    operations: list[Any],
    *,
    private: bool,
    commit_message: str,
    token: str | bool | None,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    obsolete: Sequence[str] = (),
) -> Published:
    from huggingface_hub import CommitOperationDelete
    from huggingface_hub.errors import RevisionNotFoundError

    check_names(repo_id, revision)
    if tag is not None and not _is_revision(tag):
        raise ValueError(f"tag must be a valid name for a version, such as v1. Received: tag={tag!r}")
    api = connect(token)
    place = {"repo_id": repo_id, "repo_type": kind}
    with plain_errors(repo_id, "write"):
        if not create_pr:
            api.create_repo(
                **place, private=private or None, exist_ok=True, space_sdk="gradio" if kind == "space" else None
            )
        try:
            head = api.repo_info(**place, revision=revision, timeout=TIMEOUT)
        except RevisionNotFoundError:
            if create_pr or revision is None:
                raise
            api.create_branch(**place, branch=revision, exist_ok=True)
            head = api.repo_info(**place, revision=revision, timeout=TIMEOUT)
        tags = {known.name: known.target_commit for known in api.list_repo_refs(**place).tags}
    if private and not head.private:
        raise PermissionError(
            f"{repo_id} exists and is public, so private=True cannot be kept: make it private in its settings, or push elsewhere"
        )
    if tag in tags:
        raise FileExistsError(f"{repo_id} already has a version {tag}: give another tag, or none for the next free one")
    added = {operation.path_in_repo for operation in operations}
    stale = [
        file.rfilename
        for file in head.siblings or ()
        if file.rfilename not in added and any(fnmatchcase(file.rfilename, p) for p in obsolete)
    ]
    with plain_errors(repo_id, "write"):
        commit = api.create_commit(
            **place,
            operations=[*operations, *(CommitOperationDelete(name, is_folder=False) for name in stale)],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=head.sha,  # so that two pushes at once cannot mix their files
        )
        if not create_pr:
            tag = tag or _version_of(commit.oid, tags)
            if tag not in tags:
                api.create_tag(**place, tag=tag, revision=commit.oid)
    home = f"{_endpoint() or 'https://huggingface.co'}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
    return Published(commit.oid, None if create_pr else tag, commit.pr_url or f"{home}/tree/{commit.oid}")


def _version_of(commit: str, tags: Mapping[str, str]) -> str:
    """The latest of v1, v2, … that stands on the commit, else the next free one."""
    versions = {int(name[1:]): target for name, target in tags.items() if re.fullmatch("v[0-9]{1,9}", name)}
    return f"v{max((number for number, target in versions.items() if target == commit), default=max(versions, default=0) + 1)}"


def _link_model(card: str, model: str) -> str:
    """Put `models: [model]` into the metadata at the head of a Space's README."""
    match = re.match(r"---\n(.*?\n)---\n", card, re.DOTALL)
    if not match:
        raise ValueError("the Space's README.md must begin with its metadata between two lines of ---")
    metadata = re.sub(r"^models:.*\n(?:[ \t]*-.*\n)*", "", match[1], flags=re.MULTILINE)
    return f"---\n{metadata}models:\n- {model}\n---\n{card[match.end() :]}"


def connect(token: str | bool | None) -> Any:
    """Make a client of the Hub; nothing is sent yet.

    Args:
        token: `None` takes the one that `hf auth login` or `HF_TOKEN` gave, `False` none.

    Returns:
        A `huggingface_hub.HfApi`. Its calls belong into `plain_errors`.

    Example:
        >>> connect(None).library_name
        'cxrlib'
    """
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint(), token=token, library_name="cxrlib")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _is_repo_id(name: str) -> bool:
    return (
        bool(_REPO_ID.fullmatch(name))
        and len(name) <= 96
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )


def _is_revision(name: str) -> bool:
    return (
        bool(_REVISION.fullmatch(name))
        and len(name) <= 200
        and ".." not in name
        and "//" not in name
        and "/." not in name
    )


def check_names(repo_id: str, revision: str | None) -> None:
    """Check names before they become part of an address or a path.

    Args:
        repo_id: `user/repo`.
        revision: A branch, a tag or a commit; `None` for none.

    Raises:
        ValueError: If one of them is no such name.

    Example:
        >>> check_names("user/repo", "v1")
        >>> check_names("../repo", None)
        Traceback (most recent call last):
        ValueError: a repository on the Hub is named user/repo. Received: repo_id='../repo'
    """
    if not _is_repo_id(repo_id):
        raise ValueError(f"a repository on the Hub is named user/repo. Received: repo_id={repo_id!r}")
    if revision is not None and not _is_revision(revision):
        raise ValueError(f"revision must be a branch, a tag or a commit. Received: revision={revision!r}")


def _listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"its {len(names)} files"


def _disk_full(what: str) -> OSError:
    error = OSError(f"the disk is full: {what}; free some space, or choose another disk with cache_dir or HF_HOME")
    error.errno = errno.ENOSPC
    return error


@contextmanager
def plain_errors(repo_id: str, doing: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into built-in exceptions, each one sentence with what to do.

    Args:
        repo_id: What the calls inside are about.
        doing: `"read"` or `"write"`, for the sentence.

    Raises:
        FileNotFoundError: If there is no such repository or revision, or this token does not see it.
        PermissionError: If the token is missing, not accepted or not enough.
        ConnectionError: If the Hub cannot be reached, limits the rate, or fails.
        OSError: If the disk is full, or the Hub refuses for another reason.

    Example:
        >>> with plain_errors("user/repo", "read"):
        ...     connect(None).model_info("user/repo")  # doctest: +SKIP
    """
    try:
        yield
    except Exception as error:
        plain = _explain(error, repo_id, doing)
        if plain is None:
            raise
        raise plain from error


def _explain(error: BaseException, repo_id: str, doing: str) -> Exception | None:
    from huggingface_hub import errors

    host = _endpoint() or "https://huggingface.co"
    log_in = "log in with `hf auth login` or give token=…"
    wraps = isinstance(error, (errors.LocalEntryNotFoundError, RuntimeError)) or str(error).startswith(
        "Force download failed"
    )
    if wraps and error.__cause__ is not None:
        return _explain(error.__cause__, repo_id, doing)  # the reason lies below
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(f"{repo_id} is gated: accept its conditions at {host}/{repo_id}, then {log_in}")
    if isinstance(error, errors.DisabledRepoError):
        return PermissionError(f"{repo_id} was disabled by the Hub: see {host}/{repo_id}")
    if isinstance(error, errors.RepositoryNotFoundError):
        if "authorization" in error.response.request.headers:
            return FileNotFoundError(
                f"the Hub shows no repository {repo_id} to this token: check the name, or ask its owner for access"
            )
        return FileNotFoundError(
            f"the Hub shows no repository {repo_id} without a token: check the name, or, if it is private, {log_in}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(
            f"{repo_id} has no such branch, tag or commit: see {host}/{repo_id}/tree/main for those it has"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _explain_status(error, repo_id, doing)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return PermissionError(f"there is no stored token: {log_in}")
    if isinstance(
        error, (errors.HfHubHTTPError.__bases__[0], errors.OfflineModeIsEnabled)
    ):  # the HTTP library's own errors
        return ConnectionError(
            f"{host} cannot be reached ({_first_line(error)}): check the network, the proxy and HF_HUB_OFFLINE, and try again"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _disk_full(f"{repo_id} could not be stored ({_first_line(error)})")
    if isinstance(error, PermissionError) and error.filename:
        return PermissionError(f"{error.filename} cannot be written: choose another folder with cache_dir or HF_HOME")
    if isinstance(error, (OSError, RuntimeError, errors.XetDownloadError)) and not getattr(error, "errno", None):
        return ConnectionError(f"the transfer of {repo_id} failed ({_first_line(error)}): try again")
    if isinstance(error, (json.JSONDecodeError, KeyError)):  # for example the login page of a network
        return ConnectionError(
            f"{host} does not answer as the Hub does: check the network, which may want a login, the proxy and HF_ENDPOINT"
        )
    return None


def _explain_status(error: Any, repo_id: str, doing: str) -> Exception:
    status, headers = error.response.status_code, error.response.headers
    said = _first_line(error.server_message or "no reason given")
    if status == 401:
        if "authorization" in error.response.request.headers:
            return PermissionError(
                "the Hub does not accept the token, which may be mistyped or expired: log in anew with `hf auth login` or give another"
            )
        return PermissionError(
            f"to {doing} {repo_id} the Hub wants a token: log in with `hf auth login` or give token=…"
        )
    if status in (402, 403):
        return PermissionError(
            f"the Hub does not let this token {doing} {repo_id} ({said}): use a token that may, or another repository"
        )
    if status == 409 or status == 412:
        return OSError(f"{repo_id} was changed by somebody else in the meantime ({said}): push again")
    if status == 429:
        wait = headers.get("retry-after") or "".join(re.findall(r";\s*t\s*=\s*(\d+)", headers.get("ratelimit", ""))[:1])
        when = f"in {wait} seconds" if wait.isdigit() else "in some minutes"
        return ConnectionError(f"the Hub's rate limit is reached: try again {when}, with a token if you gave none")
    if status >= 500 or status == 408:
        return ConnectionError(f"the Hub has a fault of its own (HTTP status {status}): try again later")
    return OSError(f"the Hub refused to {doing} {repo_id} (HTTP status {status}: {said})")


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
