"""Judges decide whether a reply shows a behaviour.

They go by phrases, by language, by features, or ask a function or a server.
"""

from typing import TYPE_CHECKING

from saescope.lazy import lazy_names

if TYPE_CHECKING:
    from saescope.control.evaluation.behaviour import (
        FeatureRule,
        LanguageJudge,
        PhraseJudge,
        read_behaviour,
    )
    from saescope.control.evaluation.feature_judge import FeatureJudge
    from saescope.control.evaluation.function_judge import FunctionJudge, load_judge
    from saescope.control.evaluation.http_judge import HttpJudge
    from saescope.control.evaluation.judge import Judge, Reply
    from saescope.control.evaluation.languages import detect_language

__all__ = [
    "FeatureJudge",
    "FeatureRule",
    "FunctionJudge",
    "HttpJudge",
    "Judge",
    "LanguageJudge",
    "PhraseJudge",
    "Reply",
    "detect_language",
    "load_judge",
    "read_behaviour",
]

_HOMES = {
    "control.evaluation.behaviour": (
        "FeatureRule",
        "LanguageJudge",
        "PhraseJudge",
        "read_behaviour",
    ),
    "control.evaluation.feature_judge": ("FeatureJudge",),
    "control.evaluation.function_judge": ("FunctionJudge", "load_judge"),
    "control.evaluation.http_judge": ("HttpJudge",),
    "control.evaluation.judge": ("Judge", "Reply"),
    "control.evaluation.languages": ("detect_language",),
}

__getattr__ = lazy_names("saescope.judges", _HOMES)


def __dir__() -> list[str]:
    return __all__
