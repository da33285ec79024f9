"""The types of JSON: plain data that is written to and read from files and other processes."""

from typing import Any, TypeAlias

Json: TypeAlias = Any
"""None, a bool, a number, a text, or a list or dict of such values.

A value that was read can be any of them: code that takes it apart checks it, or does so where every
error becomes a `UserError` (see `io.files.reading`). The parts of known values have types of their
own, for example `evaluation.results.Results`.
"""

JsonObject: TypeAlias = dict[str, Json]
"""A JSON object."""
