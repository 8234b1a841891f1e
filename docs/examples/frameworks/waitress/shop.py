"""A shop. Run it with `python serve.py`, or with `waitress-serve shop:app`."""

import signal

from flask import Flask

from letterapp import Letter

app = Flask(__name__)
letter = Letter(exit_signals=(signal.SIGTERM,))  # waitress leaves SIGTERM as it is: it runs no exit callback


@app.get("/order/<int:number>")
def complete_order(number: int) -> str:
    letter.track("user_42", "Order Completed", {"number": number})
    return "thank you"
