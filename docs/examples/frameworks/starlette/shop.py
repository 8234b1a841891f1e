"""A shop. Run it with `uvicorn shop:app`."""

from contextlib import asynccontextmanager
from typing import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from letterapp import Letter

letter = Letter()  # the key is in LETTER_API_KEY


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    yield
    await letter.aflush()  # waits until all is sent


async def complete_order(request: Request) -> PlainTextResponse:
    letter.track("user_42", "Order Completed", {"number": request.path_params["number"]})
    return PlainTextResponse("thank you")


app = Starlette(routes=[Route("/order/{number:int}", complete_order)], lifespan=lifespan)
