"""Python code that the project writes itself: random snippets from a small grammar."""

from .text import document, held_out_prompts

__all__ = ["document", "held_out_prompts"]
