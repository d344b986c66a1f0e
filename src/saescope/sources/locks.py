"""One writer per result: locks that the operating system releases when their holder dies.

Lock files lie in the user's cache folder, not beside the results. A result's folder then holds
nothing but results, also after a kill, and may be on a filesystem that has no locks. The price:
another user, or a process with another cache folder, is not kept out.
"""

import errno
import hashlib
import json
import logging
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex

from filelock import FileLock, Timeout

from saescope.errors import ResourceError
from saescope.sources.file_cache import cache_folder
from saescope.sources.whole_files import is_alive

_POLL_SECONDS = 0.05
# A process writes who it is right after it takes a lock; until then it has no name.
_SECONDS_WITHOUT_NAME = 1.0
_held = threading.local()
_log = logging.getLogger("saescope")

Note = Callable[[str], None]


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: a process, and the request it works on."""

    pid: int
    host: str
    request: str
    token: str
    "Different for each time that a lock is taken."

    def __str__(self) -> str:
        if self.host != platform.node():
            return f"process {self.pid} on {self.host}"
        return f"process {self.pid}"


@dataclass(frozen=True)
class Turn:
    """The right to write one result."""

    token: str

    waited_for: frozenset[str] = frozenset()
    "Tokens of those that wrote the same request's result before."


@contextmanager
def one_writer(
    target: Path,
    request: str = "",
    note: Note | None = None,
    while_waiting: Callable[[], None] | None = None,
) -> Iterator[Turn]:
    """Hold the right to write `target`; other processes and threads wait until the block ends.

    `request` identifies what is written. While another request's result is being written there,
    raises ResourceError with the process id. `note` gets one line before it waits (default: the
    logger `saescope`), and `while_waiting` is called again and again. Blocks of one thread may be
    nested.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with one_writer(Path(folder) / "run") as turn:
    ...         turn.waited_for
    frozenset()
    """
    place = _canonical(target)
    held = _held_here()
    if place in held:
        yield held[place]
        return
    note = note or _log.warning
    lock = _open_lock(target, place, note)
    turn = Turn(token_hex(8))
    if lock is not None:
        turn = _wait(lock, target, request, note, while_waiting)
    with _holding(lock, place, turn):
        yield turn


@contextmanager
def claimed(target: Path, request: str) -> Iterator[None]:
    """Keep other requests from writing `target` during the block, which writes it at its end.

    Raises ResourceError if another request's result is being written there. If the same request's
    is, this does not wait: the block computes what it can, and waits when it writes.
    """
    place = _canonical(target)
    lock = None if place in _held_here() else _open_lock(target, place, _log.warning)
    if lock is None or not lock.is_locked:
        if lock is not None:
            _refuse_other_request(_read_holder(lock), target, request)
        yield
        return
    with _holding(lock, place, _sign(lock, request, frozenset())):
        yield


@contextmanager
def _holding(lock: FileLock | None, place: str, turn: Turn) -> Iterator[None]:
    held = _held_here()
    held[place] = turn
    pid = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == pid:  # a forked child ends the block, but its parent holds the lock
            del held[place]
            if lock is not None:
                _release(lock, turn)


def _held_here() -> dict[str, Turn]:
    """Return what this thread may write; a forked child does not hold what its parent holds."""
    if getattr(_held, "pid", None) != os.getpid():
        _held.pid, _held.turns = os.getpid(), {}
    turns: dict[str, Turn] = _held.turns
    return turns


def _canonical(target: Path) -> str:
    """Return the one name of a path, whichever links lead to it; its last part need not exist."""
    path = Path(os.path.abspath(target.expanduser()))
    return str(path.parent.resolve() / path.name)


def _open_lock(target: Path, place: str, note: Note) -> FileLock | None:
    """Return the lock of a place, or None, after a note, if this machine cannot lock files."""
    name = hashlib.sha256(os.fsencode(place)).hexdigest()[:32] + ".lock"
    reason = ""
    for folder in (cache_folder() / "locks", _temporary_folder()):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_foreign(folder)
            # A soft lock would outlive a killed holder: better none, and a word about it.
            lock = FileLock(folder / name, thread_local=False, fallback_to_soft=False)
            with suppress(Timeout):
                lock.acquire(blocking=False)
            _remove_abandoned(folder)
            return lock
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or str(error)
    note(f"cannot lock {target} ({reason}): run no other command that writes there meanwhile")
    return None


def _remove_abandoned(folder: Path) -> None:
    """Remove the locks of killed processes."""
    for path in folder.glob("*.lock"):
        holder = _read_name(path)
        if holder is not None and not _is_alive(holder):
            with suppress(OSError):
                lock = FileLock(path, thread_local=False, fallback_to_soft=False)
                if _take(lock):
                    _release(lock)


def _temporary_folder() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"saescope-locks-{user}"


def _refuse_foreign(folder: Path) -> None:
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise PermissionError(errno.EACCES, "it belongs to another user", str(folder))


def _wait(
    lock: FileLock,
    target: Path,
    request: str,
    note: Note,
    while_waiting: Callable[[], None] | None,
) -> Turn:
    """Take the lock, waiting for its holder if that makes sense."""
    waited_for: set[str] = set()
    noted = ""
    started = time.monotonic()
    while not _take(lock):
        holder = _read_holder(lock)
        if holder is not None or time.monotonic() - started > _SECONDS_WITHOUT_NAME:
            _refuse_other_request(holder, target, request)
            if holder is not None and request and holder.request == request:
                waited_for.add(holder.token)
            writer = _name(holder)
            if writer != noted:
                note(f"waiting for {writer}, which is writing {target}")
                noted = writer
        if while_waiting is not None:
            while_waiting()
        time.sleep(_POLL_SECONDS)
    return _sign(lock, request, frozenset(waited_for))


def _refuse_other_request(holder: Holder | None, target: Path, request: str) -> None:
    if holder is not None and request and holder.request not in ("", request):
        raise ResourceError(
            f"{target} is being written by {_name(holder)}, for another request: "
            "choose another place, or wait until it has ended"
        )


def _sign(lock: FileLock, request: str, waited_for: frozenset[str]) -> Turn:
    """Write into the lock who holds it."""
    turn = Turn(token_hex(8), waited_for)
    me = Holder(os.getpid(), platform.node(), request, turn.token)
    with suppress(OSError):  # a full disk: the lock holds, without a name
        Path(lock.lock_file).write_text(json.dumps(asdict(me)), encoding="utf-8")
    return turn


def _take(lock: FileLock) -> bool:
    if not lock.is_locked:
        with suppress(Timeout):
            lock.acquire(blocking=False)
    return lock.is_locked


def _name(holder: Holder | None) -> str:
    if holder is None:
        return "another process"
    if holder.pid == os.getpid() and holder.host == platform.node():
        return f"another thread of this process ({holder.pid})"
    return str(holder)


def _read_holder(lock: FileLock) -> Holder | None:
    holder = _read_name(Path(lock.lock_file))
    return holder if holder is not None and _is_alive(holder) else None


def _read_name(path: Path) -> Holder | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Holder(
            int(values["pid"]), str(values["host"]), str(values["request"]), str(values["token"])
        )
    except (OSError, ValueError, TypeError, KeyError):  # not written yet, or removed by now
        return None


def _is_alive(holder: Holder) -> bool:
    """Return False for a killed holder, whose name stays until the next one writes its own."""
    return holder.host != platform.node() or is_alive(holder.pid)


def _release(lock: FileLock, turn: Turn | None = None) -> None:
    path = Path(lock.lock_file)
    holder = _read_name(path)
    # Somebody may have emptied the cache folder: then this is the lock of another writer.
    is_ours = holder is None or turn is None or holder.token == turn.token
    # Removed while it is still held: whoever has opened it meanwhile sees that it has no name any
    # more, and takes the next one.
    if is_ours and os.name == "posix":
        with suppress(OSError):
            path.unlink()
    lock.release()
