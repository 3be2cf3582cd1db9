"""Unlearned language models by the metrics that the field uses: TOFU's, MUSE's, WMDP's, memorisation, membership.

    reader = language.Reader(model, tokenizer)
    language.evaluate(reader, data, retain=language.Reader(retrained, tokenizer))

`METRICS` is the registry, `EvaluationData` the data; each metric says in its docstring where its definition stands.
"""

from .data import Choice as Choice
from .data import EvaluationData as EvaluationData
from .data import Passage as Passage
from .data import Question as Question
from .evaluate import LanguageEvaluation as LanguageEvaluation
from .evaluate import evaluate as evaluate
from .harness import harness as harness
from .metric import LanguageMetric as LanguageMetric
from .metric import Measured as Measured
from .reader import Reader as Reader
from .registry import METRICS as METRICS
from .teacher_forcing import stream_margins as stream_margins
from .teacher_forcing import token_margins as token_margins
