"""Scripts written without spaces are distinguished from those with spaces."""

import pytest

from saescope.sources.scripts import is_unspaced


@pytest.mark.parametrize("text", ["漢々", "ひらカﾊー", "ㄅ", "ไทย", "ລາວ", "ខ្មែរ", "မြန်မာ", "བོད"])
def test_letters_of_unspaced_scripts(text: str) -> None:
    assert all(map(is_unspaced, text))


@pytest.mark.parametrize("text", ["Latin", "кириллица", "한글", "हिन्दी", "עברית", "42 .\n"])
def test_letters_of_scripts_with_spaces(text: str) -> None:
    assert not any(map(is_unspaced, text))
