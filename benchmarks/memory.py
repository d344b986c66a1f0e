"""Peak memory of a process: all of it, anonymous pages, and pages mapped from files."""

import re
import threading
from pathlib import Path
from types import TracebackType

_POLL_SECONDS = 0.01
_LINE = re.compile(rb"(VmHWM|RssAnon|RssFile):\s*(\d+) kB")
_NAMES = {b"VmHWM": "peak_rss", b"RssAnon": "peak_anonymous", b"RssFile": "peak_file"}


class Memory:
    """Peaks in bytes while the block runs, of this process or of `pid`, sampled every 10 ms."""

    def __init__(self, pid: int | None = None) -> None:
        self.peak: dict[str, float] = dict.fromkeys(_NAMES.values(), 0)
        self._status = Path("/proc/self/status" if pid is None else f"/proc/{pid}/status")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        with self._status.open("rb", buffering=0) as status:
            while True:
                ended = self._ended.wait(_POLL_SECONDS)
                try:
                    status.seek(0)
                    lines = _LINE.findall(status.read())
                except ProcessLookupError:  # the process ended
                    return
                for field, kilobytes in lines:
                    name = _NAMES[field]
                    self.peak[name] = max(self.peak[name], 1024 * int(kilobytes))
                if ended:
                    return
