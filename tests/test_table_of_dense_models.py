"""Every capability on every dense architecture: as docs/architectures.md shows it."""

from pathlib import Path

import pytest

import architectures
import kinds
from test_architectures import one_thread

__all__ = ["one_thread"]


@pytest.mark.slow
@pytest.mark.parametrize("model", kinds.DENSE)
def test_row_is_what_the_page_shows(model: str, tmp_path: Path) -> None:
    assert architectures.row_of(model, tmp_path) == architectures.shown(model)


def test_the_page_is_made_of_its_rows() -> None:
    page = architectures.PAGE.read_text(encoding="utf-8")
    rows = architectures.read(page)
    assert list(rows) == list(kinds.KINDS)
    assert architectures.render(rows) == page
