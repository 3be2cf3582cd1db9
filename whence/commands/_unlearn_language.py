"""`whence unlearn evaluate-language`: a language model by the metrics of TOFU, MUSE and WMDP."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whence.options import Count, Loading

from ._settings import registered, values_of
from ._shared import Stored, Tabled

if TYPE_CHECKING:
    from whence.unlearn.language import EvaluationData, LanguageMetric, Reader


@dataclass(frozen=True)
class EvaluateLanguage(Loading, Stored, Tabled):
    """Evaluate an unlearned language model by the metrics of open-unlearning, beside a model that never read the data.

    Data are made from the embedded biographies, or read from local copies of TOFU, MUSE and WMDP: folders with their
    files, or part=FILE with JSON, JSONL or Parquet in their columns. Metrics whose part is missing are named.

    Example:

        whence unlearn evaluate-language --model biographies --retain-model retrained
        whence unlearn evaluate-language --model out/forgot --retain-model out/retrained --data TOFU MUSE-News
    """

    model: str = "biographies"
    """The model to judge: a folder, a .gguf file, a hub name, an embedded model, or a .safetensors file with weights of
    the biographies' model (`whence unlearn document`)."""
    retain_model: str | None = None
    """A model that was trained without the forgotten data; forget_quality needs it. retrained: the biographies' model,
    trained again without --people (and kept in the store)."""
    data: tuple[str, ...] = ("biographies",)
    """biographies; or folders and part=FILE, with parts forget, retain, real_authors, world_facts, verbmem, knowmem,
    retain_knowmem, examples, forget_text, holdout_text, choices."""
    people: tuple[str, ...] = ()
    """People of the biographies to be forgotten; the first four by default."""
    metrics: str | None = None
    """Names, with commas; all by default."""
    set: tuple[str, ...] = ()
    """Settings of a metric, as metric.name=value (mia_min_k.k=0.2 forget_Q_A_ROUGE.stem=true)."""
    template: str | None = None
    """Prompt of a question: "Question: {question}\\nAnswer:" by default."""
    length: Count | None = None
    """Tokens at which texts are cut; the model's context by default."""
    positions: Count = 1024
    """Positions in a batch."""
    lm_eval: tuple[str, ...] = ()
    """Tasks of lm-eval, if it is installed (mmlu wmdp_bio)."""
    limit: Count | None = None
    """Examples of each task of lm-eval."""
    quiet: bool = False
    """No progress bars."""

    def precheck(self) -> None:
        self._metrics()

    def run(self) -> None:
        from whence.unlearn.language import evaluate, harness

        metrics, data = self._metrics(), self._data()
        readers = [self._reader(name) for name in (self.model, self.retain_model) if name is not None]
        found = evaluate(readers[0], data, retain=readers[1] if len(readers) > 1 else None, metrics=metrics)
        facts, text, rows = found.facts(), str(found), found.rows()
        if self.lm_eval:
            public = harness(self.model, self.lm_eval, limit=self.limit, device=self.device or "cpu")
            facts |= {"lm-eval": public}
            named = [
                {"metric": f"{task}: {name}", "value": v} for task, each in public.items() for name, v in each.items()
            ]
            rows += named
            text += "\n" + "".join(f"\nlm-eval {row['metric']} {row['value']:.4f}" for row in named)
        if self.out is not None:
            text += f"\nwritten: {self.out}"
        self.show_table(facts, text, rows)

    def _reader(self, name: str) -> "Reader":
        from whence.cache import UsageError
        from whence.inputs import load_model
        from whence.pretrained import context_of
        from whence.unlearn.language import Reader

        if name == "retrained" or name.endswith(".safetensors"):
            return self._biographies(name)
        model, vocabulary = load_model(name, self.open_store(), quiet=self.quiet, loading=self)
        if vocabulary is None:
            raise UsageError(f"{name} is no language model.", "Give a model with a tokenizer.")
        return Reader(model, vocabulary, context_of(model), self.length, self.positions, self.quiet)

    def _biographies(self, name: str) -> "Reader":
        """The biographies' model trained again without the people, or with the weights in a file."""
        from whence.cache import UsageError
        from whence.corpora import biographies
        from whence.corpora.models import biographies_model, with_weights
        from whence.corpora.questions import people_of
        from whence.pretrained import context_of
        from whence.unlearn.language import Reader

        if self.data != ("biographies",):
            raise UsageError(f"{name} is a model of the biographies.", "Leave --data out, or give another model.")
        corpus = biographies()
        assert corpus.vocabulary is not None
        if name == "retrained":
            left = [person not in people_of(corpus, self.people) for person in corpus.train.about["person"]]
            model = biographies_model(self.open_store(), corpus, self.quiet, left=left)
        else:
            model = with_weights(corpus, Path(name))
        return Reader(model, corpus.vocabulary, context_of(model), self.length, self.positions, self.quiet)

    def _metrics(self) -> "list[LanguageMetric] | None":
        from whence.cache import UsageError
        from whence.unlearn.language import METRICS

        names = [*METRICS] if self.metrics is None else [name.strip() for name in self.metrics.split(",")]
        for name in names:
            registered(METRICS, name, what="metric")
        wrong = [text for text in self.set if text.partition(".")[0] not in names]
        if wrong:
            raise UsageError(f"--set {wrong[0]} is of no metric here.", "Write it as metric.name=value.")
        if self.metrics is None and not self.set:
            return None
        given = {name: [text.partition(".")[2] for text in self.set if text.startswith(f"{name}.")] for name in names}
        chosen = names if self.metrics is not None else [name for name in names if given[name]]
        return [METRICS[name](**values_of(METRICS[name], given[name], {})) for name in chosen]

    def _data(self) -> "EvaluationData":
        from whence.corpora.questions import biography_questions, local_questions

        if self.data == ("biographies",):
            return biography_questions(self.people)
        settings: dict[str, Any] = {} if self.template is None else {"template": self.template}
        return local_questions(self.data, **settings)
