"""What the service is measured against, for the same answers: ``python serve_peers.py bare|litserve PORT FOLDER``.

``bare`` is an ASGI handler under uvicorn that parses the JSON of a vector, asks the same Faiss index, and writes
the same items and scores; ``litserve`` does the same in LitServe. No towers, no ids of queries, no filters.
"""

import json
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import orjson

try:
    import litserve as ls
except ModuleNotFoundError:
    ls = None

K = 100


class Answers:
    """The job: a vector in, K items with scores out."""

    index: Any
    """Of Faiss, whose ``nprobe`` its types do not know."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "peer.json").read_text())
        faiss.omp_set_num_threads(1)
        self.index = faiss.read_index(about["index"], faiss.IO_FLAG_MMAP_IFC)
        self.index.nprobe = about["nprobe"]
        self.ids = json.loads((folder / "ids.json").read_text())

    def __call__(self, vector: list[float]) -> dict[str, Any]:
        """The body of an answer."""
        score_1k, row_1k = self.index.search(np.array([vector], np.float32), K)
        ids = self.ids
        pairs = zip(row_1k[0].tolist(), score_1k[0].tolist(), strict=True)
        return {"items": [{"item": ids[row], "score": score} for row, score in pairs]}


def bare(port: int, folder: Path) -> None:
    """As little as there can be around it."""
    import uvicorn

    answers = Answers(folder)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        message = await receive()
        body = orjson.dumps(answers(orjson.loads(message["body"])["vector"]))
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(
        app, port=port, http="httptools", loop="uvloop", ws="none", lifespan="off", access_log=False, log_level="error"
    )


class Api(ls.LitAPI if ls else object):  # type: ignore[misc] # at the top, as LitServe sends it to a process
    """The job for LitServe."""

    folder = Path()

    def setup(self, device: str) -> None:
        self.answers = Answers(self.folder)

    def decode_request(self, request: dict) -> list[float]:  # type: ignore[type-arg] # LitServe reads it
        vector: list[float] = request["vector"]
        return vector

    def predict(self, vector: list[float]) -> dict[str, Any]:
        return self.answers(vector)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


def litserve(port: int, folder: Path) -> None:
    """LitServe with its defaults, one worker."""
    api = Api(api_path="/recommend")
    api.folder = folder
    ls.LitServer(api, accelerator="cpu").run(port=port, log_level="error", generate_client_file=False)


if __name__ == "__main__":
    {"bare": bare, "litserve": litserve}[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]))
