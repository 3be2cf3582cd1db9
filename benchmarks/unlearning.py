"""Unlearning, shown and timed:

    python -m benchmarks.unlearning convex      ridge and logistic regression: distance to the retrained optimum
    python -m benchmarks.unlearning digits      every method on digits, with oracles and the null row
    python -m benchmarks.unlearning document    documents forgotten by a language model, without retraining
    python -m benchmarks.unlearning images --data cifar.npz    two classes of images, a small convolutional network
    python -m benchmarks.unlearning speed       regressions and KLoM against plain loops; every method's seconds

Every command prints the tables that the documentation quotes and says which of its claims held.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from whence.cache import Store
from whence.unlearn.report import save
from whence.unlearn.results import Evaluation, table


def _print(evaluations: list[Evaluation], verdicts: list[dict[str, bool]]) -> None:
    for evaluation, claims in zip(evaluations, verdicts):
        print(
            f"\n{evaluation.title}: {evaluation.forgotten} forgotten, {evaluation.models} models a side, "
            f"{evaluation.bins} bins\n"
        )
        print(table(evaluation))
        print()
        for claim, held in claims.items():
            print(f"{'held' if held else 'DID NOT HOLD'}: {claim}")


def digits(options: argparse.Namespace) -> None:
    from .unlearning_digits import setting, show, verdicts

    started = time.perf_counter()
    evaluations = show(setting(Store(options.store)), options.seeds)
    _print(evaluations, [verdicts(e) for e in evaluations])
    where = save(evaluations, Path(options.out) / "unlearning-digits.html", "Digits: unlearning against oracles")
    print(f"\n{time.perf_counter() - started:.0f} s; report: {where}")


def convex(options: argparse.Namespace) -> None:
    from .unlearning_convex import show

    show()


def document(options: argparse.Namespace) -> None:
    from .unlearning_document import show

    show(Store(options.store), Path(options.out))


def images(options: argparse.Namespace) -> None:
    from .unlearning_images import show

    show(options.data, Store(options.store), Path(options.out))


def speed(options: argparse.Namespace) -> None:
    from .unlearning_speed import show

    show()


COMMANDS = {"convex": convex, "digits": digits, "document": document, "images": images, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS, nargs="+")
    parser.add_argument("--store", default=None, help="where banks are kept (default: the user's cache folder)")
    parser.add_argument("--out", default="out", help="where pages are written")
    parser.add_argument("--seeds", type=int, default=3, help="forget sets of each kind")
    parser.add_argument("--data", default=None, help="an .npz with x_train, y_train, x_test, y_test images")
    options = parser.parse_args()
    np.set_printoptions(precision=3, suppress=True)
    for what in options.what:
        COMMANDS[what](options)


if __name__ == "__main__":
    main()
