"""A report of made-up results, with every part."""

import numpy as np

from palr_jax.evaluation.fusion import target_rank
from palr_jax.evaluation.groups import (
    HISTORY_ENDS,
    POPULARITY_ENDS,
    lifts,
    moves,
    position,
    ranges,
    rank_ranges,
)
from palr_jax.evaluation.metrics import summary
from palr_jax.evaluation.pictures import Chart, Curve
from palr_jax.evaluation.reliability import reliability
from palr_jax.evaluation.report import SlateExample, render
from palr_jax.evaluation.results import Results

MARKUP = "<img src=x onerror=document.title='broken'> & \"Co\" 'n' (2031)"
NAMES = ("SASRec", "SASRec + popularity", "PALR_v2 with prior", "PALR_v2 + SASRec")
USERS, CANDIDATES = 400, 50


def results() -> Results:
    """The content of a results.json."""
    rng = np.random.default_rng(0)
    candidates_UC = rng.permuted(np.tile(np.arange(80), (USERS, 1)), axis=1)[:, :CANDIDATES]
    target_U = rng.integers(0, 80, USERS)
    logit_UC = 2 * rng.normal(size=candidates_UC.shape)
    logp_UC = logit_UC - np.logaddexp.reduce(logit_UC, axis=1, keepdims=True)
    before_U = position(candidates_UC, target_U)
    ranks = {NAMES[0]: np.where(before_U > CANDIDATES, 60.0, before_U)}
    for name in NAMES[1:]:
        noisy_UC = logp_UC + rng.normal(size=logp_UC.shape)
        ranks[name] = target_rank(candidates_UC, noisy_UC, target_U)
    values = {
        "history": (rng.integers(1, 60, USERS), ranges(0, HISTORY_ENDS)),
        "popularity": (rng.integers(0, 30, USERS), ranges(0, POPULARITY_ENDS)),
        "rank": (before_U, rank_ranges(CANDIDATES)),
    }
    others = {name: ranks[name] for name in NAMES[1:]}
    baseline = (NAMES[0], ranks[NAMES[0]])
    interval = {"HR@10": [-0.01, 0.02], "NDCG@10": [-0.01, 0.02]}
    return {
        "dataset": MARKUP,
        "protocol": {"users": MARKUP},
        "rows": [
            {
                "model": name,
                "users": USERS,
                **summary(rank_U),
                "ci95": dict.fromkeys(NAMES[: min(number, 2)], interval),
            }
            for number, (name, rank_U) in enumerate(ranks.items())
        ],
        "groups": {
            "metric": "NDCG@10",
            "baseline": NAMES[0],
            "models": list(others),
            "lift": {
                name: lifts(values_U, parts, baseline, others, 0, 200)
                for name, (values_U, parts) in values.items()
            },
            "moves": {
                "candidates": CANDIDATES,
                "found": int((before_U <= CANDIDATES).sum()),
                "ranks": [part.to_dict() for part in rank_ranges(CANDIDATES)[:-1]],
                "models": {
                    name: moves(before_U, rank_U, CANDIDATES) for name, rank_U in others.items()
                },
            },
            "reliability": {
                "model": NAMES[2],
                "found": int((before_U <= CANDIDATES).sum()),
                "bins": reliability(logp_UC, candidates_UC, target_U),
            },
        },
        "controls": [{"control": MARKUP, "users": USERS, "HR@10": 0.1, "NDCG@10": 0.05}],
    }


def page(given: Results) -> str:
    """The report of these results."""
    charts = [
        Chart("Ranker: loss", "step", "nats", [Curve("PALR_v2", [1, 20, 40], [3.0, 2.0, 1.5])]),
        Chart("One point", "epoch", "NDCG@10", [Curve("SASRec", [1], [0.25])]),
        Chart("Nothing", "epoch", "NDCG@10", [Curve("SASRec", [], [])]),
    ]
    slates = {name: [MARKUP, "Ran (1985)"] for name in NAMES}
    return render(given, charts, MARKUP, [SlateExample(MARKUP, MARKUP, MARKUP, slates)])
