"""The Hub, through the real client and real sockets: what travels, what is refused, what an interruption leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, client_of, environment, serving

from cxrlib import hub
from cxrlib.config import BundleError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # huggingface_hub's own, while it uploads
ROOT = Path(__file__).parents[1]
REPO = "alice/model"
CONTENT = {
    "model.tflite": b"\0flat" + bytes(range(256)) * 20,
    "figures/roc.png": b"\x89PNG\0" + bytes(200),
    "README.md": b"---\nlicense: mit\n---\n# A model\n",
    "report.json": b'{"auroc": 0.99}\n',
}


def bundle(content: Mapping[str, bytes]) -> dict[str, bytes]:
    """The content with a config.json that lists it."""
    listed = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    return {"config.json": json.dumps({"files": listed}).encode(), **content}


def list_files(config: bytes) -> dict[str, str]:
    try:
        listed: dict[str, str] = json.loads(config)["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError("config.json is not a cxrlib config") from error
    return listed


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def push(folder: Path, content: Mapping[str, bytes] = CONTENT, **options: Any) -> hub.Published:
    files = bundle(content)
    write(folder, files)
    return hub.push(REPO, {name: folder / name for name in files}, **{"token": "hf_alice", **options})


def pull(**options: Any) -> tuple[Path, str]:
    return hub.pull(REPO, list_files=list_files, **options)


def assert_whole(folder: Path, content: Mapping[str, bytes] = CONTENT) -> None:
    assert {name: (folder / name).read_bytes() for name in bundle(content)} == bundle(content)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with serving(part_bytes=3000) as running, client_of(running, tmp_path / "home"):
        running.add_user("hf_alice", "alice")
        running.add_user("hf_reader", "rudi", writes=False)
        running.add_user("hf_bob", "bob")
        yield running


# Addresses


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://alice/model", ("alice/model", None)),
        ("hf://alice/model@v1", ("alice/model", "v1")),
        ("hf://a-b.c_d/X@refs/pr/3", ("a-b.c_d/X", "refs/pr/3")),
        (f"hf://alice/model@{'0' * 40}", ("alice/model", "0" * 40)),
    ],
)
def test_parse_address(address: str, expected: tuple[str, str | None]) -> None:
    assert hub.parse_address(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        *(
            "alice/model",
            "hf://alice",
            "hf://alice/model@",
            "hf://alice/a/b",
            "hf://../model",
            "hf://alice/..",
            "hf://alice/model@../../x",
            "",
        ),
        *(
            "hf://alice/model@a//b",
            "hf://alice/model@-x",
            "hf://alice/mo del",
            "hf://alice/model.git",
            "hf://alice/a--b",
            "hf://@v1",
            "HF://alice/model",
        ),
        *("hf://alice/model@a/.b", f"hf://alice/{'x' * 100}", "hf://alice/model@v1\n", "hf://alice/model\n"),
    ],
)
def test_parse_address_refuses(address: str) -> None:
    with pytest.raises(
        ValueError, match=r"has the form hf://user/repo or hf://user/repo@revision\. Received: address="
    ):
        hub.parse_address(address)


def test_files_are_paths_or_contents(server: HubServer, tmp_path: Path) -> None:
    write(tmp_path, {"b.txt": b"from the folder"})
    hub.push(REPO, {"a.txt": b"from memory", "b.txt": tmp_path / "b.txt"}, token="hf_alice")
    found = {name: data for name, data in server.files(REPO).items() if name.endswith(".txt")}
    assert found == {"a.txt": b"from memory", "b.txt": b"from the folder"}


def test_names_are_checked_before_any_request(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is named user/repo\. Received: repo_id='model'"):
        hub.pull("model", list_files=list_files)
    with pytest.raises(ValueError, match=r"revision must be a branch, a tag or a commit\. Received: revision='\.\./x'"):
        pull(revision="../x")
    with pytest.raises(ValueError, match="is named user/repo"):
        hub.push("../x", {"a": b""})
    with pytest.raises(BundleError, match=r"unsafe name: '\.\./secret'"):
        hub.push(REPO, {"../secret": b""})
    with pytest.raises(FileNotFoundError, match=r"files to publish are missing: missing\.json"):
        hub.push(REPO, {"missing.json": tmp_path / "missing.json"})
    assert not server.asked("/api/repos|/api/models")


# Pushing


def test_push_is_one_commit_of_the_listed_files_and_a_tag(server: HubServer, tmp_path: Path) -> None:
    write(tmp_path, {"notes.txt": b"private", ".env": b"TOKEN=1", "figures/draft.png": b"x"})
    published = push(tmp_path, commit_message="First")
    repo = server.repos["model", REPO]
    assert not repo.private
    assert server.files(REPO).items() >= bundle(CONTENT).items()
    assert set(server.files(REPO)) == {".gitattributes", *bundle(CONTENT)}
    assert list(repo.titles.values()) == ["initial commit", "First"]
    assert repo.branches["main"] == published.revision
    assert repo.tags == {"v1": published.revision}
    assert published == hub.Published(published.revision, "v1", f"{server.url}/{REPO}/tree/{published.revision}")
    stored = repo.commits[published.revision]
    assert {name for name, file in stored.items() if file.lfs} == {"model.tflite", "figures/roc.png"}
    assert len(server.asked(r"PUT /upload/")) == 3, "model.tflite is larger than part_bytes, so it travels in two parts"


def test_pushing_the_same_again_changes_nothing(server: HubServer, tmp_path: Path) -> None:
    first = push(tmp_path)
    assert push(tmp_path) == first
    assert len(server.repos["model", REPO].commits) == 2


def test_versions_count_up_and_old_ones_stay(server: HubServer, tmp_path: Path) -> None:
    first = push(tmp_path)
    changed = {**CONTENT, "report.json": b"{}"}
    second = push(tmp_path, changed)
    third = push(tmp_path, {**CONTENT, "report.json": b"[]"})
    assert (first.tag, second.tag, third.tag) == ("v1", "v2", "v3")
    assert_whole(pull(revision="v1")[0])
    assert_whole(pull(revision="v2")[0], changed)
    assert pull()[1] == third.revision


def test_a_tag_is_never_moved(server: HubServer, tmp_path: Path) -> None:
    first = push(tmp_path)
    server.repos["model", REPO].tags["v7"] = first.revision
    assert push(tmp_path).tag == "v7", "nothing changed, so the version stays"
    assert push(tmp_path, {**CONTENT, "report.json": b"{}"}).tag == "v8"
    assert server.repos["model", REPO].tags["v1"] == first.revision


def test_obsolete_files_go_with_the_same_commit(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    server.plant(REPO, {"LICENSE": b"mine", "figures/old.png": b"old", "model.h5": b"old", "models.md": b"mine"})
    push(tmp_path, {"model.tflite": CONTENT["model.tflite"]})
    kept = {"LICENSE", "README.md", "models.md", "report.json"}
    assert set(server.files(REPO)) == {".gitattributes", "config.json", "model.tflite", *kept}
    assert len(server.repos["model", REPO].commits) == 4


def test_push_to_a_branch_creates_it(server: HubServer, tmp_path: Path) -> None:
    published = push(tmp_path, revision="try/1")
    repo = server.repos["model", REPO]
    assert repo.branches["try/1"] == repo.tags["v1"] == published.revision != repo.branches["main"]
    assert_whole(pull(revision="try/1")[0])
    with pytest.raises(BundleError, match=r"alice/model is not a cxrlib bundle: it has no config\.json"):
        pull()


def test_pull_request(server: HubServer, tmp_path: Path) -> None:
    server.plant(REPO, bundle({"report.json": b"{}"}))
    before = server.repos["model", REPO].branches["main"]
    published = push(tmp_path, create_pr=True, token="hf_bob")
    assert published.tag is None
    assert published.url == f"{server.url}/{REPO}/discussions/1"
    assert server.repos["model", REPO].branches["main"] == before
    assert_whole(pull(revision="refs/pr/1")[0])


def test_private_is_kept_or_refused(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path, private=True)
    assert server.repos["model", REPO].private
    push(tmp_path, private=True)
    server.repos["model", REPO].private = False
    with pytest.raises(
        PermissionError,
        match="alice/model exists and is public, so private=True cannot be kept: make it private in its settings",
    ):
        push(tmp_path, {**CONTENT, "report.json": b"secret"}, private=True)
    assert server.files(REPO)["report.json"] == CONTENT["report.json"]


def test_two_pushes_at_once_never_mix(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path / "0")
    outcomes: list[object] = []

    def run(number: int) -> None:
        try:
            outcomes.append(
                push(
                    tmp_path / str(number),
                    {**CONTENT, "report.json": b"%d" % number, "README.md": b"---\na: %d\n---\n" % number},
                )
            )
        except OSError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(isinstance(outcome, hub.Published) for outcome in outcomes)
    for commit in server.repos["model", REPO].commits:
        files = server.files(REPO, commit)
        if "config.json" in files:
            listed = list_files(files["config.json"])
            assert listed == {name: hashlib.sha256(files[name]).hexdigest() for name in listed}


def test_someone_else_pushes_meanwhile(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    push(tmp_path)
    create_commit = HfApi.create_commit

    def late(self: HfApi, *args: Any, **options: Any) -> Any:
        server.plant(REPO, bundle({**CONTENT, "README.md": b"theirs"}))
        return create_commit(self, *args, **options)

    monkeypatch.setattr(HfApi, "create_commit", late)
    with pytest.raises(
        OSError,
        match=r"alice/model was changed by somebody else in the meantime \(A commit has happened since.*\): push again",
    ):
        push(tmp_path, {**CONTENT, "report.json": b"{}"})
    assert_whole(pull()[0], {**CONTENT, "README.md": b"theirs"})


def test_a_bad_card_is_named_before_anything_is_uploaded(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        push(tmp_path, {**CONTENT, "README.md": b"---\na: [\n---\n"})
    assert not server.asked("PUT /upload")


# Spaces


def test_publish_space_binds_model_and_revision_in_one_commit(server: HubServer, tmp_path: Path) -> None:
    card = "---\ntitle: Demo\nmodels:\n  - old/one\nsdk: gradio\n---\nA demo.\n"
    write(
        tmp_path,
        {
            "app.py": b"import cxrlib\n",
            "README.md": card.encode(),
            "requirements.txt": b"cxrlib[demo]\n",
            "assets/style.css": b"body {}\n",
        },
    )
    write(
        tmp_path,
        {
            ".env": b"HF_TOKEN=hf_alice",
            ".gradio/flagged.csv": b"an image",
            "__pycache__/app.cpython-311.pyc": b"x",
            "assets/.DS_Store": b"x",
        },
    )
    published = hub.publish_space(tmp_path, "alice/demo", model=REPO, revision="v1", token="hf_alice")
    repo, files = server.repos["space", "alice/demo"], server.files("alice/demo", kind="space")
    assert repo.sdk == "gradio"
    assert set(files) == {".gitattributes", "README.md", "app.py", "assets/style.css", "model.txt", "requirements.txt"}
    assert hub.parse_address(files["model.txt"].decode().strip()) == (REPO, "v1")
    assert files["README.md"].decode() == "---\ntitle: Demo\nmodels:\n- alice/model\nsdk: gradio\n---\nA demo.\n"
    assert list(repo.titles.values()) == ["initial commit", "Serve alice/model at v1"]
    assert published.url == f"{server.url}/spaces/alice/demo/tree/{published.revision}"
    assert (tmp_path / "README.md").read_text() == card, "the folder stays as it is"
    hub.publish_space(tmp_path, "alice/demo", model=REPO, revision="v2", token="hf_alice")
    assert server.files("alice/demo", kind="space")["model.txt"] == b"hf://alice/model@v2\n"


def test_publish_space_brings_the_library_along(server: HubServer, tmp_path: Path) -> None:
    write(tmp_path / "demo", {"app.py": b"import library\n", "README.md": b"---\nsdk: gradio\n---\n"})
    code = ("__init__.py", "card.md", "images/__init__.py", "images/read.py")
    others = (".secret", "default/model.tflite", "__pycache__/a.pyc", "images/__pycache__/b.pyc")
    library = write(tmp_path / "library", dict.fromkeys((*code, *others), b"x"))
    hub.publish_space(tmp_path / "demo", "alice/demo", model=REPO, revision="v1", library=library, token="hf_alice")
    files = server.files("alice/demo", kind="space")
    assert set(files) == {".gitattributes", "README.md", "app.py", "model.txt", *(f"library/{name}" for name in code)}


def test_a_page_becomes_a_static_space(server: HubServer, tmp_path: Path) -> None:
    files = {"index.html": b"<!doctype html>", "README.md": b"---\nsdk: static\n---\n"}
    published = hub.publish_page(write(tmp_path, files), "alice/page", token="hf_alice")
    assert server.repos["space", "alice/page"].sdk == "static"
    assert server.files("alice/page", kind="space") | files == server.files("alice/page", kind="space")
    assert published.url == f"{server.url}/spaces/alice/page/tree/{published.revision}"


def test_publish_space_refuses(server: HubServer, tmp_path: Path) -> None:
    write(tmp_path, {"app.py": b""})
    with pytest.raises(FileNotFoundError, match=r"README\.md"):
        hub.publish_space(tmp_path, "alice/demo", model=REPO, revision="v1")
    write(tmp_path, {"README.md": b"no metadata"})
    with pytest.raises(
        ValueError, match=r"README\.md must begin with the metadata of a Space, between two lines of ---"
    ):
        hub.publish_space(tmp_path, "alice/demo", model=REPO, revision="v1")
    with pytest.raises(ValueError, match="is named user/repo"):
        hub.publish_space(tmp_path, "alice/demo", model="nonsense", revision="v1")
    assert not server.requests


# Pulling


def test_pull_brings_the_listed_files_and_no_other(server: HubServer, tmp_path: Path) -> None:
    commit = push(tmp_path).revision
    server.plant(REPO, {"model.keras": b"PK\x03\x04", "weights.pkl": b"\x80\x04."})
    head = server.repos["model", REPO].branches["main"]
    folder, revision = pull(token="hf_alice")
    assert revision == head != commit
    assert_whole(folder)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(bundle(CONTENT))
    assert not server.asked("keras|pkl")
    assert [request.authorized for request in server.asked("/files/")] == [False] * 2, (
        "the storage host must not see the token"
    )
    assert all(request.authorized for request in server.asked("/resolve/"))


def test_second_pull_asks_once_and_a_commit_not_at_all(server: HubServer, tmp_path: Path) -> None:
    commit = push(tmp_path).revision
    first = pull()
    server.requests.clear()
    assert pull() == first
    assert [request.path for request in server.requests] == [f"/api/models/{REPO}"]
    server.requests.clear()
    assert pull(revision=commit) == first
    assert not server.requests


def test_pull_into_a_chosen_folder(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    folder, _ = pull(cache_dir=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere") in folder.parents
    assert not (tmp_path / "home" / "hub").exists()


def test_pull_works_offline_from_the_cache(
    server: HubServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(tmp_path)
    for revision in (None, "v1"):
        pull(revision=revision)
    online = pull()
    server.requests.clear()
    assert pull(local_files_only=True) == pull(local_files_only=True, revision="v1") == online
    assert not server.requests
    server.stop()
    with caplog.at_level(logging.WARNING, logger="cxrlib.hub"):
        assert pull() == pull(revision="v1") == pull(revision=online[1]) == online
    assert "cannot be reached (Connection refused)" in caplog.text.replace("[Errno 111] ", "")
    assert f"Using the copy in the cache, commit {online[1]}." in caplog.text
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert pull() == online
    assert_whole(online[0])


OFFLINE = """
import json, sys
from cxrlib import hub
for revision in sys.argv[1:]:
    print(hub.pull("alice/model", list_files=lambda data: json.loads(data)["files"], revision=revision)[1])
