"""saescope: find the SAE features behind a behaviour of a language model, and change them.

Names are imported when first used, so `import saescope` costs nothing.
"""

from typing import TYPE_CHECKING

from saescope.lazy import lazy_names
from saescope.version import __version__

if TYPE_CHECKING:
    from saescope import exports, judges
    from saescope.analysis.agreement import Agreement, agreement
    from saescope.analysis.contrast import Contrast, ContrastSettings, contrast
    from saescope.analysis.detect import detect
    from saescope.analysis.detection import Detection, DetectSettings
    from saescope.analysis.directions import difference_of_means
    from saescope.analysis.examples import Examples, examples
    from saescope.analysis.fitness import Fitness, fitness
    from saescope.analysis.headline import Headline
    from saescope.analysis.layers import Layers, layers
    from saescope.analysis.profile import Profile, profile
    from saescope.control.baking.bake import bake
    from saescope.control.baking.bake_result import BakeResult
    from saescope.control.baking.settings import BakeSettings
    from saescope.control.diff import diff
    from saescope.control.diff_result import Diff
    from saescope.control.edits import Edit, EditSet, parse_edit
    from saescope.control.edits_file import read_edits, write_edits
    from saescope.control.evaluation.evaluate import evaluate
    from saescope.control.evaluation.evaluation import Evaluation
    from saescope.control.evaluation.output_score import OutputScore, output_scores
    from saescope.control.evaluation.select import select
    from saescope.control.evaluation.selection import Selection
    from saescope.control.evaluation.settings import EvaluateSettings, ReferenceData, SelectSettings
    from saescope.control.receipts import Receipt
    from saescope.control.steer import steered
    from saescope.engine.decoders import decoder_cosines
    from saescope.engine.extract import extract
    from saescope.engine.generate import generate
    from saescope.engine.lm import LM, load_lm
    from saescope.engine.load import load_sae
    from saescope.engine.neutral_means import neutral_means
    from saescope.engine.sae import Sae, SparseActs
    from saescope.engine.scan import Scan, scan
    from saescope.errors import (
        ArgumentError,
        EditError,
        JudgeError,
        PromptError,
        ResourceError,
        RunError,
        SaescopeError,
        SourceError,
    )
    from saescope.sources.catalog import Feature
    from saescope.sources.chats import Message
    from saescope.sources.directions import Direction, read_direction
    from saescope.sources.neutral_mean import NeutralMean
    from saescope.sources.prompt_sets import bundled_prompts, read_prompts
    from saescope.sources.prompts import Prompt, PromptSet, texts
    from saescope.sources.saes import open_sae
    from saescope.store.directions import write_directions
    from saescope.store.masking import Masking
    from saescope.store.resume_cache import ResumeCache
    from saescope.store.runs import Run
    from saescope.store.verification import verify
    from saescope.surfaces.report import write_report

__all__ = [
    "Agreement",
    "ArgumentError",
    "BakeResult",
    "BakeSettings",
    "Contrast",
    "ContrastSettings",
    "DetectSettings",
    "Detection",
    "Diff",
    "Direction",
    "Edit",
    "EditError",
    "EditSet",
    "EvaluateSettings",
    "Evaluation",
    "Examples",
    "Feature",
    "Fitness",
    "Headline",
    "JudgeError",
    "LM",
    "Layers",
    "Masking",
    "Message",
    "NeutralMean",
    "OutputScore",
    "Profile",
    "Prompt",
    "PromptError",
    "PromptSet",
    "Receipt",
    "ReferenceData",
    "ResourceError",
    "ResumeCache",
    "Run",
    "RunError",
    "Sae",
    "SaescopeError",
    "Scan",
    "SelectSettings",
    "Selection",
    "SourceError",
    "SparseActs",
    "__version__",
    "agreement",
    "bake",
    "bundled_prompts",
    "contrast",
    "decoder_cosines",
    "detect",
    "diff",
    "difference_of_means",
    "evaluate",
    "examples",
    "exports",
    "extract",
    "fitness",
    "generate",
    "judges",
    "layers",
    "load_lm",
    "load_sae",
    "neutral_means",
    "open_sae",
    "output_scores",
    "parse_edit",
    "profile",
    "read_direction",
    "read_edits",
    "read_prompts",
    "scan",
    "select",
    "steered",
    "texts",
    "verify",
    "write_directions",
    "write_edits",
    "write_report",
]

_HOMES = {
    "analysis.agreement": (
        "Agreement",
        "agreement",
    ),
    "analysis.contrast": (
        "Contrast",
        "ContrastSettings",
        "contrast",
    ),
    "analysis.detect": ("detect",),
    "analysis.detection": (
        "DetectSettings",
        "Detection",
    ),
    "analysis.directions": ("difference_of_means",),
    "analysis.examples": (
        "Examples",
        "examples",
    ),
    "analysis.fitness": (
        "Fitness",
        "fitness",
    ),
    "analysis.headline": ("Headline",),
    "analysis.layers": (
        "Layers",
        "layers",
    ),
    "analysis.profile": (
        "Profile",
        "profile",
    ),
    "control.baking.bake": ("bake",),
    "control.baking.bake_result": ("BakeResult",),
    "control.baking.settings": ("BakeSettings",),
    "control.diff": ("diff",),
    "control.diff_result": ("Diff",),
    "control.edits": (
        "Edit",
        "EditSet",
        "parse_edit",
    ),
    "control.edits_file": (
        "read_edits",
        "write_edits",
    ),
    "control.evaluation.evaluate": ("evaluate",),
    "control.evaluation.evaluation": ("Evaluation",),
    "control.evaluation.output_score": (
        "OutputScore",
        "output_scores",
    ),
    "control.evaluation.select": ("select",),
    "control.evaluation.selection": ("Selection",),
    "control.evaluation.settings": (
        "EvaluateSettings",
        "ReferenceData",
        "SelectSettings",
    ),
    "control.receipts": ("Receipt",),
    "control.steer": ("steered",),
    "engine.decoders": ("decoder_cosines",),
    "engine.extract": ("extract",),
    "engine.generate": ("generate",),
    "engine.lm": (
        "LM",
        "load_lm",
    ),
    "engine.load": ("load_sae",),
    "engine.neutral_means": ("neutral_means",),
    "engine.sae": (
        "Sae",
        "SparseActs",
    ),
    "engine.scan": (
        "Scan",
        "scan",
    ),
    "errors": (
        "ArgumentError",
        "EditError",
        "JudgeError",
        "PromptError",
        "ResourceError",
        "RunError",
        "SaescopeError",
        "SourceError",
    ),
    "sources.catalog": ("Feature",),
    "sources.directions": (
        "Direction",
        "read_direction",
    ),
    "sources.chats": ("Message",),
    "sources.neutral_mean": ("NeutralMean",),
    "sources.prompt_sets": ("bundled_prompts", "read_prompts"),
    "sources.prompts": ("Prompt", "PromptSet", "texts"),
    "sources.saes": ("open_sae",),
    "store.directions": ("write_directions",),
    "store.masking": ("Masking",),
    "store.resume_cache": ("ResumeCache",),
    "store.runs": ("Run",),
    "store.verification": ("verify",),
    "surfaces.report": ("write_report",),
}

__getattr__ = lazy_names("saescope", _HOMES, submodules=("exports", "judges"))


def __dir__() -> list[str]:
    return __all__
