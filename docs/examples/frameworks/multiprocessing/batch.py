"""A batch job: `python batch.py fork` (or spawn, or forkserver)."""

import multiprocessing
import sys

from letterapp import Letter

letter = Letter()  # LETTER_API_KEY. With spawn and forkserver, each worker imports this module and makes its own


def invoice(order: int) -> int:
    letter.track(f"user_{order % 7}", "Invoice Sent", {"order": order})
    return order


def main(method: str) -> None:
    with multiprocessing.get_context(method).Pool(2, maxtasksperchild=10) as pool:
        sent = pool.map(invoice, range(100), chunksize=3)
        # The end of the `with` block kills the workers. Those of spawn and forkserver share no memory with this
        # process, so let them end first, which sends what they have queued.
        pool.close()
        pool.join()
    letter.track("accounting", "Invoices Sent", {"count": len(sent)})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "fork")
