"""Every capability on hybrid models, experts and images: as docs/architectures.md shows it."""

from pathlib import Path

import pytest

import architectures
import kinds
from test_architectures import one_thread

__all__ = ["one_thread"]


@pytest.mark.slow
@pytest.mark.parametrize("model", kinds.MIXED)
def test_row_is_what_the_page_shows(model: str, tmp_path: Path) -> None:
    assert architectures.row_of(model, tmp_path) == architectures.shown(model)
