"""Malice planted on the Hub: each kind is refused with a reason, and none of its code runs."""

from __future__ import annotations

import base64
import io
import json
import marshal
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_network
from hub_server import HubServer, client_of, environment, serving
from huggingface_hub import ModelCard

from cxrlib import BundleError, Predictor
from cxrlib.images import phantom

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # huggingface_hub's own, while it uploads
ROOT = Path(__file__).parents[1]
REPO = "mallory/model"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with serving() as running, client_of(running, tmp_path / "home"):
        running.add_user("hf_mallory", "mallory")
        yield running


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that every planted payload tries to create."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "planted code ran"


# What an attacker would plant. Each takes the file that its code is to create.


def keras_archive(config: dict[str, Any]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.8.0", "date_saved": "2025-01-01@00:00:00"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", b"")
    return data.getvalue()


def _model(*layers: dict[str, Any]) -> dict[str, Any]:
    first = {
        "module": "keras.layers",
        "class_name": "InputLayer",
        "config": {"batch_shape": [None, 32, 32, 1], "dtype": "float32", "name": "image"},
        "registered_name": None,
        "name": "image",
        "inbound_nodes": [],
    }
    config = {
        "name": "model",
        "trainable": True,
        "layers": [first, *layers],
        "input_layers": [["image", 0, 0]],
        "output_layers": [["image", 0, 0]],
    }
    return {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": config,
        "registered_name": "Functional",
    }


def _call(module: str, function: str, *arguments: Any) -> dict[str, Any]:
    node = {"args": list(arguments), "kwargs": {}}
    return {
        "module": module,
        "class_name": "function",
        "config": function,
        "registered_name": "function",
        "name": function,
        "inbound_nodes": [node],
    }


def _lambda(canary: Path) -> dict[str, Any]:
    code = compile(f"lambda x: (open({str(canary)!r}, 'w').close(), x)[1]", "<planted>", "eval").co_consts[0]
    value = {
        "class_name": "__lambda__",
        "config": {"code": base64.b64encode(marshal.dumps(code)).decode(), "defaults": None, "closure": None},
    }
    tensor = {"shape": [None, 32, 32, 1], "dtype": "float32", "keras_history": ["image", 0, 0]}
    nodes = [{"args": [{"class_name": "__keras_tensor__", "config": tensor}], "kwargs": {}}]
    config = {"name": "lambda", "trainable": True, "dtype": "float32", "function": value, "arguments": {}}
    return {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": config,
        "registered_name": None,
        "name": "lambda",
        "inbound_nodes": nodes,
    }


def lambda_keras(canary: Path) -> bytes:
    return keras_archive(_model(_lambda(canary)))


def cve_2025_1550(canary: Path) -> bytes:
    return keras_archive(_model(_call("builtins", "open", str(canary), "w")))


def cve_2025_8747(canary: Path) -> bytes:
    return keras_archive(_model(_call("keras.utils", "get_file", str(canary), canary.parent.as_uri())))


def cve_2025_9906(canary: Path) -> bytes:
    return keras_archive(_model(_call("keras.config", "enable_unsafe_deserialization"), _lambda(canary)))


def cve_2025_9905(canary: Path) -> bytes:
    h5py = pytest.importorskip("h5py")
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        file.attrs["keras_version"], file.attrs["backend"] = "3.8.0", "tensorflow"
        file.attrs["model_config"] = json.dumps(_model(_lambda(canary)))
    return data.getvalue()


class _Planted:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.canary), "w")


def pickled(canary: Path) -> bytes:
    return pickle.dumps(_Planted(canary))


def garbage(canary: Path) -> bytes:
    return bytes(range(256)) * 40


def garbage_flatbuffer(canary: Path) -> bytes:
    return b"\x20\0\0\0TFL3" + bytes(range(256)) * 40


def truncated(canary: Path) -> bytes:
    return tiny_network.pack(tiny_network.network())[:3000]


