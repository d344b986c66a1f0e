"""Right answers that come with prompt sets: `answers.json` in a folder or beside a file."""

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from saescope.errors import PromptError
from saescope.sources.mistaken import refuse_folder
from saescope.sources.prompt_sets import BUNDLES, read_prompts, split_sources
from saescope.sources.prompts import Prompt
from saescope.sources.regular_files import read_json

ANSWERS = "answers.json"
# Bundles that come with answers.
_ANSWERED = ("requests",)


def known_answers(prompts: Iterable[Prompt], sets: str | None = None) -> dict[str, str]:
    """Return the right answers, by prompt id, of the prompts that have one; may be empty.

    `sets` says where the prompts were read from. Bundled prompts are known without it. An answer
    counts only for the very prompt that it came with: the same id with another text has none.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    answers: dict[str, str] = {}
    for source in (*split_sources(sets or ""), *_ANSWERED):
        beside = _answers_of(source)
        if not beside or beside.keys().isdisjoint(by_id):
            continue
        for prompt in _prompts_of(source):
            same = by_id.get(prompt.id)
            if same is not None and prompt.id in beside and _content(same) == _content(prompt):
                answers.setdefault(prompt.id, beside[prompt.id])
    return answers


def read_answers(path: Path) -> dict[str, str]:
    """Read right answers by prompt id; raises PromptError if the file holds anything else."""
    path = path.expanduser()
    refuse_folder(path, PromptError, "a JSON file of answers by prompt id")
    try:
        answers = read_json(path)
    except (OSError, ValueError) as error:
        raise PromptError(f"{path} cannot be read as JSON: {error}") from error
    if not _is_answers(answers):
        raise PromptError(f'{path}: answers are given by prompt id: {{"q-01": "The hill."}}')
    return dict(answers)


def _answers_of(source: str) -> Mapping[str, str]:
    """Return the answers that come with a source; none if there is no file of answers."""
    path = Path(source).expanduser()
    if not path.exists():
        return _bundled_answers(source) if source in _ANSWERED else {}
    beside = (path if path.is_dir() else path.parent) / ANSWERS
    if beside == path or not beside.is_file():
        return {}
    try:
        return read_answers(beside)
    except PromptError:  # a file of that name may be anything
        return {}


def _bundled_answers(bundle: str) -> Mapping[str, str]:
    inner = Path(BUNDLES[bundle]).parent / ANSWERS
    with resources.as_file(resources.files("saescope.demo") / str(inner)) as path:
        return read_answers(path)


def _prompts_of(source: str) -> Sequence[Prompt]:
    try:
        return [prompt for prompt_set in read_prompts(source) for prompt in prompt_set.prompts]
    except PromptError:  # the source may have changed since a run was made of it
        return []


def _content(prompt: Prompt) -> tuple[object, ...]:
    return prompt.text, prompt.messages


def _is_answers(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(answer, str) for answer in value.values())
