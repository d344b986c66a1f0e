"""Constructed languages of our own: what their words sound like, and how they say the meanings of the grammar.

Nothing is taken from any other constructed language: every root and ending is drawn from a tongue's own sounds.
"""
