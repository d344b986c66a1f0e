"""The HTTP server: OpenAI's API with steering as a field of the request."""
