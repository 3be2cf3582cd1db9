"""Every metric of language models by name: the only list. Command line and documents read it."""

from collections.abc import Mapping
from types import MappingProxyType

from .choices import ChoiceAccuracy
from .membership import LossAttack, MinK, MinKPlusPlus, PrivLeak
from .memorisation import ExactMemorization, ExtractionStrength
from .metric import LanguageMetric
from .muse import KnowMem, RetainKnowMem, VerbMem
from .tofu import ForgetProbability, ForgetQuality, ForgetRouge, ForgetTruthRatio, ModelUtility

METRICS: Mapping[str, type[LanguageMetric]] = MappingProxyType({
    metric.name: metric
    for metric in (
        ForgetQuality, ModelUtility, ForgetTruthRatio, ForgetProbability, ForgetRouge, VerbMem, KnowMem, RetainKnowMem,
        PrivLeak, ChoiceAccuracy, ExtractionStrength, ExactMemorization, LossAttack, MinK, MinKPlusPlus,
    )
})  # fmt: skip
