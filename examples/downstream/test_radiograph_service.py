"""The service over HTTP, with the model that comes with cxrlib in the place of one from the Hub."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
import radiograph_service
from fastapi.testclient import TestClient
from PIL import Image

from cxrlib import Predictor
from cxrlib.images import phantom


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    def from_hub(repo_id: str, *, revision: str | None = None) -> Predictor:
        predictor = Predictor()
        predictor.revision = revision
        return predictor

    monkeypatch.setattr(Predictor, "from_hub", from_hub)
    monkeypatch.setenv("RADIOGRAPH_MODEL", "hf://user/repo@v1")
    with TestClient(radiograph_service.app) as client:
        yield client


def image(**options: object) -> bytes:
    data = io.BytesIO()
    Image.fromarray(phantom.draw(seed=1, **options)).save(data, "PNG")
    return data.getvalue()


def test_says_which_model_answers(client: TestClient) -> None:
    assert client.get("/model").json() == {"model": "user/repo", "revision": "v1"}


def test_answers_as_the_library_does(client: TestClient) -> None:
    answer = client.post("/predict", content=image())
    assert answer.status_code == 200
    assert answer.json() == Predictor()(image()).to_dict()


def test_refuses_what_is_not_an_image(client: TestClient) -> None:
    answer = client.post("/predict", content=b"%PDF-1.7")
    assert answer.status_code == 422
    assert "bytes" in answer.json()["detail"]


def test_refuses_what_is_too_large(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radiograph_service, "MAX_BYTES", 1000)
    answer = client.post("/predict", content=image())
    assert (answer.status_code, answer.json()["detail"]) == (413, "an image may have at most 1,000 bytes")


def test_a_wrong_address_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADIOGRAPH_MODEL", "user/repo")
    with pytest.raises(ValueError, match="hf://user/repo"), TestClient(radiograph_service.app):
        pass
