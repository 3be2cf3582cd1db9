"""Planted facts: EK-FAC and identity queried for the passages that state what a model was taught.

Trains a transformer on generated biographies until it answers questions about them (about a minute on two cores,
then from the store), scores every passage for every question it answers, and prints recall@1, recall@10 and mean
reciprocal rank with 95 % bootstrap intervals over questions; at the end the differences between the two methods.
"""

from dataclasses import replace

from whence.corpora import biographies, biographies_model
from whence.problems.planted_facts import planted_facts

from .harness import Benchmark, Run
from .timing import timed

bench = Benchmark(__file__, __doc__, example="--people 240")


@bench.case(quick={"people": 40})
def recall(run: Run, people: int = 120, seed: int = 0, sites: str = "*.mlp.*") -> None:
    """Recall of the passages that state the fact.

    Args:
        people: half of whom are in the questions.
        seed: of the biographies.
        sites: which layers are attributed to.
    """
    corpus = replace(biographies(people=people, asked=people // 2, seed=seed), name=f"biographies of {people}")
    seconds, model = timed(lambda: biographies_model(run.store, corpus))
    run.say(f"{corpus}: model ready in {seconds:.1f} s\n")
    seconds, found = timed(lambda: planted_facts(model, corpus, pattern=sites, store=run.store))
    run.say(f"```text\n{found}\n```\n\nscored in {seconds:.1f} s")


if __name__ == "__main__":
    bench.main()
