"""The experiments, one module each: `run` measures, `section` writes its part of the page."""
