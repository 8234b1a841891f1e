"""A shop. Run it with `uvicorn shop:app`."""

from contextlib import asynccontextmanager
from typing import AsyncIterator

from fastapi import FastAPI

from letterapp import Letter

letter = Letter()  # the key is in LETTER_API_KEY


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await letter.aflush()  # waits until all is sent


app = FastAPI(lifespan=lifespan)


@app.get("/order/{number}")
async def complete_order(number: int) -> str:
    letter.track("user_42", "Order Completed", {"number": number})
    return "thank you"
