"""The page on the device, as files: what is written, served and published. What it does is in test_device.py."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.request
from pathlib import Path

import pytest
import tiny_network

from cxrlib import BundleError, cli, web


@pytest.fixture(scope="module")
def bundle_folder(gated: Path) -> Path:
    return gated


@pytest.fixture(scope="module")
def page(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return web.write_page(bundle_folder, tmp_path_factory.mktemp("site") / "page")


def test_the_service_worker_lists_every_file_with_its_hash(page: Path) -> None:
    script = (page / "sw.js").read_text("utf-8")
    listed = json.loads(re.findall(r"const FILES = (\{.*?\});", script, re.DOTALL)[0])
    found = {
        path.relative_to(
            page
        ).as_posix(): f"sha256-{base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()}"
        for path in page.rglob("*")
        if path.is_file() and path.name not in ("sw.js", "README.md", "LICENSES.txt", "SHA256SUMS")
    }
    assert listed == found
    assert "{{" not in script + (page / "index.html").read_text("utf-8")


def test_every_file_that_the_page_names_is_there_and_none_is_elsewhere(page: Path) -> None:
    for path in page.glob("*.*"):
        if path.suffix not in (".html", ".js", ".css", ".webmanifest"):
            continue
        text = path.read_text("utf-8")
        assert re.findall(r"(?:https?:)?//[a-z0-9]|@import|url\(", text.replace("// ", "")) == [], path.name
        for name in re.findall(r'(?:\} from |import\(|href=|src=|"src": )"([\w./-]+)"', text):
            assert (page / name).is_file(), f"{path.name} names {name}"


def test_the_page_allows_only_itself(page: Path) -> None:
    text = (page / "index.html").read_text("utf-8")
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules.pop("default-src") == "'none'"
    allowed = {"'self'", "'none'", "'wasm-unsafe-eval'", "blob:", "data:"}
    assert {source for sources in rules.values() for source in sources.split()} <= allowed
    assert f'const POLICY = "{policy}";' in (page / "sw.js").read_text("utf-8")
    assert not re.search(r"<script>|style=|onclick=", text), "no inline code"


def test_where_a_page_may_be_written(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another folder, nothing was written"):
        web.write_page(bundle_folder, tmp_path / "page")
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_a_network_of_any_batch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_network.network()
    image = network.subgraphs[0].tensors[network.subgraphs[0].inputs[0]]
    image.shapeSignature = [-1, *image.shape[1:]]
    content = tiny_network.files(extra={"model.tflite": tiny_network.pack(network)})
    with pytest.raises(BundleError, match="train it again with this version"):
        web.write_page(tiny_network.write(tmp_path / "model", content), tmp_path / "page")


def test_the_command_line_writes_and_serves_a_page(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(bundle_folder), "--format", "web", "--output", str(tmp_path / "page")]
    assert cli.main(command) == 0
    assert "a page for any static host" in capsys.readouterr().out
    assert cli.main(command) == 1
    assert "choose another folder, nothing was written" in capsys.readouterr().err
    with web.serving(bundle_folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://localhost:{server.server_port}"
        for path, kind in {"/": "text/html", "/app.js": "text/javascript", "/manifest.webmanifest": "manifest"}.items():
            with urllib.request.urlopen(address + path, timeout=30) as answer:
                assert kind in answer.headers["Content-Type"]
        assert cli.main(["demo", "--device", "--port", str(server.server_port)]) == 1
        assert "is taken: choose another with --port" in capsys.readouterr().err
        server.shutdown()
    assert cli.main(["demo", "--device", "--port", "99999"]) == 2
    assert "must be a number from 1 to 65535, not '99999'" in capsys.readouterr().err
    assert cli.main(["demo", "--device", "--examples", str(tmp_path)]) == 1
    assert "the page on the device has drawings" in capsys.readouterr().err


def test_the_vendored_files_are_those_of_the_build() -> None:
    vendor = web.space_folder() / "device" / "vendor"
    listed = dict(reversed(line.split()) for line in (vendor / "SHA256SUMS").read_text().splitlines())
    found = {f"./{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in vendor.glob("*.*")}
    assert found == listed
    packages = json.loads((Path(__file__).parents[1] / "tools" / "device" / "package.json").read_text())["dependencies"]
    licences = (vendor / "LICENSES.txt").read_text()
    assert [name for name, version in packages.items() if f"=== {name} {version}," not in licences] == []


def test_what_is_published(page: Path) -> None:
    card = (page / "README.md").read_text("utf-8")
    assert "sdk: static" in card
    assert "not a medical device" in card
    assert {"index.html", "sw.js", "model", "vendor"} <= {path.name for path in page.iterdir()}
