"""What edits do: arms on the same prompts, judges of replies, and a verdict from figures."""
