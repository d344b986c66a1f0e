"""What edits do to a behaviour and to everything else, beside controls, and which of them to choose."""
