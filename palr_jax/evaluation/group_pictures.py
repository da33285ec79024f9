"""The `groups` of results.json as pictures, with their numbers as text or tables beside them."""

import math
from collections.abc import Sequence
from dataclasses import replace

from palr_jax.evaluation.groups import FEWEST
from palr_jax.evaluation.html_tables import Cell, caption_of, escaped, number, table
from palr_jax.evaluation.metrics import SLATE
from palr_jax.evaluation.numbers import short, signed
from palr_jax.evaluation.pictures import (
    Axis,
    Point,
    axis_of,
    axis_text,
    intervals,
    key,
    scale_below,
    scatter,
)
from palr_jax.json_types import JsonObject

_PROBABILITIES = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
BY = {
    "history": ("history length", "by length of the user's history"),
    "popularity": ("interactions", "by training interactions of the test item"),
    "rank": ("rank", "by the rank that {retriever} gives the test item"),
}
"""The groupings: the title of the column of groups, and what groups the users."""


def lift_part(groups: JsonObject) -> str:
    """The lift over the retriever in each group of users, three ways of grouping."""
    retriever, models = groups["baseline"], groups["models"]
    name = escaped(retriever)
    tables = "".join(_lifts(by, groups["lift"][by], retriever, models) for by in BY)
    return (
        f"<p>NDCG@10 minus that of {name}, with its 95% interval (paired bootstrap over the users "
        f"of the group; a group of fewer than {FEWEST} users gets no interval). Right of 0 is "
        f"better.</p>{key(models)}{tables}<p class='note'>Groups by the rank that {name} gives are "
        "selected by its errors: where it ranks the test item first, another order can only lose, "
        "and beyond rank 10 only gain. They show where the lift comes from, not how large it is. "
        "A test item that is not a candidate is lost in every row.</p>"
    )


def _lifts(by: str, rows: Sequence[JsonObject], retriever: str, models: Sequence[str]) -> str:
    title, words = BY[by]
    if by == "rank":
        rows = [row if row["to"] else row | {"label": "not a candidate"} for row in rows]
    caption = f"Lift of NDCG@10, {words.format(retriever=retriever)}"
    return lift_table(caption, title, rows, retriever, models)


def lift_table(
    caption: str, title: str, rows: Sequence[JsonObject], retriever: str, models: Sequence[str]
) -> str:
    """A table with a picture of the lifts in each row.

    Args:
        caption: what the table shows.
        title: the title of its first column.
        rows: dicts of `label`, `users`, the retriever's NDCG@10 under its name, and `lift`: model
            → `mean` and `ci95`, which may be None.
        retriever: its name.
        models: at most three.
    """
    ends = [0.0]
    for row in rows:
        for lift in row["lift"].values():
            ends += [lift["mean"], *(lift["ci95"] or [])]
    axis = axis_of(ends)
    body = "".join(_lift_row(row, retriever, models, axis) for row in rows)
    head = "".join(
        f"<th scope='col' role='columnheader'>{escaped(cell)}</th>"
        for cell in (title, "users", f"NDCG@10, {retriever}")
    )
    # On phones the style lays the rows out as grids, and some browsers then forget what they are:
    # so every part has its role.
    return (
        f"<div class='scroll lift'><table role='table'>{caption_of(caption)}"
        f"<thead role='rowgroup'><tr role='row'>{head}<th scope='col' role='columnheader' "
        "class='picture'>difference, 95% interval</th></tr></thead>"
        f"<tbody role='rowgroup'>{body}</tbody><tfoot aria-hidden='true'><tr>"
        f"<td colspan='3'></td><td class='ends'>{scale_below(axis)}</td></tr></tfoot></table></div>"
    )


def _lift_row(row: JsonObject, retriever: str, models: Sequence[str], axis: Axis) -> str:
    lifts = [row["lift"][model] for model in models]
    picture = intervals(axis, [Point(lift["mean"], lift["ci95"]) for lift in lifts])
    numbers = "".join(
        f"<li class='s{index}'><span class='hidden'>{escaped(model)}: </span>"
        f"{escaped(lift_text(lift))}</li>"
        for index, (model, lift) in enumerate(zip(models, lifts, strict=True))
    )
    return (
        f"<tr role='row'><th scope='row' role='rowheader'>{escaped(row['label'])}</th>"
        f"<td role='cell'>{row['users']:,}</td><td role='cell'>{short(row[retriever])}</td>"
        f"<td role='cell' class='picture'><div class='with-numbers'>{picture}"
        f"<ul>{numbers}</ul></div></td></tr>"
    )


def lift_text(lift: JsonObject) -> str:
    """A lift with its interval, as text."""
    if lift["ci95"] is None:
        return f"{signed(lift['mean'])} (too few users)"
    low, high = map(signed, lift["ci95"])
    return f"{signed(lift['mean'])} ({low} to {high})"


