"""A shop. Run it with `gunicorn shop:app`."""

from flask import Flask

from letterapp import Letter

app = Flask(__name__)
letter = Letter()  # the key is in LETTER_API_KEY


@app.get("/order/<int:number>")
def complete_order(number: int) -> str:
    letter.track("user_42", "Order Completed", {"number": number})
    return "thank you"
