"""Peaks of a process's memory, told apart by whether its pages lie in files."""

import re
import threading
from pathlib import Path
from types import TracebackType

_POLL_SECONDS = 0.01
_LINE = re.compile(rb"(VmHWM|RssAnon|RssFile):\s*(\d+) kB")
_NAMES = {b"VmHWM": "peak_rss", b"RssAnon": "peak_anonymous", b"RssFile": "peak_file"}


class Memory:
    """Peaks in bytes of this process or another one, looked at every 10 ms while the block runs."""

    def __init__(self, pid: int | None = None) -> None:
        self.peak: dict[str, float] = dict.fromkeys(_NAMES.values(), 0)
        self._status = Path(f"/proc/{'self' if pid is None else pid}/status")
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
                    found = _LINE.findall(status.read())
                except ProcessLookupError:  # it ended meanwhile
                    return
                for name, kilobytes in found:
                    self.peak[_NAMES[name]] = max(self.peak[_NAMES[name]], 1024 * int(kilobytes))
                if ended:
                    return