def moves_part(groups: JsonObject) -> str:
    """Where the retriever had the test items, and where each ranker put them."""
    moves, retriever = groups["moves"], groups["baseline"]
    users = sum(row["users"] for row in groups["lift"]["rank"])
    tables = "".join(
        _heat(model, counts, moves["ranks"], retriever)
        for model, counts in moves["models"].items()
        if model in groups["models"][1:]
    )
    return (
        f"<p>{moves['found']:,} of {users:,} test items are among the {moves['candidates']} "
        f"candidates of {escaped(retriever)}. Cells count users. In an outlined cell the item "
        "stayed in its range; left of it the ranker raised the item, right of it lowered it. A "
        f"slate holds the ranks up to {SLATE}.</p><div class='pair'>{tables}</div>"
    )


def _heat(model: str, moves: JsonObject, ranks: Sequence[JsonObject], retriever: str) -> str:
    counts = moves["counts"]
    most = max(max(row) for row in counts) or 1
    head = "".join(f"<th scope='col'>{escaped(rank['label'])}</th>" for rank in ranks)
    body = []
    for index, (rank, row) in enumerate(zip(ranks, counts, strict=True)):
        cells = "".join(
            f"<td class='count{' same' if column == index else ''}' "
            f"style='--share:{100 * count / most:.0f}%'>{count:,}</td>"
            for column, count in enumerate(row)
        )
        label = escaped(rank["label"])
        body.append(f"<tr><th scope='row'>{label}</th>{cells}<td>{sum(row):,}</td></tr>")
    totals = "".join(f"<td>{sum(column):,}</td>" for column in zip(*counts, strict=True))
    found = sum(map(sum, counts))
    caption = (
        f"{model} raised the test item of {_share(moves['raised'], found)} users, kept its rank "
        f"for {_share(moves['kept'], found)}, lowered it for {_share(moves['lowered'], found)}"
    )
    return (
        f"<div class='scroll heat'><table>{caption_of(caption)}<thead><tr>"
        f"<th scope='col' rowspan='2'>rank by {escaped(retriever)}</th>"
        f"<th scope='colgroup' colspan='{len(ranks)}'>rank by {escaped(model)}</th>"
        f"<th scope='col' rowspan='2'>all</th></tr><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody><tfoot><tr><th scope='row'>all</th>{totals}"
        f"<td>{found:,}</td></tr></tfoot></table></div>"
    )


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.0%})" if whole else f"{part:,}"


def reliability_part(groups: JsonObject) -> str:
    """Predicted probability against observed share."""
    given, retriever = groups["reliability"], escaped(groups["baseline"])
    series = [
        [
            (one[kind]["predicted"], Point(one[kind]["observed"], one[kind]["ci95"]))
            for one in given["bins"]
            if one[kind]
        ]
        for kind in ("found", "all")
    ]
    axis = _probability_axis(
        [value for points in series for x, point in points for value in (x, *(point.ci95 or ()))]
    )
    name = (
        f"Reliability of P(candidate) of {given['model']}: the observed share by the predicted "
        "probability. The tables that follow hold the numbers."
    )
    names = [f"users whose test item is a candidate ({given['found']:,})", "all users"]
    plot = scatter(name, axis, axis, series, 1)
    tables = [
        _bins("Users whose test item is a candidate", given["bins"], "found"),
        _bins("All users", given["bins"], "all"),
    ]
    return (
        f"<p>The candidates of {escaped(given['model'])} in bins of their predicted probability, "
        "and the share of each bin that is the test item. On the dashed line both are equal. P "
        "sums to 1 over the candidates of a user, so it can be right on average only for users "
        f"whose test item {retriever} proposed; over all users it is too high by what {retriever} "
        "missed. Both axes show square roots. The bars are 95% Wilson intervals.</p>"
        f"{key(names, 1)}<div class='plot'><figure><div class='square'>{plot}</div><figcaption>"
        "Across: mean predicted P. Up: share that is the test item.</figcaption></figure>"
        f"{tables[0]}</div><details><summary>The numbers over all users</summary>{tables[1]}"
        "</details>"
    )


def _probability_axis(values: Sequence[float]) -> Axis:
    """Square roots from 0 to the first tick above all values, with room between the labels."""
    high = next((tick for tick in _PROBABILITIES[4:] if tick >= max(values, default=1.0)), 1.0)
    axis = Axis(0.0, high, [], math.sqrt)
    ticks = [high]
    for tick in reversed(_PROBABILITIES):
        if axis.at(ticks[-1]) - axis.at(tick) > 10:
            ticks.append(tick)
    return replace(axis, ticks=ticks)


def _bins(caption: str, bins: Sequence[JsonObject], kind: str) -> str:
    rows: list[list[Cell | str]] = []
    for one in bins:
        if one[kind]:
            low, high = one[kind]["ci95"]
            rows.append(
                [
                    f"{axis_text(one['from'])}–{axis_text(one['to'])}",
                    f"{one[kind]['candidates']:,}",
                    number(one[kind]["predicted"]),
                    number(one[kind]["observed"]),
                    f"{short(low)} to {short(high)}",
                ]
            )
    return table(caption, ["P", "candidates", "predicted", "observed", "95%"], rows)