PLANTED = [
    lambda_keras,
    cve_2025_1550,
    cve_2025_8747,
    cve_2025_9906,
    cve_2025_9905,
    pickled,
    garbage,
    garbage_flatbuffer,
    truncated,
]


def test_the_planted_code_is_live(tmp_path: Path) -> None:
    """What would happen without care: otherwise the other tests would prove nothing."""
    pickle.loads(pickled(tmp_path / "pickle")).close()
    assert (tmp_path / "pickle").exists()


@pytest.mark.slow
def test_the_planted_lambda_is_live(tmp_path: Path) -> None:
    pytest.importorskip("keras")
    for make, name in ((lambda_keras, "a.keras"), (cve_2025_9905, "a.h5")):
        (tmp_path / name).write_bytes(make(tmp_path / f"{name}.canary"))
    code = """
import sys, keras
for path in sys.argv[1:]:
    try:
        keras.models.load_model(path, safe_mode=False)
    except Exception as error:
        sys.stderr.write(repr(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.keras"), str(tmp_path / "a.h5")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (tmp_path / "a.keras.canary").exists(), done.stderr[-2000:]
    assert (tmp_path / "a.h5.canary").exists(), done.stderr[-2000:]


# In the place of the network, with a hash that is right


@pytest.mark.parametrize("make", PLANTED)
def test_planted_as_the_network(server: HubServer, canary: Path, make: Callable[[Path], bytes]) -> None:
    server.plant(REPO, tiny_network.files(extra={"model.tflite": make(canary)}))
    with pytest.raises(
        BundleError,
        match=r"model.*: it is (a damaged LiteRT model|not a |damaged or not a network of cxrlib)",
    ):
        Predictor.from_hub(REPO)


# Beside a sound network


@pytest.mark.parametrize("make", PLANTED)
@pytest.mark.parametrize("name", ["model.keras", "model.h5"])
def test_planted_as_a_keras_file_beside_it(
    server: HubServer, canary: Path, make: Callable[[Path], bytes], name: str
) -> None:
    """Listed with the right hash: it is fetched and hashed like the rest, and never opened."""
    server.plant(REPO, tiny_network.files(extra={name: make(canary)}))
    assert Predictor.from_hub(REPO)(phantom.draw(seed=1)).label in ("NORMAL", "PNEUMONIA")


@pytest.mark.parametrize("make", PLANTED)
def test_planted_unlisted(server: HubServer, canary: Path, make: Callable[[Path], bytes]) -> None:
    planted = {
        name: make(canary) for name in ("model.keras", "model.h5", "weights.pkl", "head.joblib", "sitecustomize.py")
    }
    server.plant(REPO, {**planted, **tiny_network.files()})
    folder = Predictor.from_hub(REPO).folder
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.tflite", "README.md"}
    assert not server.asked("keras|h5|pkl|joblib|sitecustomize")


@pytest.mark.parametrize("name", ["weights.pkl", "head.joblib", "app.py", "figures/run.sh", "model.tflite.exe"])
def test_planted_under_a_name_that_no_bundle_has(server: HubServer, canary: Path, name: str) -> None:
    server.plant(REPO, tiny_network.files(extra={name: pickled(canary)}))
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        Predictor.from_hub(REPO)
    assert not server.asked(name)


@pytest.mark.parametrize("report", [b"", b"{}", b"\x80\x04.", b"[" * 100_000, b'{"auroc": "high"}'])
def test_planted_as_report(server: HubServer, report: bytes) -> None:
    server.plant(REPO, tiny_network.files(extra={"report.json": report}))
    with pytest.raises(BundleError, match=r"report\.json cannot be read"):
        Predictor.from_hub(REPO)


def _cycle(model: Any) -> None:
    model.subgraphs[0].operators.reverse()


def _nowhere(model: Any) -> None:
    model.subgraphs[0].outputs = [-1, 2**30, 3]


def _no_weights(model: Any) -> None:
    model.subgraphs[0].operators[0].inputs = [0, -1, -1]


def _unknown_operation(model: Any) -> None:
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = 32
    model.operatorCodes[0].customCode = "FlexPyFunc"


def _fails_when_run(model: Any) -> None:
    model.subgraphs[0].tensors[5].type = model.subgraphs[0].tensors[4].type = 6  # softmax of truth values


def refused_in_a_fresh_process(models: list[str], env: dict[str, str] | None = None) -> list[str]:
    """What was raised while a process of limited memory and time loaded models; a crash ends the list early."""
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from cxrlib import Predictor
for model in sys.argv[1:]:
    try:
        Predictor(model)
    except BaseException as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\\n")
    else:
        sys.stdout.write("loaded\\n")
    sys.stdout.flush()
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    with subprocess.Popen(
        [sys.executable, "-c", code, *models], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            return process.communicate(timeout=60)[0].splitlines()
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[0].splitlines()


def test_networks_made_to_break_the_runtime(server: HubServer, tmp_path: Path) -> None:
    damages = (_cycle, _nowhere, _no_weights, _unknown_operation, _fails_when_run)
    for damage in damages:
        model = tiny_network.network()
        damage(model)
        server.plant(
            f"mallory/m{damage.__name__}", tiny_network.files(extra={"model.tflite": tiny_network.pack(model)})
        )
    refused = refused_in_a_fresh_process(
        [f"hf://mallory/m{damage.__name__}" for damage in damages], environment(server, tmp_path / "home")
    )
    assert [line.split(":")[0] for line in refused] == ["BundleError"] * len(damages), refused


# Fine-tuning takes numbers from a Keras file, and nothing else


@pytest.mark.slow
@pytest.mark.parametrize("make", PLANTED)
def test_planted_as_what_to_fine_tune_from(tmp_path: Path, canary: Path, make: Callable[[Path], bytes]) -> None:
    keras = pytest.importorskip("keras")
    from cxrlib import bundle

    folder = tiny_network.write(tmp_path / "bundle", tiny_network.files(extra={"model.keras": make(canary)}))
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="probability")])
    with pytest.raises(BundleError, match=r"model\.keras|another architecture"):
        bundle.load_weights(network, folder)


# In the configuration


def _config(**changes: Any) -> dict[str, bytes]:
    return tiny_network.files(**changes)


def _listing(name: str, digest: str = "0" * 64) -> dict[str, bytes]:
    content = tiny_network.files()
    config = json.loads(content["config.json"])
    config["files"][name] = digest
    return {**content, "config.json": json.dumps(config).encode()}


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "/etc/passwd",
        "..",
        "figures/../../x",
        "C:\\x",
        "figures\\x",
        ".bashrc",
        "figures/.x",
        "a/b/c",
        "",
        "a\0b",
        "a\nb",
        "~/x",
        "x" * 201,
    ],
)
def test_paths_that_lead_elsewhere(server: HubServer, name: str) -> None:
    server.plant(REPO, _listing(name))
    with pytest.raises(BundleError, match="the bundle lists a file with an unsafe name: "):
        Predictor.from_hub(REPO)
    assert not server.asked("tflite")


def test_a_wrong_hash(server: HubServer) -> None:
    server.plant(REPO, {**tiny_network.files(), "README.md": b"altered"})
    with pytest.raises(
        BundleError,
        match=r"README\.md of mallory/model is not .*config\.json lists \(SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}",
    ):
        Predictor.from_hub(REPO)


@pytest.mark.parametrize("digest", ["", "0" * 63, "Z" * 64, "0" * 64 + "\n", "md5:0"])
def test_no_hash(server: HubServer, digest: str) -> None:
    server.plant(REPO, _listing("README.md", digest))
    with pytest.raises(BundleError, match="SHA-256"):
        Predictor.from_hub(REPO)


@pytest.mark.parametrize("schema", [1, 99, 0, -1])
def test_another_schema(server: HubServer, schema: int) -> None:
    server.plant(REPO, _config(schema=schema, something_new={}))
    with pytest.raises(BundleError, match=rf"schema {schema}, this version reads schema 2: (install|it was made)"):
        Predictor.from_hub(REPO)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (b"", "is not the config of a cxrlib bundle: "),
        (b"\xff\xfe", "is not the config of a cxrlib bundle: "),
        (b"[" * 100_000, "is not the config of a cxrlib bundle: "),
        (b'{"labels":' * 50_000, "is not the config of a cxrlib bundle: "),
        (b"null", "must be an object with named fields"),
        (b'{"model_type": "bert", "architectures": ["BertModel"]}', "has unknown fields: architectures, model_type"),
        (b"1" * 10_000, "is not the config of a cxrlib bundle: "),
        (b" " * (17 * 2**20), r"config\.json would take 17,825,792 bytes, more than 8,388,608"),
    ],
)
def test_another_config(server: HubServer, config: bytes, reason: str) -> None:
    server.plant(REPO, {**tiny_network.files(), "config.json": config})
    with pytest.raises(BundleError, match=reason):
        Predictor.from_hub(REPO)


def test_a_pickle_as_config(server: HubServer, canary: Path) -> None:
    server.plant(REPO, {**tiny_network.files(), "config.json": pickled(canary)})
    with pytest.raises(BundleError, match="is not the config of a cxrlib bundle"):
        Predictor.from_hub(REPO)


@pytest.mark.parametrize(
    "changes",
    [
        {"probe": [0.9, 0.1]},
        {"probe": [float("nan")] * 2},
        {"image_size": 64},
        {"labels": ["A", "B", "C"], "probe": [0.2, 0.3, 0.5], "operating_points": {}, "default_point": None},
    ],
)
def test_a_network_that_is_not_the_one_described(server: HubServer, changes: dict[str, Any]) -> None:
    server.plant(REPO, _config(**changes))
    with pytest.raises(BundleError, match=r"fails its golden probe|does not fit config"):
        Predictor.from_hub(REPO)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0, 1e9, "1", True, None])
def test_numbers_that_are_none(server: HubServer, value: Any) -> None:
    server.plant(REPO, _config(temperature=value))
    with pytest.raises(BundleError, match="temperature"):
        Predictor.from_hub(REPO)


# Links and broken downloads


def test_git_links_in_the_repository(server: HubServer) -> None:
    """The Hub serves a symbolic link of a git repository as the text of its target."""
    server.plant(REPO, {**tiny_network.files(), "README.md": b"../../../../etc/passwd"})
    with pytest.raises(BundleError, match=r"README\.md of mallory/model is not the file"):
        Predictor.from_hub(REPO)


def test_links_in_a_folder(tmp_path: Path) -> None:
    folder = tiny_network.write(tmp_path / "bundle", tiny_network.files())
    for name in ("README.md", "model.tflite"):
        kept = (folder / name).read_bytes()
        for target in ("/etc/passwd", str(tmp_path), "loop"):
            (folder / name).unlink()
            (folder / name).symlink_to(folder / name if target == "loop" else target)
            with pytest.raises(BundleError, match=name.replace(".", r"\.")):
                Predictor(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(kept)
    assert Predictor(folder).labels == ("NORMAL", "PNEUMONIA")


def test_files_without_an_end(tmp_path: Path) -> None:
    folders = []
    for name in ("config.json", "README.md", "model.tflite"):
        for kind in ("endless", "pipe"):
            folder = tiny_network.write(tmp_path / f"{kind} {name}", tiny_network.files())
            (folder / name).unlink()
            if kind == "endless":
                (folder / name).symlink_to("/dev/zero")
            else:
                os.mkfifo(folder / name)
            folders.append(str(folder))
    refused = refused_in_a_fresh_process(folders)
    assert [line.split(":")[0] for line in refused] == ["BundleError"] * len(folders), refused


def test_links_that_the_cache_makes_are_followed(server: HubServer) -> None:
    server.plant(REPO, tiny_network.files())
    folder = Predictor.from_hub(REPO).folder
    assert (folder / "model.tflite").is_symlink()
    assert Predictor(folder).labels == ("NORMAL", "PNEUMONIA")


@pytest.mark.parametrize("kind", ["truncate", "short"])
def test_a_truncated_download(server: HubServer, kind: str) -> None:
    server.plant(REPO, tiny_network.files())
    server.fault("GET /files/", kind)
    with pytest.raises(ConnectionError, match=r"cannot be reached|the transfer of mallory/model failed"):
        Predictor.from_hub(REPO)
    with pytest.raises(FileNotFoundError, match="holds no complete copy"):
        Predictor.from_hub(REPO, local_files_only=True)


# The whole way


FRESH = """
import json, sys
import numpy as np
from cxrlib import Predictor
from cxrlib.images import phantom
predictor = Predictor.from_hub(sys.argv[1]) if len(sys.argv) < 3 else Predictor(f"hf://{sys.argv[1]}@{sys.argv[2]}")
answers = [predictor(phantom.draw(seed=seed, opacity=bool(seed % 2))).probabilities for seed in range(6)]
heavy = sorted({"tensorflow", "keras", "torch", "jax", "sklearn", "matplotlib", "pandas"} & set(sys.modules))
answers = [{label: p.hex() for label, p in answer.items()} for answer in answers]
print(json.dumps({"answers": answers, "revision": predictor.revision, "heavy": heavy}))
"""


def test_push_and_a_fresh_process_answers_the_same_to_the_last_bit(server: HubServer, tmp_path: Path) -> None:
    folder = tiny_network.write(tmp_path / "bundle", tiny_network.files(extra={"figures/roc.png": b"\x89PNG\0"}))
    (folder / "notes.txt").write_text("not for the Hub")
    here = Predictor(folder)
    published = here.push_to_hub(REPO, private=True, token="hf_mallory")
    assert set(server.files(REPO)) == {".gitattributes", "README.md", "config.json", "figures/roc.png", "model.tflite"}
    card = server.files(REPO)["README.md"].decode()
    assert f'Predictor.from_hub("{REPO}")' in card, "the card that is published says how to load it"
    assert REPO not in (folder / "README.md").read_text(), "the folder stays as it is"
    assert ModelCard(card).data.library_name == "cxrlib"
    expected = [
        {label: p.hex() for label, p in here(phantom.draw(seed=seed, opacity=bool(seed % 2))).probabilities.items()}
        for seed in range(6)
    ]
    assert len({answer["PNEUMONIA"] for answer in expected}) == 6
    for arguments in ([REPO], [REPO, published.revision]):
        env = {
            **os.environ,
            **environment(server, tmp_path / f"home {len(arguments)}"),
            "PYTHONPATH": str(ROOT),
            "HF_TOKEN": "hf_mallory",
        }
        done = subprocess.run(
            [sys.executable, "-c", FRESH, *arguments], env=env, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"answers": expected, "revision": published.revision, "heavy": []}
    again = Predictor.from_hub(REPO, token="hf_mallory").push_to_hub(REPO, token="hf_mallory")
    assert again == published, "what was pulled is what was pushed"


@pytest.mark.skipif(not (ROOT / "space" / "README.md").is_file(), reason="this checkout has no demo")
def test_the_command_line_publishes_model_and_demo(server: HubServer, tmp_path: Path) -> None:
    folder = tiny_network.write(tmp_path / "bundle", tiny_network.files())
    env = {**os.environ, **environment(server, tmp_path / "home"), "PYTHONPATH": str(ROOT), "HF_TOKEN": "hf_mallory"}
    command = [sys.executable, "-m", "cxrlib", "publish", str(folder), REPO, "--space", "mallory/demo"]
    done = subprocess.run(command, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    commit = server.repos["model", REPO].tags["v1"]
    demo = server.files("mallory/demo", kind="space")
    assert demo["model.txt"].decode() == f"hf://{REPO}@{commit}\n"
    assert {"app.py", "README.md", "requirements.txt"} <= set(demo)
    assert f"- {REPO}\n" in demo["README.md"].decode()
    assert commit in done.stdout
    assert "mallory/demo" in done.stdout
