"""The proof on real models: fetch, convert, train, measure, and write docs/real-models.md."""
