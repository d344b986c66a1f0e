"""Everything that makes the tiny language model this project ships: its text and its training."""
