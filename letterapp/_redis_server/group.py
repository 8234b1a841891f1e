"""The consumer group of a stream, as one relay uses it.

Responsible for: the commands, what they return, which entries belong to this relay, creating the group. Not responsible
for: when they are used, and what becomes of the events (`consumer`).

Redis sees when each consumer has made its last request, and that is the heartbeat: `beat` makes one. An entry is
claimed if its consumer has made none for some time, however long the entry itself has been pending: a consumer whose
requests to the API are slow keeps its entries. XAUTOCLAIM cannot tell consumers apart, so a script claims. It also
claims from those that certainly have ended, and from an earlier process with the same `--consumer` (`identity`).

This heartbeat needs no memory of Redis, no clock of ours, and after Redis was restarted every consumer counts as just
seen (`tests/facts/test_redis_facts.py`).
"""

from __future__ import annotations

from .._redis.connection import RedisConnection, Refusal
from .._redis.stream import EVENTS, GROUP
from ..errors import LetterError
from .identity import Identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._redis.location import Location

ANSWERING = 5.0  # maximum time for a response, in seconds
# The consumer to which a relay that ends in order gives what it has not settled. Any relay claims from it at once.
RELEASED = "released"
# Reading behind this finds nothing, and counts as a sign of life. To Redis 7.0, reading what is new does not, unless
# there is something; nor does reading behind the greatest of all IDs.
_LAST_ID = "18446744073709551615-0"
_NEVER = 10**12  # milliseconds
_MOST_PENDING = 10_000  # entries of one relay; far more than it takes

# How many relays may have ended with an entry that is taken at once from one that has just ended. Others wait for the
# time without a heartbeat, so that a relay that is killed at each start does not use up `MOST_DELIVERIES` in seconds.
_FEW_DELIVERIES = 3

# Returns for how long this relay was silent itself, in milliseconds; the entries that were claimed, each with the
# number of its deliveries so far; and whether a relay of the same `--consumer` was started later. A relay that was
# silent for too long claims nothing: perhaps Redis was stopped, and then the others were silent as well.
_BEAT = """
local stream, group, me, prefix, released = KEYS[1], ARGV[1], ARGV[2], ARGV[6], ARGV[7]
local room, longest, few, silent = tonumber(ARGV[4]), tonumber(ARGV[3]), tonumber(ARGV[8]), 0
local ended, consumers, found = {}, {}, {}
for i = 9, #ARGV do ended[ARGV[i]] = true end
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local one = {}
    for i = 1, #fields, 2 do one[fields[i]] = fields[i + 1] end
    consumers[#consumers + 1] = one
    if one.name == me then silent = one.idle end
    if prefix ~= '' and #one.name == #me and string.sub(one.name, 1, #prefix) == prefix then
        if one.name > me then return {0, {}, 1} end
        ended[one.name] = true
    end
end
redis.call('XREADGROUP', 'GROUP', group, me, 'STREAMS', stream, ARGV[5])
if silent > longest / 2 then room = 0 end
for _, one in ipairs(consumers) do
    local free = one.name == released or one.idle > longest
    if room > 0 and one.name ~= me and (free or ended[one.name]) then
        local ids, deliveries, claimed = {}, {}, {}
        for _, row in ipairs(redis.call('XPENDING', stream, group, '-', '+', room, one.name)) do
            if free or row[4] <= few then
                ids[#ids + 1] = row[1]
                deliveries[row[1]] = row[4]
            end
        end
        if #ids > 0 then
            for _, entry in ipairs(redis.call('XCLAIM', stream, group, me, 0, unpack(ids))) do
                if entry then
                    claimed[entry[1]] = true
                    found[#found + 1] = {entry[1], deliveries[entry[1]], entry[2]}
                end
            end
            for _, id in ipairs(ids) do
                if not claimed[id] then redis.call('XACK', stream, group, id) end -- it was deleted
            end
            room = room - #ids
        end
        if #ids == one.pending then
            redis.pcall('XGROUP', 'DELCONSUMER', stream, group, one.name) -- later, if memory is full: Redis 6.2
        end
    end
end
return {silent, found, 0}
"""
# A script is executed as one, like a transaction. Redis 7.0 refuses transactions when its memory is full, even those
# that make room.
_SETTLE = """
redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 2))
redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
"""
_LEAVE = """
local ids = {}
for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[4], ARGV[2])) do
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, row[1], 'RETRYCOUNT', 0, 'JUSTID')
end
redis.pcall('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
"""


class Entry:
    """An entry of the stream. ``events`` is None if it has none, because a client has not written it."""

    __slots__ = ("deliveries", "events", "id")

    def __init__(self, id: str, fields: list[bytes] | None, deliveries: int) -> None:
        self.id = id
        self.deliveries = deliveries  # before this one
        values = dict(zip(fields[::2], fields[1::2])) if fields else {}
        self.events: bytes | None = values.get(EVENTS.encode())


class Beat:
    """What a heartbeat has returned: the claimed entries, oldest first; whether a later relay has this one's name."""

    __slots__ = ("entries", "is_superseded", "silent")

    def __init__(self, silent: int, found: list[Any], is_superseded: int) -> None:
        self.silent = silent / 1000  # seconds since this relay's last sign of life
        entries = [Entry(id.decode(), fields, int(number)) for id, number, fields in found]
        self.entries = sorted(entries, key=_position)
        self.is_superseded = bool(is_superseded)


