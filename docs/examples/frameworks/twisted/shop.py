"""A shop. Run it with `twistd -ny shop.py`."""

import os

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import Application
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from letterapp import Letter

letter = Letter()  # the key is in LETTER_API_KEY


class CompleteOrder(Resource):
    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        letter.track("user_42", "Order Completed", {"number": int(request.postpath[0])})
        return b"thank you"


root = Resource()
root.putChild(b"order", CompleteOrder())
application = Application("shop")
endpoint = TCP4ServerEndpoint(reactor, int(os.environ.get("PORT", "8000")), interface="127.0.0.1")
StreamServerEndpointService(endpoint, Site(root)).setServiceParent(application)
