"""A shop. Run it with `sanic shop`."""

from sanic import HTTPResponse, Request, Sanic, text

from letterapp import Letter

app = Sanic("shop")
letter = Letter()  # the key is in LETTER_API_KEY


@app.get("/order/<number:int>")
async def complete_order(request: Request, number: int) -> HTTPResponse:
    letter.track("user_42", "Order Completed", {"number": number})
    return text("thank you")
