"""What the API requires of a request's body.

Responsible for: the rules of `/v1/batch` and `/v1/send`. Not responsible for: HTTP, decoding JSON.
"""

from __future__ import annotations

from typing import Any

MAX_ITEMS = 100
_REQUIRED = {"identify": ("traits",), "group": ("accountId", "traits"), "track": ("event", "properties")}
_KINDS = {"traits": dict, "properties": dict}


def batch_problem(parsed: Any) -> str | None:
    if not isinstance(parsed, dict) or set(parsed) != {"batch"} or not isinstance(parsed["batch"], list):
        return "not a batch"
    if not 1 <= len(parsed["batch"]) <= MAX_ITEMS:
        return f"{len(parsed['batch'])} items"
    for item in parsed["batch"]:
        if not isinstance(item, dict) or item.get("type") not in _REQUIRED:
            return "an item without a type"
        for name in ("userId", "messageId", "timestamp", *_REQUIRED[item["type"]]):
            kind = _KINDS.get(name, str)
            if not isinstance(item.get(name), kind):
                return f"{item['type']} without {name}"
    return None


def mail_problem(parsed: Any) -> str | None:
    if not isinstance(parsed, dict) or not parsed.get("to") or not parsed.get("subject"):
        return "to and subject are required"
    return None if parsed.get("html") or parsed.get("text") else "html or text is required"
