"""Whose each event in a relay is, and what is reported to its owner (`letterapp._relay_server.ownership`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import DEADLINE
from relayed import raw_event

from letterapp import LetterError
from letterapp._client import settings_of
from letterapp._relay import protocol
from letterapp._relay_server.ownership import OwnedSender, Owner
from letterapp._runtime.condition import Condition
from letterapp.testing import IngestionServer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


@pytest.mark.parametrize("length, limit, spooled", [(501_610, 500_000, False), (30_000, 1000, True)])
def test_an_event_that_fits_into_no_request_is_lost_alone_and_reported_to_its_owner(
    length: int, limit: int, spooled: bool, letter_api: IngestionServer, tmp_path: Path
) -> None:
    spool = tmp_path / "spool" if spooled else None
    settings = settings_of(api_key="k", base_url=letter_api.url, max_batch_bytes=limit, spool=spool)
    logged: list[str] = []
    owned, owner = OwnedSender(settings, logged.append, Condition()), Owner()
    assert owned.admit(b'{"x":"%s"}' % (b"a" * length), owner)
    assert owned.admit(raw_event("m").rstrip(), owner)
    assert owned.sender.flush(DEADLINE) and letter_api.distinct == 1 and owner.settled == 2
    (report,) = map(protocol.parse, owner.take_reports())
    assert (report["lost"], report["cause"]) == (1, "overflow")
    owned.sender.close(DEADLINE)


def test_an_owner_that_never_reads_its_reports_costs_little_memory_and_few_log_lines() -> None:
    owner = Owner()
    error = LetterError("no" * 200, 400, "b" * 60_000, cause="rejected")
    for _ in range(20_000):
        owner.report(error, 2, [b"{}", b"{}"])
    assert sum(map(len, owner.pending_reports())) < 524_288
    assert sum(protocol.parse(line)["lost"] for line in owner.take_reports()) == 40_000
    assert owner.take_reports() == []
