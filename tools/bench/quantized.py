"""What quantised weights cost in accuracy and give in memory: one model, stored in several ways.

    pip install -e '.[quantize]'
    palr import-weights --from smollm2 --to weights/smollm2
    python tools/bench/quantized.py --weights weights/smollm2

Prints the error of the weights, and what it does to the distributions of the next token over a
short text: their mean Kullback-Leibler divergence from those of the float32 model, and the mean
log-likelihood of the text. The last rows quantise the embedding and the LM head instead, which no
option does.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from palr_jax.llm import load
from palr_jax.llm.checkpoints.loading import quantization_error
from palr_jax.llm.config import Quantization
from palr_jax.llm.llama import Llama
from palr_jax.llm.quantize import dequantize, quantize

TEXT = (
    "The capital of France is Paris, which lies on the river Seine. The user watched Toy Story "
    "(1995), Jumanji (1995), Heat (1995) and GoldenEye (1995), and enjoys adventure and "
    "science-fiction movies."
)
KINDS: tuple[Quantization, ...] = ("int8", "nf4")


def logp_of(model: Llama, tokens_BT: jax.Array) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(model(tokens_BT)), np.float64)


def with_quantised_tables(model: Llama, kind: Quantization) -> Llama:
    tables = [model.embedding_VD] if model.config.tie_embeddings else [
        model.embedding_VD, model.head_VD
    ]  # fmt: skip
    for table in tables:
        (numbers_DV,), (scale_GV,) = quantize(table[...].T[None], kind, table.dtype)
        table[...] = dequantize(numbers_DV, scale_GV).T
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    exact, tokenizer = load(arguments.weights)
    if tokenizer is None:
        raise SystemExit(f"{arguments.weights} has no tokenizer")
    tokens_BT = jnp.asarray(tokenizer.encode(TEXT))[None]
    expected, next_BT1 = logp_of(exact, tokens_BT), np.asarray(tokens_BT)[:, 1:, None]

    def show(name: str, model: Llama, error: str) -> None:
        found, size = logp_of(model, tokens_BT), sum(
            leaf.size * (0.5 if leaf.dtype == jnp.uint4 else leaf.dtype.itemsize)
            for leaf in jax.tree.leaves(nnx.state(model))
        )  # fmt: skip
        divergence = (np.exp(expected) * (expected - found)).sum(-1).mean()
        nll = -np.take_along_axis(found[:, :-1], next_BT1, -1).mean()
        print(
            f"{name}: {size / 2**20:.0f} MiB, error of the linears {error}, divergence "
            f"{divergence:.5f}, log-likelihood -{nll:.4f}",
            flush=True,
        )

    show("float32", exact, "0")
    show(arguments.dtype, load(arguments.weights, arguments.dtype)[0], "of rounding alone")
    for kind in KINDS:
        mean, largest = quantization_error(arguments.weights, kind, arguments.dtype)
        model, _ = load(arguments.weights, arguments.dtype, quantization=kind)
        show(kind, model, f"{mean:.2%} (root mean square), at most {largest:.2g}")
    for kind in KINDS:
        model = with_quantised_tables(load(arguments.weights, arguments.dtype)[0], kind)
        show(f"{arguments.dtype}, but {kind} in embedding and head", model, "of rounding alone")


if __name__ == "__main__":
    main()
