"""One typed request per verb, for the CLI, a run's manifest, `rerun` and the report."""
