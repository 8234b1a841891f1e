"""A shop with several processes. Run it with `python shop.py`."""

import asyncio
import os
import signal

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.process import fork_processes
from tornado.web import Application, RequestHandler

from letterapp import Letter

letter = Letter()  # the key is in LETTER_API_KEY


class CompleteOrder(RequestHandler):
    def get(self, number: str) -> None:
        letter.track("user_42", "Order Completed", {"number": int(number)})
        self.write("thank you")


async def serve(sockets: list) -> None:
    HTTPServer(Application([(r"/order/(\d+)", CompleteOrder)])).add_sockets(sockets)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # by default SIGTERM runs no exit callback, and nothing is sent
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


if __name__ == "__main__":
    sockets = bind_sockets(int(os.environ.get("PORT", "8000")), "127.0.0.1")
    fork_processes(2)
    asyncio.run(serve(sockets))
