"""Metrics as text, with four decimals and without the zero before the point: ".0703"."""


def short(value: float, sign: str = "") -> str:
    """A metric as text; with `sign` "+", positive numbers get a sign too."""
    text = f"{value:{sign}.4f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.99995 else text


def signed(value: float) -> str:
    """A difference as text, with a minus as wide as a plus."""
    return short(value, "+").replace("-", "−")
