"""Our own constructed languages: their sounds, and how they express the meanings of the grammar.

Nothing comes from other constructed languages: each root and ending is drawn from own sounds.
"""
