"""Charts as inline SVG.

Coordinates along the page are percentages, so a chart fills the width of its page and its text
keeps its size. Colours come from the page's style (page/report.css): they follow light and dark.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from palr_jax.evaluation.html_tables import escaped

_MARKS = (
    "<circle class='mark open' r='4'/>",
    "<circle class='mark' r='4'/>",
    "<path class='mark' d='M-5 0 0-5 5 0 0 5z'/>",
)
"""Series differ in shape as well as in colour."""


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        label: label in the legend.
        x: steps or epochs.
        y: values.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Chart:
    """A chart of curves with common axes."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Point:
    """A value with its 95% interval, if that is known."""

    value: float
    ci95: Sequence[float] | None = None


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high` with labelled ticks.

    Attributes:
        low: value at the start.
        high: value at the end.
        ticks: values that are labelled.
        scale: a growing function; distances on the axis are those of its values.
    """

    low: float
    high: float
    ticks: Sequence[float]
    scale: Callable[[float], float] = float

    def at(self, value: float) -> float:
        """Where a value is, as a percentage of the axis; at an end if beyond it."""
        low, high = self.scale(self.low), self.scale(self.high)
        inside = min(max(value, self.low), self.high)
        return 100 * (self.scale(inside) - low) / (high - low)


def axis_of(values: Sequence[float], pad: float = 0.04) -> Axis:
    """An axis that holds the values, with ticks at multiples of 1, 2 or 5 times a power of 10."""
    low, high = min(values), max(values)
    if high == low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    low, high = low - pad * (high - low), high + pad * (high - low)
    most = (high - low) / 3  # three to seven ticks
    power = 10.0 ** math.floor(math.log10(most))
    step = power * max(factor for factor in (1, 2, 5) if factor * power <= most)
    first, last = math.ceil(low / step), math.floor(high / step)
    return Axis(low, high, [tick * step for tick in range(first, last + 1)])


def axis_text(value: float) -> str:
    """A tick as text."""
    text = f"{abs(value):,.6g}"
    return ("−" if value < 0 else "") + (text[1:] if text.startswith("0.") else text)


def key(names: Sequence[str], first: int = 0) -> str:
    """The legend: a mark and a name for each series."""
    marks = "".join(
        f"<li class='s{number}'><svg aria-hidden='true'>{_line('bar', '0', '26', '7', '7')}"
        f"<svg x='13' y='7' width='1' height='1'>{_MARKS[number]}</svg></svg>{escaped(name)}</li>"
        for number, name in enumerate(names, first)
    )
    return f"<ul class='key'>{marks}</ul>"


def intervals(axis: Axis, points: Sequence[Point], line_height: int = 18) -> str:
    """Values with their intervals, one line each. The numbers must be in the text beside it."""
    height = line_height * len(points)
    parts = [_line("zero", f"{axis.at(0):.2f}%", f"{axis.at(0):.2f}%", "-5", str(height + 5))]
    for number, point in enumerate(points):
        y = line_height * number + line_height // 2
        drawn = [_mark(number, axis.at(point.value), f"{y}")]
        if point.ci95 is not None:
            low, high = (f"{axis.at(bound):.2f}%" for bound in point.ci95)
            drawn.insert(0, _line("bar", low, high, f"{y}", f"{y}"))
        parts.append(f"<g class='s{number}'>{''.join(drawn)}</g>")
    return f"<svg aria-hidden='true' width='100%' height='{height}'>{''.join(parts)}</svg>"


def scale_below(axis: Axis) -> str:
    """The labels of the axis below a column of `intervals`."""
    labels = ""
    for tick in axis.ticks:
        along = axis.at(tick)
        anchor = "start" if along < 7 else "end" if along > 93 else "middle"
        at = f"{along:.2f}%"
        labels += _line("axis", at, at, "0", "5")
        labels += f"<text x='{at}' y='18' text-anchor='{anchor}'>{axis_text(tick)}</text>"
    return (
        "<svg aria-hidden='true' width='100%' height='22'>"
        f"<line class='axis' x1='0' x2='100%' y1='0' y2='0'/>{labels}</svg>"
    )


def scatter(
    name: str, x: Axis, y: Axis, series: Sequence[Sequence[tuple[float, Point]]], first: int
) -> str:
    """Points with vertical intervals, and the line of equal x and y.

    Args:
        name: what a screen reader reads instead.
        x: axis along the page.
        y: axis up the page.
        series: (x, value and interval) of each point of each series.
        first: number of the first series, which decides its colour and shape.
    """
    parts = [_line("zero", "0%", "100%", "100%", "0%")]
    for number, points in enumerate(series, first):
        drawn = []
        for across, point in points:
            at = f"{x.at(across):.2f}%"
            if point.ci95 is not None:
                low, high = (f"{100 - y.at(bound):.2f}%" for bound in point.ci95)
                drawn.append(_line("bar", at, at, low, high))
            drawn.append(_mark(number, x.at(across), f"{100 - y.at(point.value):.2f}%"))
        parts.append(f"<g class='s{number}'>{''.join(drawn)}</g>")
    return _framed(name, x, y, "".join(parts), "100%")


def curves(chart: Chart) -> str:
    """A chart of curves as a figure, with its legend."""
    drawn = [curve for curve in chart.curves if len(curve.x)]
    if not drawn:
        return ""
    x = axis_of([value for curve in drawn for value in curve.x], 0)
    y = axis_of([value for curve in drawn for value in curve.y])
    lines = "".join(
        f"<polyline class='curve s{number}' points='"
        + " ".join(
            f"{x.at(a):.2f},{100 - y.at(b):.2f}" for a, b in zip(curve.x, curve.y, strict=True)
        )
        + "'/>"
        for number, curve in enumerate(drawn, 1)
    )
    ends = "; ".join(
        f"{curve.label}: {curve.y[0]:.4g} at {chart.x_label} {curve.x[0]:,g}, "
        f"{curve.y[-1]:.4g} at {curve.x[-1]:,g}"
        for curve in drawn
    )
    stretched = f"<svg viewBox='0 0 100 100' preserveAspectRatio='none'>{lines}</svg>" + "".join(
        f"<g class='s{number}'>"
        f"{_mark(number, x.at(curve.x[-1]), f'{100 - y.at(curve.y[-1]):.2f}%')}</g>"
        for number, curve in enumerate(drawn, 1)
    )
    name = f"{chart.title}. {ends}"
    return (
        f"<figure><figcaption>{escaped(chart.title)}. Across: {escaped(chart.x_label)}. Up: "
        f"{escaped(chart.y_label)}.</figcaption>{key([curve.label for curve in drawn], 1)}"
        f"{_framed(name, x, y, stretched, '220')}</figure>"
    )


def _framed(name: str, x: Axis, y: Axis, inside: str, height: str) -> str:
    """What is drawn, in a frame with labelled axes: left 13%, bottom 12% are for the labels."""
    left, right, top, bottom = 13, 97, 3, 88
    labels = []
    for tick in x.ticks:
        at = f"{left + x.at(tick) * (right - left) / 100:.2f}%"
        labels.append(_line("grid", at, at, f"{top}%", f"{bottom}%"))
        labels.append(
            f"<text x='{at}' y='{bottom}%' dy='16' text-anchor='middle'>{axis_text(tick)}</text>"
        )
    for tick in y.ticks:
        at = f"{bottom - y.at(tick) * (bottom - top) / 100:.2f}%"
        labels.append(_line("grid", f"{left}%", f"{right}%", at, at))
        labels.append(
            f"<text x='{left}%' dx='-6' y='{at}' dy='4' text-anchor='end'>{axis_text(tick)}</text>"
        )
    return (
        f"<svg role='img' aria-label='{escaped(name)}' width='100%' height='{height}'>"
        f"{''.join(labels)}<svg x='{left}%' y='{top}%' width='{right - left}%' "
        f"height='{bottom - top}%' overflow='visible'>{inside}</svg></svg>"
    )


def _line(kind: str, x1: str, x2: str, y1: str, y2: str) -> str:
    return f"<line class='{kind}' x1='{x1}' x2='{x2}' y1='{y1}' y2='{y2}'/>"


def _mark(number: int, x: float, y: str) -> str:
    return f"<svg x='{x:.2f}%' y='{y}' width='1' height='1'>{_MARKS[number]}</svg>"
