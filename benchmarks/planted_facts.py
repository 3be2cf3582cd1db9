"""Planted facts: EK-FAC and identity asked for the passages that state what a model was taught.

    python -m benchmarks.planted_facts [--people 120] [--store FOLDER]

Trains a transformer on generated biographies until it answers questions about them (about a minute on two cores,
then from the store), scores every passage for every question it answers, and prints recall@1, recall@10 and mean
reciprocal rank with 95 % bootstrap intervals over questions; at the end the differences between the two methods.
"""

import argparse
import time
from dataclasses import replace

from whence.cache import Store
from whence.corpora import biographies
from whence.demo_model import biographies_model
from whence.problems.planted_facts import planted_facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=120, help="people, half of whom are asked about")
    parser.add_argument("--seed", type=int, default=0, help="of the biographies")
    parser.add_argument("--store", help="the cache (default: $WHENCE_CACHE or the user's)")
    parser.add_argument("--sites", default="*.mlp.*", help="which layers are looked at")
    options = parser.parse_args()
    store = Store(options.store)
    corpus = biographies(people=options.people, asked=options.people // 2, seed=options.seed)
    corpus = replace(corpus, name=f"biographies of {options.people}")
    began = time.perf_counter()
    model = biographies_model(store, corpus)
    print(f"{corpus}: model ready in {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    print(planted_facts(model, corpus, pattern=options.sites, store=store))
    print(f"scored in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