"""


def test_offline_mode_knows_branch_tag_and_commit(server: HubServer, tmp_path: Path) -> None:
    commit = push(tmp_path).revision
    for revision in ("main", "v1", commit):
        pull(revision=revision)
    server.requests.clear()
    env = {**os.environ, **environment(server, tmp_path / "home"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", OFFLINE, "main", "v1", commit]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True)
    assert done.stdout.split() == [commit] * 3, done.stderr
    done = subprocess.run([*command[:3], "v2"], check=False, env=env, capture_output=True, text=True)
    assert "cannot be reached" in done.stderr
    assert "HF_HUB_OFFLINE" in done.stderr
    assert not server.requests


def test_a_second_model_in_the_repository_stays_there(server: HubServer, tmp_path: Path) -> None:
    """Two model files: the one that config.json lists is taken, whatever lies beside it."""
    server.plant(REPO, {**bundle(CONTENT), "model_int8.tflite": b"other", "old/model.tflite": b"other"})
    folder, _ = pull()
    assert_whole(folder)
    assert [path.name for path in folder.rglob("*.tflite")] == ["model.tflite"]


def test_a_read_only_cache_serves(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(tmp_path)
    online = pull()

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "refs")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert pull(revision="v1") == online


def test_a_branch_moves_offline_only_when_its_new_commit_is_whole(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    old = pull()
    push(tmp_path, {**CONTENT, "report.json": b"{}", "model.tflite": b"\0new"})
    server.fault("/files/", 403)
    with pytest.raises(PermissionError):
        pull()
    assert pull(local_files_only=True) == old
    server.faults.clear()
    assert pull(local_files_only=True) == old
    new = pull()
    assert pull(local_files_only=True) == new != old


def test_many_at_once(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    outcomes: list[tuple[Path, str]] = []
    threads = [threading.Thread(target=lambda: outcomes.append(pull())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 8
    assert len(set(outcomes)) == 1
    assert_whole(outcomes[0][0])


# What is not to be trusted


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"other.txt": b""}, "alice/model is not a cxrlib bundle: it has no config.json"),
        ({"config.json": b"not json"}, "config.json is not a cxrlib config"),
        ({"config.json": b'{"architectures": ["BertModel"]}'}, "config.json is not a cxrlib config"),
        (
            {"config.json": b'{"files": {"gone.json": "00"}}'},
            "alice/model is incomplete: it lacks gone.json, which its config.json lists",
        ),
        ({"config.json": b'{"files": {"../../x": "00"}}'}, "unsafe name: '../../x'"),
        ({"config.json": b'{"files": {"/etc/passwd": "00"}}'}, "unsafe name: '/etc/passwd'"),
        ({"config.json": b'{"files": {"a\\\\b": "00"}}'}, "unsafe name"),
        (
            {"config.json": b'{"files": {"a.json": "00"}}', "a.json": b"x"},
            "a.json of alice/model is not the file that its config.json lists .SHA-256 2d71",
        ),
        (
            {"config.json": b" " * 2**10 + b"{}"},
            "alice/model: config.json would take 1,026 bytes, more than 1,000",
        ),
        (
            bundle({"a.bin": bytes(900), "b.bin": bytes(900)}),
            "alice/model: its files would take 1,800 bytes, more than 1,500",
        ),
    ],
)
def test_pull_refuses(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], message: str
) -> None:
    monkeypatch.setattr(hub, "MAX_CONFIG_BYTES", 1000)
    monkeypatch.setattr(hub, "MAX_BUNDLE_BYTES", 1500)
    server.plant(REPO, files)
    for _ in range(2):  # the second time, what passed is in the cache
        with pytest.raises(BundleError, match=message):
            pull()
    with pytest.raises((BundleError, FileNotFoundError)):
        pull(local_files_only=True)
    if "would take" in message:
        assert not server.asked("GET /files/"), "refused by size before the first byte"


def test_a_server_that_lies_about_the_size(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    monkeypatch.setattr(hub, "MAX_CONFIG_BYTES", 1000)
    server.plant(REPO, {"config.json": b" " * 2000})
    asked = HfApi.model_info

    def small(self: HfApi, *args: Any, **options: Any) -> Any:
        info = asked(self, *args, **options)
        for file in info.siblings or ():
            file.size = 1
        return info

    monkeypatch.setattr(HfApi, "model_info", small)
    read: list[int] = []
    with pytest.raises(BundleError, match=r"too long"):
        hub.pull(REPO, list_files=lambda data: read.append(len(data)) or refuse())
    assert read == [1001], "no more than that is read"


def refuse() -> dict[str, str]:
    raise BundleError("too long")


@pytest.mark.parametrize("name", ["config.json", "model.tflite", "report.json"])
def test_a_damaged_copy_in_the_cache_is_replaced(server: HubServer, tmp_path: Path, name: str) -> None:
    push(tmp_path)
    folder, _ = pull()
    (folder / name).resolve().write_bytes(b"")
    with pytest.raises(BundleError):
        pull(local_files_only=True)
    assert pull()[0] == folder
    assert_whole(folder)


def test_a_damaged_copy_without_a_network(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    folder, _ = pull()
    (folder / "report.json").resolve().write_bytes(b"")
    server.stop()
    with pytest.raises(BundleError, match=r"report\.json of alice/model is not the file"):
        pull()
    (folder / "report.json").unlink()
    with pytest.raises(ConnectionError, match="cannot be reached"):
        pull()
    with pytest.raises(FileNotFoundError, match="the cache holds no complete copy of alice/model: load it once"):
        pull(local_files_only=True)


def test_a_damaged_copy_that_cannot_be_replaced_now(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    folder, _ = pull()
    (folder / "report.json").resolve().write_bytes(b"")
    server.fault("HEAD /.*/resolve/", 503)
    with pytest.raises(ConnectionError, match="the Hub has a fault of its own"):
        pull()
    server.faults.clear()
    assert_whole(pull()[0])


def test_a_planted_link_in_the_cache_is_judged_by_what_it_leads_to(server: HubServer, tmp_path: Path) -> None:
    commit = push(tmp_path).revision
    folder, _ = pull()
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (folder / "report.json").unlink()
    (folder / "report.json").symlink_to(secret)
    for options in ({}, {"revision": commit}, {"local_files_only": True}):
        with pytest.raises(
            BundleError, match=r"report\.json of alice/model is not the file that its config\.json lists"
        ):
            pull(**options)
    assert secret.read_bytes() == b"secret"


def test_nothing_is_deserialised() -> None:
    source = (ROOT / "cxrlib" / "hub.py").read_text()
    assert not any(word in source for word in ("pickle", "keras", "joblib", "yaml", "eval(", "exec(", "importlib"))


# Faults of the network and of the server


def test_every_interrupted_push_leaves_the_old_or_the_new(server: HubServer, tmp_path: Path) -> None:
    new = {**CONTENT, "report.json": b"{}", "model.tflite": b"\0other" * 800, "figures/roc.png": b"\0png"}
    push(tmp_path)
    states, messages = set(), set()
    for step in range(100):
        folder = tmp_path / str(step)
        content = {**new, "report.json": b"%d" % step, "model.tflite": b"\0%d" % step * 2000}
        before = server.repos["model", REPO].branches["main"]
        server.faults.clear()
        server.fault(".", "hang-up" if step % 2 else "disconnect", skip=step)
        try:
            push(folder, content)
            break
        except ConnectionError as error:
            messages.add(str(error).split("(")[0])
        server.faults.clear()
        moved = server.repos["model", REPO].branches["main"] != before
        states.add(moved)
        shutil.rmtree(tmp_path / "home" / "hub", ignore_errors=True)
        pulled, commit = pull()
        assert commit == server.repos["model", REPO].branches["main"]
        if moved:
            assert_whole(pulled, content)
        again = push(folder, content)
        assert (
            server.repos["model", REPO].tags[str(again.tag)]
            == server.repos["model", REPO].branches["main"]
            == again.revision
        )
        assert_whole(pull()[0], content)
    assert messages == {f"{server.url} cannot be reached "}
    assert states == {False, True}, "interrupted before the commit, and between the commit and its tag"
    assert step > 10


@pytest.mark.parametrize("kind", ["disconnect", "truncate", "short", "corrupt", 500])
def test_every_interrupted_pull_leaves_nothing_that_loads(server: HubServer, tmp_path: Path, kind: int | str) -> None:
    push(tmp_path)
    server.requests.clear()
    pull()
    steps = len(server.requests)
    assert steps >= 12
    for step in range(steps):
        shutil.rmtree(tmp_path / "home" / "hub")
        server.fault(".", kind, skip=step)
        try:
            folder, _ = pull()
            assert_whole(folder)  # the fault fell on a request without a body
        except (ConnectionError, BundleError, json.JSONDecodeError, FileNotFoundError):
            with pytest.raises((BundleError, FileNotFoundError)):
                pull(local_files_only=True)
        server.faults.clear()
        assert_whole(pull()[0])


def test_a_break_in_a_body_is_resumed(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    server.fault("GET /files/", "truncate", times=3)
    assert_whole(pull()[0])


def test_a_body_that_ends_early_without_saying_so(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    server.fault("GET /files/", "short")
    with pytest.raises(
        ConnectionError,
        match=r"transfer of alice/model failed \(Consistency check failed: file should be of size 5125 .*\): try again",
    ):
        pull()


KILLED = """
import json, sys
from pathlib import Path
from cxrlib import hub
hub.{call}
"""


def run_until_paused(server: HubServer, code: str, home: Path, how: signal.Signals) -> int:
    """Start a process, wait until the server holds it in the middle of a transfer, and end it."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment(server, home), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        assert server.paused.wait(60)
        process.send_signal(how)
        return process.wait(60)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_pull(server: HubServer, tmp_path: Path, how: signal.Signals) -> None:
    push(tmp_path)
    server.fault("GET /files/", "pause")
    code = KILLED.format(call=f"pull({REPO!r}, list_files=lambda data: json.loads(data)['files'])")
    assert run_until_paused(server, code, tmp_path / "home", how) != 0
    with pytest.raises(FileNotFoundError, match="holds no complete copy of alice/model"):
        pull(local_files_only=True)
    server.faults.clear()
    assert_whole(pull()[0])
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_killed_push(server: HubServer, tmp_path: Path) -> None:
    first = push(tmp_path / "first")
    files = bundle({**CONTENT, "model.tflite": b"\0second"})
    paths = {name: str(write(tmp_path / "second", files) / name) for name in files}
    server.fault("PUT /upload/", "stall")
    call = f"push({REPO!r}, {{name: Path(path) for name, path in {paths!r}.items()}}, token='hf_alice')"
    code = KILLED.format(call=call)
    assert run_until_paused(server, code, tmp_path / "home", signal.SIGKILL) != 0
    assert server.repos["model", REPO].branches["main"] == first.revision
    assert_whole(pull()[0])


