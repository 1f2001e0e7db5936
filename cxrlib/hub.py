"""Push a folder to the Hugging Face Hub and pull one from it.

Files are transferred and hashed here, never interpreted or deserialised.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrlib.config import BundleError, check_file_name
from cxrlib.hub_errors import endpoint, plain_errors

CONFIG = "config.json"
MODEL_ADDRESS = "model.txt"  # in a Space: which model at which commit it serves
MAX_CONFIG_BYTES = 8 * 2**20
MAX_BUNDLE_BYTES = 2**30
TIMEOUT = 10.0  # seconds the Hub may take to say what a repository holds

_log = logging.getLogger(__name__)
_NAME = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"(?=.{{1,96}}\Z)(?!.*(?:--|\.\.|\.git\Z)){_NAME}/{_NAME}", re.ASCII)
_REVISION = re.compile(r"(?=.{1,200}\Z)(?!.*(?:\.\.|//|/\.))[A-Za-z0-9_](?:[\w.+/-]*[A-Za-z0-9_])?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Published:
    """What a push left on the Hub.

    Args:
        revision: The commit, 40 hexadecimal digits: `from_hub(repo_id, revision=…)` always gives this state.
        tag: The version tag on the commit; `None` on a pull request.
        url: Its address: the pull request, or the repository at that commit.

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
        The repository and the revision, `None` where the address names none.

    Raises:
        ValueError: If the address has another form.

    Example:
        >>> parse_address("hf://user/repo@v1")
        ('user/repo', 'v1')
    """
    repo_id, at, revision = address.removeprefix("hf://").partition("@")
    valid = _REPO_ID.fullmatch(repo_id) and (not at or _REVISION.fullmatch(revision))
    if not address.startswith("hf://") or not valid:
        forms = "hf://user/repo or hf://user/repo@revision"
        raise ValueError(f"an address on the Hub has the form {forms}. Received: address={address!r}")
    return repo_id, revision or None


def push(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    *,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> Published:
    """Upload the files of a bundle to a model repository in one commit, tagged with the next of v1, v2 and so on.

    The repository and the branch are created when missing. The commit is atomic: an interrupted push changes nothing,
    and pushing again completes it. Pushing the same files again makes no new commit and no new tag.

    Args:
        repo_id: `user/repo`.
        files: Path or content of each file, by its name in the repository. Other files there that match `figures/*` or
            `model.*` are deleted by the same commit.
        private: Whether the repository must be private. `False` leaves a new one as the account's default has it.
        revision: The branch to commit to; `None` is `main`.
        commit_message: Title of the commit.
        create_pr: Whether to open a pull request instead; it gets no tag.
        token: Token with write access; `None` takes the one you logged in with.

    Returns:
        Commit, tag and address.

    Raises:
        ValueError: If the name of the repository or the branch is not valid.
        FileNotFoundError: If a file is missing, or this token does not see the repository.
        PermissionError: If there is no token or it may not write, or `private` is asked of a public repository.
        ConnectionError: If the Hub cannot be reached, limits the rate, or fails.
        OSError: If the Hub refuses the commit, for example because another push came first.

    Example:
        >>> push("user/repo", {"config.json": Path("runs/first/config.json")})  # doctest: +SKIP
        Published(revision='4f0c…', tag='v1', url='https://huggingface.co/user/repo/tree/4f0c…')
    """
    message = commit_message or "Publish a cxrlib bundle"
    where: dict[str, Any] = {"private": private, "revision": revision, "create_pr": create_pr, "token": token}
    names = [check_file_name(name) for name in files]
    if missing := [n for n in names if isinstance(path := files[n], Path) and not path.is_file()]:
        raise FileNotFoundError(f"files to publish are missing: {', '.join(missing)}")
    return _publish(repo_id, "model", files, message, **where)


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

    One commit brings the demo, `model.txt` with `hf://user/repo@revision`, and a README that links the model.

    Args:
        folder: The demo, with a `README.md` that begins with the Space's metadata. Hidden and compiled files stay.
        space_id: `user/space`; created when missing.
        model: The model repository, `user/repo`.
        revision: The commit, tag or branch of it.
        library: Folder of a Python package, uploaded beside the demo with its subpackages, so that the Space runs the
            code that published it.
        private: Whether the Space must be private. A Space with a private model also needs a secret `HF_TOKEN`.
        token: As for `Predictor.push_to_hub`.

    Returns:
        Commit, tag and address of the Space.

    Raises:
        ValueError: If a name is not valid, or the README has no metadata.
        OSError: As for `push`, with the same subclasses.

    Example:
        >>> publish_space("space", "user/demo", model="user/repo", revision="v1")  # doctest: +SKIP
        Published(revision='91ab…', tag='v1', url='https://huggingface.co/spaces/user/demo/tree/91ab…')
    """
    from huggingface_hub import SpaceCard

    check_names(model, revision)
    root = Path(folder)
    card = SpaceCard((root / "README.md").read_text(encoding="utf-8"), ignore_metadata_errors=True)
    if not getattr(card.data, "sdk", None):
        raise ValueError(f"{root / 'README.md'} must begin with the metadata of a Space, between two lines of ---")
    card.data["models"] = [model]
    content: dict[str, Path | bytes] = {**_files_below(root), "README.md": str(card).encode()}
    if library is not None:
        package = Path(library)
        code = {name: path for name, path in _files_below(package).items() if (path.parent / "__init__.py").is_file()}
        content |= {f"{package.name}/{name}": path for name, path in code.items()}
    content[MODEL_ADDRESS] = f"hf://{model}@{revision}\n".encode()
    return _publish(space_id, "space", content, f"Serve {model} at {revision}", private=private, token=token)


