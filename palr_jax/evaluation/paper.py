"""Table 2 of the paper: (HR@10, NDCG@10) per data set and model."""

PAPER: dict[str, dict[str, tuple[float, float]]] = {
    "ML-1M": {
        "BPR-MF": (0.0354, 0.0158),
        "NCF": (0.0313, 0.0143),
        "GRU4Rec": (0.1017, 0.0468),
        "Caser": (0.1338, 0.0614),
        "SASRec": (0.1978, 0.1192),
        "PALR_v1": (0.1216, 0.0569),
        "PALR_v2": (0.2110, 0.1276),
    },
    "Beauty": {
        "BPR-MF": (0.0299, 0.0122),
        "NCF": (0.0293, 0.0130),
        "GRU4Rec": (0.0194, 0.0091),
        "Caser": (0.0282, 0.0136),
        "SASRec": (0.0617, 0.0283),
        "PALR_v1": (0.0181, 0.0101),
        "PALR_v2": (0.0721, 0.0446),
    },
}
