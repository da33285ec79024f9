"""Progress that no test looks at."""


def silent(amount: int = 1, note: str = "") -> None:
    """An `Advance` that shows nothing."""
