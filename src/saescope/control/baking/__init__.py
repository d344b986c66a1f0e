"""Edits put into weights, each exact or approximate and measured."""
