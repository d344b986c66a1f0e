"""Text of unknown origin, made safe to display."""


def visible(text: str) -> str:
    """Escape control characters, changes of direction and other invisible characters."""
    return "".join(map(_visible_character, text))


def escaped_json(text: str) -> str:
    r"""The same JSON, with `\u` in the place of characters that could move or colour a terminal.

    JSON itself escapes only those below a space.
    """
    if text.isprintable():
        return text
    return "".join(map(_json_character, text))


def _json_character(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[n]:02x}{units[n + 1]:02x}" for n in range(0, len(units), 2))


def _visible_character(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
