"""Serving: a finished run behind HTTP, with a page to try it on."""