class Group:
    """One relay's connection to the stream. Used by one thread.

    All methods block for at most `ANSWERING` seconds. They raise `OSError` if Redis does not answer in time or at all,
    and `Refusal` if it refuses; then this has to be closed, unless `is_gone`.
    """

    def __init__(self, location: Location, key: str, identity: Identity) -> None:
        """Connect as the consumer ``identity``. Raises `LetterError` if Redis may remove the stream to save memory."""
        self._key = key
        self._identity = identity
        self._connection = RedisConnection(location, key, ANSWERING)
        self.unchecked = ""  # why it could not be found out whether Redis may remove the stream
        try:
            self._require_no_eviction()
            self.create()
        except BaseException:
            self._connection.close()
            raise

    def create(self) -> None:
        """Create the stream and its group, if they do not exist. The group reads from the stream's beginning."""
        try:
            self._ask("XGROUP", "CREATE", self._key, GROUP, "0", "MKSTREAM")
        except Refusal as refusal:
            # A server whose memory is full does not say more; the next request shows whether there is a group.
            if refusal.kind not in ("BUSYGROUP", "OOM"):
                raise

    def read(self, count: int, wait: float) -> list[Entry]:
        """At most ``count`` new entries; wait for the first for up to ``wait`` seconds."""
        blocks = ("BLOCK", max(1, int(wait * 1000))) if wait else ()
        me = ("GROUP", GROUP, self._identity.name)
        command = ("XREADGROUP", *me, "COUNT", count, *blocks, "STREAMS", self._key, ">")
        found = self._connection.request(*command, patience=wait + ANSWERING)
        return [Entry(id.decode(), fields, 0) for _, entries in found or () for id, fields in entries]

    def own_pending(self, known: dict[str, Any], count: int) -> list[Entry]:
        """Entries that are pending for this relay and that it has not ``known``: a reply with them was lost."""
        rows = self._ask("XPENDING", self._key, GROUP, "-", "+", _MOST_PENDING, self._identity.name)
        deliveries = {id.decode(): number for id, _, _, number in rows if id.decode() not in known}
        ids = list(deliveries)[:count]
        if not ids:
            return []
        claimed = [entry for entry in self._ask("XCLAIM", self._key, GROUP, self._identity.name, 0, *ids) if entry]
        found = [Entry(id.decode(), fields, 0) for id, fields in claimed if fields is not None]
        deleted = set(ids) - {entry.id for entry in found}
        if deleted:
            self._ask("XACK", self._key, GROUP, *deleted)
        return found

    def beat(self, idle: float | None, count: int) -> Beat:
        """Show that this relay lives, and claim at most ``count`` entries of those that do not, or that have left.

        ``idle``: seconds without a sign of life after which a relay counts as dead; None to claim from none of these.
        What is claimed anyway: what relays have released that have ended in order; what those have that certainly have
        ended, and earlier ones of the same `--consumer`, unless several relays have ended with it already.
        """
        longest = _NEVER if idle is None else int(idle * 1000)
        names = [row["name"].decode() for row in self._consumers()]
        self._identity.choose(names)
        me = (GROUP, self._identity.name, longest, count, _LAST_ID, self._identity.prefix, RELEASED, _FEW_DELIVERIES)
        answer = self._ask("EVAL", _BEAT, 1, self._key, *me, *self._identity.ended(names))
        return Beat(*answer)

    def settle(self, ids: list[str]) -> None:
        """Acknowledge and delete entries. An acknowledged entry that is not deleted stays in Redis's memory."""
        self._ask("EVAL", _SETTLE, 1, self._key, GROUP, *ids)

    def leave(self) -> None:
        """Give what is pending to other relays, which deliver it at once. It does not count as a delivery."""
        self._ask("EVAL", _LEAVE, 1, self._key, GROUP, self._identity.name, RELEASED, _MOST_PENDING)

    def status(self) -> dict[str, Any]:
        """What waits in the stream, and who reads it."""
        consumers = self._consumers()
        return {
            "stream": self._key,
            "entries": self._ask("XLEN", self._key),
            "pending": sum(row["pending"] for row in consumers),
            "relays": [
                {"name": row["name"].decode(), "pending": row["pending"], "seconds_since_seen": row["idle"] / 1000}
                for row in consumers
                if row["name"].decode() != RELEASED
            ],
        }

    def _consumers(self) -> list[dict[str, Any]]:
        return [_named(row) for row in self._ask("XINFO", "CONSUMERS", self._key, GROUP)]

    def close(self) -> None:
        self._connection.close()

    def _ask(self, *command: Any) -> Any:
        return self._connection.request(*command, patience=ANSWERING)

    def _require_no_eviction(self) -> None:
        try:
            text = self._ask("INFO", "memory").decode("utf-8", "replace")
        except Refusal as refusal:
            self.unchecked = str(refusal)
            return
        found = dict(line.partition(":")[::2] for line in text.splitlines())
        policy = found.get("maxmemory_policy", "")
        if policy.startswith("allkeys-"):
            raise LetterError(
                f"Redis may remove the stream when its memory is full (maxmemory-policy {policy}): set it to noeviction"
            )


def is_gone(problem: Exception) -> bool:
    """True if the stream or its group does not exist any more, because somebody has flushed or deleted it."""
    if not isinstance(problem, Refusal):
        return False
    text = str(problem)
    return problem.kind in ("NOGROUP", "UNBLOCKED") or "NOGROUP" in text or "no such key" in text


def _position(entry: Entry) -> tuple[int, int]:
    milliseconds, _, serial = entry.id.partition("-")
    return int(milliseconds), int(serial)


def _named(row: list[Any]) -> dict[str, Any]:
    return {name.decode(): value for name, value in zip(row[::2], row[1::2])}
