"""Text of unknown origin, made safe to display."""


def visible(text: str) -> str:
    """Escape control characters, changes of direction and other invisible characters."""
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
