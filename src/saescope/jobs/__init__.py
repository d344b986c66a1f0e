"""One typed request per verb, used by every surface: the CLI, a run's manifest, `rerun`, the report."""
