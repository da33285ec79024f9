"""The limits of one request."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The largest request that is answered.

    Attributes:
        body_bytes: of a request.
        header_seconds: time in which the headers have to arrive.
        body_seconds: time in which the body has to arrive after them.
        histories: of a request.
        history: items of a history.
        candidates: of a list in a request.
        exclude: excluded items per history.
        title: characters of a title or an id.
        shown: items that a search returns.
    """

    body_bytes: int = 1_000_000
    header_seconds: float = 10.0
    body_seconds: float = 10.0
    histories: int = 64
    history: int = 500
    candidates: int = 128
    exclude: int = 64
    title: int = 1_000
    shown: int = 50


class FieldError(Exception):
    """A request with a field that cannot be answered.

    Attributes:
        field: its path in the request, such as `histories[0][2]`.
        nearest: names that may have been meant.
    """

    def __init__(self, field: str, message: str, nearest: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.field, self.nearest = field, nearest
