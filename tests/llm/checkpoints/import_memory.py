"""Measures the memory that loading a synthetic checkpoint takes, in a separate process.

    python -m tests.llm.checkpoints.import_memory LAYERS DIM FFN [DTYPE [QUANTISATION]]

Prints JSON, in bytes: `arrays` (the parameters), `tensor` (the largest tensor of the checkpoint as
it is stored), `above` (the peak of resident memory minus the memory before and the arrays).
"""

import ctypes
import gc
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from palr_jax.llm.checkpoints.hf_config import to_hf
from palr_jax.llm.checkpoints.loading import read_checkpoint
from palr_jax.llm.checkpoints.safetensors_file import write_file
from palr_jax.llm.checkpoints.stored import Stored
from palr_jax.llm.checkpoints.weights import base_parameters, tensor_name
from palr_jax.llm.config import LlamaConfig, Quantization


def write_fake(folder: Path, config: LlamaConfig) -> int:
    """Writes a bfloat16 checkpoint of this shape and returns the bytes of its largest tensor."""
    tensors = []
    kind = np.dtype(ml_dtypes.bfloat16)
    for path, shape in base_parameters(config).items():
        stacked = path[0] == "layers"
        one = shape[1:] if stacked else shape
        one = one[::-1] if path[-1] == "kernel_IO" else one
        for layer in range(shape[0] if stacked else 1):
            filled = Stored(one, kind, partial(np.full, one, layer, kind))
            tensors.append((tensor_name(path, layer), filled))
    write_file(folder / "model.safetensors", tensors, {})
    (folder / "config.json").write_text(json.dumps(to_hf(config)))
    return max(tensor.nbytes for _, tensor in tensors)


def status(key: str) -> int:
    """A figure of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def main(
    layers: int, dim: int, ffn: int, dtype: str = "bfloat16", quantization: Quantization = "none"
) -> None:
    config = LlamaConfig(
        vocab_size=1000, dim=dim, num_layers=layers, num_heads=8, num_kv_heads=8,
        head_dim=dim // 8, ffn_dim=ffn, max_length=64,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        tensor = write_fake(Path(folder), config)
        read = partial(read_checkpoint, Path(folder), dtype, quantization=quantization)
        read()  # compiles all programs
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what the first load has freed goes back
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        arrays = jax.block_until_ready(read().arrays)
        peak = status("VmHWM")
    size = sum(array.nbytes for array in arrays.values())
    for path, array in arrays.items():
        if path[0] == "layers" and quantization == "none":
            assert [float(array[layer].max()) for layer in range(layers)] == list(range(layers))
    print(json.dumps({"arrays": size, "tensor": tensor, "above": peak - before - size}))


if __name__ == "__main__":
    layers, dim, ffn = map(int, sys.argv[1:4])
    main(layers, dim, ffn, *sys.argv[4:])  # type: ignore[arg-type]
