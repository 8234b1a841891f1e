"""The FastAPI application. Its handlers are plain functions, which FastAPI runs on threads."""

from __future__ import annotations

import os
import socket
from contextlib import asynccontextmanager
from typing import AsyncIterator

from fastapi import FastAPI, Request

from programs.web_clients import ends, gate, late, note, prompt, ready


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    ready()
    if ends == "lifespan":
        async with late, prompt:
            yield
    else:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
def root(request: Request) -> int:
    note("request", int(request.url.query))
    return os.getpid()


@app.get("/gate")
def wait(request: Request) -> int:
    note("request", int(request.url.query))
    with socket.create_connection(gate()) as waiting:
        waiting.recv(1)
    note("after the gate", int(request.url.query))
    return os.getpid()