def publish_page(folder: Path, space_id: str, *, private: bool = False, token: str | bool | None = None) -> Published:
    """Upload a page that `cxrlib.web.write_page` wrote, as a static Space.

    Args:
        folder: The page.
        space_id: `user/space`; created when missing.
        private: Whether the Space must be private.
        token: As for `Predictor.push_to_hub`.

    Returns:
        Commit, tag and address of the Space.

    Raises:
        ValueError: If the name is not valid.
        OSError: As for `push`, with the same subclasses.
    """
    return _publish(space_id, "space", _files_below(folder), "Serve a page", private=private, token=token, sdk="static")


def pull(
    repo_id: str,
    *,
    list_files: Callable[[bytes], Mapping[str, str]],
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> tuple[Path, str]:
    """Download the files of a bundle into the cache, and verify each.

    `config.json` comes first; only what it lists is downloaded, after its size was checked, and accepted by its hash. A
    damaged copy in the cache is downloaded again. A full commit that is in the cache needs no network. Where the Hub
    cannot be reached, a branch or a tag stands for the last commit of which all files are in the cache.

    Args:
        repo_id: `user/repo`.
        list_files: Reads the bytes of `config.json`, and returns the SHA-256 (hexadecimal) of every other file by name.
            It must raise `BundleError` for anything it does not trust.
        revision: Branch, tag or commit; `None` is `main`.
        token: For a private or gated repository; `None` takes the one you logged in with, `False` none.
        cache_dir: The cache's folder; `None` is the one that all Hugging Face libraries share.
        local_files_only: Whether to use the cache alone, without the network.

    Returns:
        The folder that holds the files, and the commit.

    Raises:
        ValueError: If the name of the repository or the revision is not valid.
        BundleError: If the repository holds no bundle, or a file is missing, too large or altered.
        FileNotFoundError: If there is no such repository or revision or, offline, no complete copy in the cache.
        PermissionError: If the repository is gated, or the token is not accepted.
        ConnectionError: If the Hub cannot be reached, limits the rate, or fails, and the cache has no copy.
        OSError: If the disk is full.

    Example:
        >>> pull("user/repo", list_files=lambda config: {})  # doctest: +SKIP
        (PosixPath('…/models--user--repo/snapshots/4f0c…'), '4f0c…')
    """
    # Left to hf_hub_download, the commit of a branch would be noted before its files are there, a deleted repository
    # would be served from the cache, and no size would be checked: so the Hub is asked first, and files are by commit
    check_names(repo_id, revision)
    api, wanted = connect(token), revision or "main"

    def get(name: str, at: str, **how: bool) -> Path:
        # not snapshot_download, which waits for its threads: Ctrl-C in a stalled transfer takes it 65 s, this 0.2 s
        return Path(api.hf_hub_download(repo_id, name, revision=at, cache_dir=cache_dir, **how))

    def cached(at: str) -> Path:
        try:
            return _verified(lambda name: get(name, at, local_files_only=True), list_files, repo_id)
        except FileNotFoundError:
            name = repo_id + (f" at {revision}" if revision else "")
            raise FileNotFoundError(
                f"the cache holds no complete copy of {name}: load it once with a network"
            ) from None

    if local_files_only or _COMMIT.fullmatch(wanted):
        try:
            folder = cached(wanted)
            return folder, folder.name
        except (FileNotFoundError, BundleError):
            if local_files_only:
                raise
    try:
        with plain_errors(repo_id, "read"):
            info = api.model_info(repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT)
    except ConnectionError as error:
        try:
            folder = cached(wanted)
        except FileNotFoundError:
            raise error from None
        _log.warning("%s. Using the copy in the cache, commit %s.", error, folder.name)
        return folder, folder.name
    commit, sizes = str(info.sha), {file.rfilename: file.size or 0 for file in info.siblings or ()}
    try:
        folder = cached(commit)
    except (FileNotFoundError, BundleError) as error:
        damaged = isinstance(error, BundleError)

        def download(name: str) -> Path:
            with plain_errors(repo_id, "read"):
                return get(name, commit, force_download=damaged)

        folder = _verified(download, list_files, repo_id, sizes)
    _remember(folder, wanted)
    return folder, commit


def _verified(
    get: Callable[[str], Path],
    list_files: Callable[[bytes], Mapping[str, str]],
    repo_id: str,
    sizes: Mapping[str, int] | None = None,
) -> Path:
    """The folder of a config and of the files that it lists, each with its hash; sizes are checked before downloads."""
    if sizes is not None and CONFIG not in sizes:
        raise BundleError(f"{repo_id} is not a cxrlib bundle: it has no {CONFIG}")
    if sizes and sizes[CONFIG] > MAX_CONFIG_BYTES:
        raise BundleError(f"{repo_id}: {CONFIG} would take {sizes[CONFIG]:,} bytes, more than {MAX_CONFIG_BYTES:,}")
    config = get(CONFIG)
    with open(config, "rb") as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    listed = {check_file_name(name): digest for name, digest in list_files(data).items()}
    if sizes is not None and (missing := listed.keys() - sizes.keys()):
        raise BundleError(f"{repo_id} is incomplete: it lacks {', '.join(sorted(missing))}, which its {CONFIG} lists")
    if sizes and (total := sum(sizes[name] for name in listed)) > MAX_BUNDLE_BYTES:
        raise BundleError(f"{repo_id}: its files would take {total:,} bytes, more than {MAX_BUNDLE_BYTES:,}")
    for name, digest in listed.items():
        found = hashlib.sha256()
        with open(get(name), "rb") as file:
            while chunk := file.read(2**20):
                found.update(chunk)
        if found.hexdigest() != digest:
            hashes = f"SHA-256 {found.hexdigest()}, expected {digest}"
            raise BundleError(f"{name} of {repo_id} is not the file that its {CONFIG} lists ({hashes}): do not use it")
    return config.parent


def _remember(folder: Path, revision: str) -> None:
    """Note in the cache which commit a branch or tag stands for, once all its files are there."""
    import filelock

    repository, commit = folder.parents[1], folder.name
    reference, locks = repository / "refs" / revision, repository.parent / ".locks" / repository.name
    with suppress(OSError):  # a read-only cache serves as well
        if revision == commit or (reference.is_file() and reference.read_text() == commit):
            return
        for place in (reference.parent, locks):
            place.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(locks / "refs.lock"):
            draft = reference.with_name(f"{reference.name}.tmp")
            draft.write_text(commit)
            draft.replace(reference)


def _files_below(root: Path) -> dict[str, Path]:
    """Files by relative name, except what is hidden or compiled."""
    paths = {path.relative_to(root): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {n.as_posix(): path for n, path in paths.items() if not any(p.startswith((".", "__pyc")) for p in n.parts)}


def _publish(
    repo_id: str,
    kind: str,
    content: Mapping[str, Path | bytes],
    message: str,
    *,
    private: Any,
    token: Any,
    revision: Any = None,
    create_pr: Any = False,
    sdk: str = "gradio",
) -> Published:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import RevisionNotFoundError

    check_names(repo_id, revision)
    operations: list[Any] = [CommitOperationAdd(name, source) for name, source in content.items()]
    api, place = connect(token), {"repo_id": repo_id, "repo_type": kind}
    with plain_errors(repo_id, "write"):
        if not create_pr:
            space_sdk = sdk if kind == "space" else None
            api.create_repo(**place, private=private or None, exist_ok=True, space_sdk=space_sdk)
        try:
            head = api.repo_info(**place, revision=revision, timeout=TIMEOUT)
        except RevisionNotFoundError:
            if create_pr or revision is None:
                raise
            api.create_branch(**place, branch=revision, exist_ok=True)
            head = api.repo_info(**place, revision=revision, timeout=TIMEOUT)
    if private and not head.private:
        advice = "make it private in its settings, or push elsewhere"
        raise PermissionError(f"{repo_id} exists and is public, so private=True cannot be kept: {advice}")
    present = [file.rfilename for file in head.siblings or () if file.rfilename not in content]
    stale = [name for name in present if kind == "model" and re.match(r"figures/|model\.", name)]
    with plain_errors(repo_id, "write"):
        commit = api.create_commit(
            **place,
            operations=[*operations, *(CommitOperationDelete(name, is_folder=False) for name in stale)],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=head.sha,  # so that two pushes at once cannot mix their files
        )
        tag = None
        if not create_pr:
            tags = {known.name: known.target_commit for known in api.list_repo_refs(**place).tags}
            tag = _version_of(commit.oid, tags)
            if tag not in tags:
                api.create_tag(**place, tag=tag, revision=commit.oid)
    home = f"{endpoint() or 'https://huggingface.co'}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
    return Published(commit.oid, tag, commit.pr_url or f"{home}/tree/{commit.oid}")


def _version_of(commit: str, tags: Mapping[str, str]) -> str:
    """The latest of v1, v2, … that stands on the commit, else the next free one."""
    versions = {int(name[1:]): target for name, target in tags.items() if re.fullmatch("v[0-9]{1,9}", name)}
    on_commit = [number for number, target in versions.items() if target == commit]
    return f"v{max(on_commit) if on_commit else max(versions, default=0) + 1}"


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

    return HfApi(endpoint=endpoint(), token=token, library_name="cxrlib")


def check_names(repo_id: str, revision: str | None) -> None:
    """Check names before they become part of an address or a path.

    Args:
        repo_id: `user/repo`.
        revision: A branch, a tag or a commit; `None` for none.

    Raises:
        ValueError: If a name is not valid.

    Example:
        >>> check_names("../repo", None)
        Traceback (most recent call last):
        ValueError: a repository on the Hub is named user/repo. Received: repo_id='../repo'
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise ValueError(f"a repository on the Hub is named user/repo. Received: repo_id={repo_id!r}")
    if revision is not None and not _REVISION.fullmatch(revision):
        raise ValueError(f"revision must be a branch, a tag or a commit. Received: revision={revision!r}")
