"""Open or compute the run that a command analyses."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from saescope.errors import PromptError
from saescope.jobs.inputs import ModelInputs
from saescope.jobs.named_features import NamedFeature
from saescope.jobs.reporter import Reporter, keeping
from saescope.sources.file_names import file_name_part
from saescope.sources.prompt_sets import read_prompts
from saescope.sources.prompts import PromptSet
from saescope.store.manifest import MANIFEST
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.store.tables import PROMPTS_NAME, TOKENS_NAME
from saescope.table import Table

if TYPE_CHECKING:
    from saescope.engine.lm import LM
    from saescope.engine.sae import Sae

Result = TypeVar("Result", bound=Table)

# The command of a run that is computed only for a comparison.
EXTRACT: Mapping[str, Any] = {"verb": "extract", "request": {}}


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """A result and the run it was computed from."""

    run: Run
    result: Result

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return self.result.to_dict()


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How to compute a run: from which prompts, with which model, after which checks."""

    sets: str
    inputs: ModelInputs
    out: Path | None
    command: Mapping[str, Any]
    keep_errors: bool = False
    compare_under: Masking | None = None
    check_sets: Callable[[Sequence[str]], None] | None = None
    features: Sequence[NamedFeature] = ()


def describe_extraction(prompt_sets: Sequence[PromptSet], model: str, layers: Sequence[int]) -> str:
    """Say in words what a run will be computed from."""
    n_prompts = sum(map(len, prompt_sets))
    sets = "1 set" if len(prompt_sets) == 1 else f"{len(prompt_sets)} sets"
    noun = "layer" if len(layers) == 1 else "layers"
    return f"{n_prompts:,} prompts in {sets}, {noun} {','.join(map(str, layers))} of {model}"


def beside_run(path: Path, end: str) -> Path:
    """Return the path of a file beside a run: RUN.END."""
    named = path if path.name not in ("", "..") else path.resolve()
    return named.parent / f"{named.name}.{end}"


def is_run(path: str) -> bool:
    """Return whether this is the directory of a run, damaged or not.

    A run without its manifest is none to read prompts from, although it has a table of them.
    """
    folder = Path(path).expanduser()
    has_tables = all(os.path.lexists(folder / name) for name in (PROMPTS_NAME, TOKENS_NAME))
    return has_tables or os.path.lexists(folder / MANIFEST)


def obtain_run(extraction: Extraction, reporter: Reporter) -> Run:
    """Open the run at `sets`, or compute the run of these prompt sets unless it exists already.

    A comparison that cannot be made raises before any computation.
    """
    sets = extraction.sets
    if is_run(sets):
        return Run.open(Path(sets).expanduser())
    prompt_sets = read_prompts(sets)
    if extraction.check_sets:
        extraction.check_sets([prompt_set.name for prompt_set in prompt_sets])
    masking = extraction.compare_under
    if masking and len(prompt_sets) < 2:
        only = prompt_sets[0].name
        raise PromptError(f"{sets} has one set ({only}): add another to compare it with")
    prompts = [prompt for prompt_set in prompt_sets for prompt in prompt_set.prompts]
    lm, saes = extraction.inputs.load(
        reporter,
        decoder=extraction.keep_errors,
        prompts=prompts,
        features=extraction.features,
    )
    if masking and not masking.keep_pos0:
        from saescope.engine.tokens import refuse_single_tokens

        refuse_single_tokens(lm, prompt_sets)
    name = Path(sets).resolve().stem
    return compute_run(lm, saes, prompt_sets, name, extraction, reporter)


def compute_run(
    lm: "LM",
    saes: "Sequence[Sae]",
    prompt_sets: Sequence[PromptSet],
    name: str,
    extraction: Extraction,
    reporter: Reporter,
) -> Run:
    """Extract into `out`, or into runs/NAME-HASH with the hash of what decides the content."""
    from saescope.engine.extract import extract, job

    batch_tokens = extraction.inputs.batch_tokens
    errors = extraction.keep_errors
    out = extraction.out
    if out is None:
        fingerprint = job(lm, saes, prompt_sets, batch_tokens, errors=errors).fingerprint
        out = Path("runs") / f"{file_name_part(name)}-{fingerprint[:12]}"
    unit = "tokens" if len(saes) == 1 else "tokens × layers"
    task = describe_extraction(prompt_sets, lm.spec.repo, [sae.spec.layer for sae in saes])
    with keeping(reporter, "features", unit, task) as advance:
        return extract(
            lm,
            saes,
            prompt_sets,
            out,
            batch_tokens=batch_tokens,
            errors=errors,
            command=extraction.command,
            progress=advance,
            hash_files=extraction.inputs.hash_files,
            note=reporter.note,
        )
