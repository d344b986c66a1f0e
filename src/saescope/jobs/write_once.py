"""Write a result once: a second equal command at the same moment takes the first one's result."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from saescope.errors import ResourceError
from saescope.jobs.reporter import Reporter
from saescope.jobs.request import Request
from saescope.sources.file_cache import recall, remember
from saescope.sources.locks import one_writer
from saescope.store.atomic import refuse_existing
from saescope.store.resume_cache import key_of

Result = TypeVar("Result")


def write_once(
    request: Request, out: Path, kind: type[Result], reporter: Reporter, write: Callable[[], Result]
) -> Result:
    """Return the result of `write`, which writes the new `out`.

    If an equal command is writing there, waits for it and returns its result. Raises ResourceError
    if another one is, or if `out` exists.
    """
    key = request_key(request)
    place = f"results/{hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:32]}"
    with one_writer(out, key, reporter.note) as turn:
        stored = recall(place)
        if out.exists() and stored.get("writer") in turn.waited_for:
            result = _read(kind, stored.get("result"), out)
            reporter.note(f"{out} was written by the command that was waited for")
        else:
            refuse_existing(out)
            result = write()
        # For equal commands that wait now.
        remember(place, {"writer": turn.token, "result": _plain(kind, result)})
        return result


def request_key(request: Request) -> str:
    """Return what equal requests have in common, if they run in the same folder."""
    return key_of(request.verb, request.to_dict(), str(Path.cwd()))


def _plain(kind: type[Result], result: Result) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind).dump_python(result, mode="json")


def _read(kind: type[Result], plain: Any, out: Path) -> Result:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        raise ResourceError(
            f"{out} was just written by the same command: it is complete"
        ) from error
