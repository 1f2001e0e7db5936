"""One chest X-ray model, pinned to one commit on the Hugging Face Hub, behind one HTTP address.

RADIOGRAPH_MODEL names it, as hf://user/repo@revision. The image is the body of the request; it is held in memory until
the answer is given, and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from cxrlib import Predictor
from cxrlib.hub import parse_address
from cxrlib.images.sources import ImageError

MAX_BYTES = 64 * 2**20


@asynccontextmanager
async def load(app: FastAPI) -> AsyncIterator[None]:
    """Load the model before the first request: a wrong address or a broken bundle stops the start."""
    repo_id, revision = parse_address(os.environ["RADIOGRAPH_MODEL"])
    app.state.model = repo_id
    app.state.predictor = Predictor.from_hub(repo_id, revision=revision)
    yield


app = FastAPI(title="radiograph-service", lifespan=load)


@app.get("/model")
def model() -> dict[str, str]:
    """Say which model answers, to the commit."""
    return {"model": app.state.model, "revision": app.state.predictor.revision}


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    """Answer for one image: DICOM, JPEG, PNG or TIFF, as the body of the request."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise HTTPException(413, f"an image may have at most {MAX_BYTES:,} bytes")
    try:
        prediction = await run_in_threadpool(app.state.predictor, bytes(data))
    except ImageError as error:
        raise HTTPException(422, str(error)) from error
    answer: dict[str, Any] = prediction.to_dict()
    return answer


def main() -> None:
    import uvicorn

    uvicorn.run(app, host=os.environ.get("HOST", "127.0.0.1"), port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
