"""A nightly job."""

from datetime import datetime, timezone

from letterapp import Letter, message_id

letter = Letter()  # LETTER_API_KEY


def main() -> None:
    day = datetime.now(timezone.utc).date().isoformat()
    for number in range(20):
        # By hand, or after a failure, the job may run twice in one night
        identity = message_id("Report Sent", day, number)
        letter.track(f"user_{number}", "Report Sent", {"order": number}, message_id=identity)


if __name__ == "__main__":
    main()
