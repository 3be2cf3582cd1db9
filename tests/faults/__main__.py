"""`python -m tests.faults [--short] [NAME ...]`: the long form of every proof, with its figures."""

import argparse
import logging
import os
import time

from . import PROOFS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(PROOFS)}; all by default")
    parser.add_argument("--short", action="store_true", help="the form that runs in the test suite")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ["WHENCE_QUIET"] = "1"
    for name in options.names or PROOFS:
        began = time.monotonic()
        print(f"{name:22} {PROOFS[name](not options.short)}  [{time.monotonic() - began:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
