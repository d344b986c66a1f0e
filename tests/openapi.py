"""The OpenAPI document of the server. `python -m tests.openapi` writes it to docs/openapi.json."""

import json
import tempfile
from pathlib import Path

from saescope.surfaces.server.app import build_app
from saescope.surfaces.server.serve import ServeRequest

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "openapi.json"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        service = ServeRequest(dir=Path(folder)).open_service()
        text = json.dumps(build_app(service).openapi(), indent=1, ensure_ascii=False)
        service.scheduler.close()
    DOCUMENT.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
