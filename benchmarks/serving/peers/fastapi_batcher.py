"""FastAPI with the micro-batcher that teams write by hand: a queue, a size, a wait, one model thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response
from model import load, settings

given = settings()
model = load()
waiting: asyncio.Queue[tuple[list[int], asyncio.Future[list[float]]]] = asyncio.Queue()


async def run_batches() -> None:
    """Close a batch when it is full or its first request has waited; run it off the loop."""
    loop = asyncio.get_running_loop()
    pool = ThreadPoolExecutor(1)
    while True:
        batch = [await waiting.get()]
        closes = loop.time() + given.wait_s
        while len(batch) < given.batch:
            left_s = closes - loop.time()
            if not waiting.empty():
                batch.append(waiting.get_nowait())
            elif left_s > 0:
                try:
                    batch.append(await asyncio.wait_for(waiting.get(), left_s))
                except TimeoutError:
                    break
            else:
                break
        for (_, answer), scores in zip(batch, await loop.run_in_executor(pool, model, [tokens for tokens, _ in batch]), strict=True):
            if not answer.done():
                answer.set_result(scores)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Run the batcher for as long as the server."""
    batcher = asyncio.create_task(run_batches())
    yield
    batcher.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/infer")
async def infer(request: Request) -> Response:
    """Queue one text and wait for its scores."""
    answer: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
    await waiting.put((msgspec.json.decode(await request.body())["tokens"], answer))
    return Response(msgspec.json.encode({"scores": await answer}), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning", access_log=False, timeout_keep_alive=120, backlog=4096)
