"""A batch job with joblib's default backend, loky: `python features.py`."""

from joblib import Parallel, delayed

from letterapp import Letter

letter = Letter()  # LETTER_API_KEY


def extract(order: int) -> int:
    letter.track(f"user_{order % 7}", "Features Extracted", {"order": order})
    return order


def main() -> None:
    done = Parallel(n_jobs=2)(delayed(extract)(order) for order in range(60))
    letter.track("analysts", "Features Done", {"count": len(done)})


if __name__ == "__main__":
    main()