# Sentences


def test_no_such_repository(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match="no repository alice/model without a token: check the name, or, if it is private, log in with `hf",
    ):
        pull()
    with pytest.raises(
        FileNotFoundError,
        match="the Hub shows no repository alice/model to this token: check the name, or ask its owner for access",
    ):
        pull(token="hf_bob")


def test_private_without_and_with_a_token(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path, private=True)
    with pytest.raises(FileNotFoundError, match=r"if it is private, log in with `hf auth login` or give token="):
        pull()
    with pytest.raises(FileNotFoundError, match="ask its owner for access"):
        pull(token="hf_bob")
    assert_whole(pull(token="hf_alice")[0])


def test_gated_without_and_with_a_token(server: HubServer, tmp_path: Path) -> None:
    server.plant(REPO, bundle(CONTENT), gated=True)
    message = (
        f"alice/model is gated: accept its conditions at {server.url}/alice/model, then log in with `hf auth login`"
    )
    for token in (None, "hf_bob"):
        with pytest.raises(PermissionError, match=message):
            pull(token=token)
    server.add_user("hf_guest", "guest", admitted=True)
    assert_whole(pull(token="hf_guest")[0])


def test_a_repository_that_is_gone_is_not_served_from_the_cache(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    pull()
    server.repos.clear()
    with pytest.raises(FileNotFoundError, match="the Hub shows no repository alice/model"):
        pull()


def test_disabled(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    server.fault("GET /api/models", 403, headers={"X-Error-Message": "Access to this resource is disabled."})
    with pytest.raises(
        PermissionError, match=r"let this token read alice/model \(Access to this resource is disabled\.\)"
    ):
        pull()


def test_no_such_revision(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    for revision in ("v9", "0" * 40):
        with pytest.raises(
            FileNotFoundError,
            match=f"alice/model has no such branch, tag or commit: see {server.url}/alice/model/tree/main",
        ):
            pull(revision=revision)


def test_tokens(server: HubServer, tmp_path: Path) -> None:
    with pytest.raises(
        PermissionError, match="to write alice/model the Hub wants a token: log in with `hf auth login` or give token="
    ):
        push(tmp_path, token=None)
    with pytest.raises(
        PermissionError,
        match="the Hub does not accept the token, which may be mistyped or expired: log in with `hf auth login`",
    ) as info:
        push(tmp_path, token="hf_wrong")
    assert "hf_wrong" not in str(info.value)
    for token in ("hf_reader", "hf_bob"):
        with pytest.raises(
            PermissionError,
            match=r"does not let this token write alice/model \(You don't have the rights to write to alice/model\)",
        ):
            push(tmp_path, token=token)
    with pytest.raises(PermissionError, match="there is no stored token: log in with `hf auth login` or give token="):
        push(tmp_path, token=True)
    assert not server.repos
    with pytest.raises(PermissionError, match="the Hub does not accept the token"):
        pull(token="hf_wrong")


def test_the_stored_token_is_used(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    push(tmp_path, private=True, token=None)
    assert_whole(pull()[0])


def test_payment_for_a_space(server: HubServer, tmp_path: Path) -> None:
    write(tmp_path, {"README.md": b"---\nsdk: gradio\n---\n"})
    server.fault("POST /api/repos/create", 402)
    with pytest.raises(
        PermissionError, match=r"the Hub does not let this token write alice/demo \(a fault planted by the test\)"
    ):
        hub.publish_space(tmp_path, "alice/demo", model=REPO, revision="v1", token="hf_alice")


@pytest.mark.parametrize(
    ("headers", "when"),
    [
        ({"Retry-After": "120"}, "in 120 seconds"),
        ({"RateLimit": '"api";r=0;t=55'}, "in 55 seconds"),
        ({}, "in some minutes"),
        ({"Retry-After": "soon"}, "in some m"),
    ],
)
def test_rate_limit(server: HubServer, tmp_path: Path, headers: dict[str, str], when: str) -> None:
    push(tmp_path)
    server.fault("GET /api/models", 429, headers=headers)
    with pytest.raises(ConnectionError, match=f"the Hub's rate limit is reached: try again {when}"):
        pull()


def test_rate_limit_while_downloading_and_uploading(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    server.fault("/resolve/", 429)
    with pytest.raises(ConnectionError, match="the Hub's rate limit is reached"):
        pull()
    server.fault("PUT /upload/", 429)
    with pytest.raises(ConnectionError, match="the Hub's rate limit is reached"):
        push(tmp_path, {**CONTENT, "model.tflite": b"\0new"})


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_the_hub_fails(server: HubServer, tmp_path: Path, status: int) -> None:
    server.fault(".", status)
    for call in (pull, lambda: push(tmp_path)):
        with pytest.raises(
            ConnectionError, match=rf"the Hub has a fault of its own \(HTTP status {status}\): try again later"
        ):
            call()


def test_a_cached_model_needs_no_working_hub(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    online = pull()
    for kind in (500, 429, "disconnect"):
        server.faults.clear()
        server.fault(".", kind)
        assert pull() == online


def test_no_network(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.stop()
    message = rf"{server.url} cannot be reached \(.*refused.*\): check the network, the proxy and HF_HUB_OFFLINE"
    for call in (pull, lambda: push(tmp_path)):
        with pytest.raises(ConnectionError, match=message):
            call()
    with pytest.raises(
        FileNotFoundError,
        match=r"the cache holds no complete copy of alice/model: load it once with a network",
    ):
        pull(local_files_only=True)
    with pytest.raises(FileNotFoundError, match="holds no complete copy of alice/model at v1"):
        pull(local_files_only=True, revision="v1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="offline mode is enabled"):
        pull()


def test_a_silent_hub_is_given_up(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    server.fault(".", "stall")
    with pytest.raises(ConnectionError, match=r"cannot be reached \(timed out\)"):
        pull()


def test_something_that_is_not_a_hub(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    server.fault("/resolve", 404)
    with pytest.raises(
        OSError, match=r"the Hub refused to read alice/model \(HTTP status 404: a fault planted by the test\)"
    ):
        pull()


def test_a_network_that_wants_a_login(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path)
    online = pull()
    server.fault(".", "portal")
    assert pull() == online
    shutil.rmtree(tmp_path / "home" / "hub")
    for call in (pull, lambda: push(tmp_path)):
        with pytest.raises(
            ConnectionError,
            match=f"{server.url} does not answer as the Hub does: check the network, which may want a login",
        ):
            call()
    server.faults.clear()
    server.fault("/resolve/", "portal")
    with pytest.raises(
        ConnectionError, match=r"the transfer of alice/model failed \(.*missing the 'X-Repo-Commit' header"
    ):
        pull()


def test_disk_full(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(tmp_path)

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(
        OSError,
        match=r"the disk is full: alice/model could not be stored \(.*No space left on device\); free some space, or",
    ) as info:
        pull()
    assert info.value.errno == errno.ENOSPC
    monkeypatch.undo()


def test_a_disk_that_fills_up_in_the_middle(server: HubServer, tmp_path: Path) -> None:
    push(tmp_path, {**CONTENT, "model.tflite": b"\0" * 200_000})
    code = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    code += KILLED.format(call=f"pull({REPO!r}, list_files=lambda data: json.loads(data)['files'])")
    env = {**os.environ, **environment(server, tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], check=False, env=env, capture_output=True, text=True)
    assert "OSError: the disk is full: alice/model could not be stored ([Errno 27] File too large)" in done.stderr
    with pytest.raises(FileNotFoundError):
        pull(local_files_only=True)
    pull()


def test_a_cache_that_cannot_be_written(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(tmp_path)

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/cache/models--alice--model")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", refuse)
    with pytest.raises(
        PermissionError,
        match="/cache/models--alice--model cannot be written: choose another folder with cache_dir or HF_HOME",
    ):
        pull()


# The real command line


def hf(server: HubServer, home: Path, *arguments: str, token: str = "hf_alice") -> str:
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", *arguments]
    done = subprocess.run(
        command,
        check=False,
        env={**os.environ, **environment(server, home), "HF_TOKEN": token},
        capture_output=True,
        text=True,
        cwd=home,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_hf_command_uploads_what_pull_reads(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    folder = write(tmp_path / "bundle", bundle(CONTENT))
    hf(server, tmp_path / "home", "upload", REPO, str(folder), ".", "--commit-message", "By hand")
    hf(server, tmp_path / "home", "repos", "tag", "create", REPO, "v7")
    assert_whole(pull(revision="v7")[0])
    assert push(folder).tag == "v7", "nothing changed, so the version stays"


def test_the_hf_command_downloads_what_push_wrote(server: HubServer, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    push(tmp_path / "bundle", private=True)
    assert "alice" in hf(server, tmp_path / "home", "auth", "whoami")
    hf(server, tmp_path / "home", "download", REPO, "--revision", "v1", "--local-dir", str(tmp_path / "local"))
    assert_whole(tmp_path / "local")
    hf(server, tmp_path / "home", "download", REPO)
    server.requests.clear()
    assert_whole(pull(token="hf_alice")[0])
    assert len(server.requests) == 1, "one cache for all: what hf fetched is there"
