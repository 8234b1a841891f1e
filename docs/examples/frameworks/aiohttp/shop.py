"""A shop. Run it with `python -m aiohttp.web -H 127.0.0.1 -P 8000 shop:create_app`, or by gunicorn:
`gunicorn -k aiohttp.GunicornWebWorker "shop:create_app()"`.
"""

from typing import Sequence

from aiohttp import web

from letterapp import Letter

letter = Letter()  # the key is in LETTER_API_KEY


async def complete_order(request: web.Request) -> web.Response:
    letter.track("user_42", "Order Completed", {"number": int(request.match_info["number"])})
    return web.Response(text="thank you")


def create_app(argv: Sequence[str] = ()) -> web.Application:
    app = web.Application()
    app.add_routes([web.get("/order/{number}", complete_order)])
    return app
