"""Text of unknown origin, made harmless to look at."""


def visible(text: str) -> str:
    """Control, direction and other invisible characters as escapes, all else as it is."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
