"""FastAPI without batching: what a tutorial shows, on uvloop, httptools and orjson."""

from __future__ import annotations

import os

import uvicorn
from fastapi import FastAPI
from model import load, settings
from pydantic import BaseModel

app = FastAPI()
model = load()


class Query(BaseModel):
    """One text."""

    tokens: list[int]


def infer(query: Query) -> dict[str, list[float]]:
    """Score one text in a thread of the server's pool."""
    return {"scores": model([query.tokens])[0]}


async def infer_on_loop(query: Query) -> dict[str, list[float]]:
    """Score one text on the event loop itself."""
    return infer(query)


app.post("/infer")(infer if os.environ["BENCH_MODE"] == "thread" else infer_on_loop)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=settings().port, log_level="warning", access_log=False, timeout_keep_alive=120, backlog=4096)
