"""Requests that ask something of a run, and how a manifest becomes such a question."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from saescope.errors import RunError, SaescopeError
from saescope.jobs.contrast import ContrastRequest
from saescope.jobs.detect import DetectRequest
from saescope.jobs.earlier import upgrade
from saescope.jobs.fitness import FitnessRequest
from saescope.jobs.layers import LayersRequest
from saescope.jobs.precision import PrecisionRequest
from saescope.jobs.profile import ProfileRequest
from saescope.jobs.request import Request
from saescope.store.runs import Run
from saescope.table import Table

# Only these make runs and stand in manifests.
QUESTIONS: Mapping[str, type[Request]] = {
    request.verb: request
    for request in (
        ContrastRequest,
        DetectRequest,
        FitnessRequest,
        LayersRequest,
        PrecisionRequest,
        ProfileRequest,
    )
}


@runtime_checkable
class Question(Protocol):
    """A request that a stored run can answer."""

    def ask(self, run: Run) -> Table:
        """Return the answer; needs no model."""


def read_command(command: Any, run: Path) -> Question | None:
    """Read a manifest's command as a request; None if it asks nothing, such as `extract`.

    Raises RunError if the command is damaged.
    """
    try:
        verb = command["verb"]
        if verb not in QUESTIONS:
            return None
        values = command["request"] if "request" in command else upgrade(verb, command["options"])
        question = QUESTIONS[verb].from_dict(values)
    except (KeyError, TypeError, ValueError, SaescopeError) as error:
        raise RunError(
            f"the manifest of {run} is damaged: its command cannot be read; recompute the run"
        ) from error
    if not isinstance(question, Question):
        raise TypeError(f"{verb} is registered as a question and cannot be asked of a run")
    return question
