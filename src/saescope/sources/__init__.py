"""What goes in: prompts, models and SAEs, and where they come from."""
