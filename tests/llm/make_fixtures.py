"""Writes fixtures/logits.npz with transformers and peft: python -m tests.llm.make_fixtures"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.llm.variants import FIXTURES, KEPT, TOKENS, VARIANTS, write_adapter, write_checkpoint


def main() -> None:
    logits = {}
    for name, config in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            base = Path(folder) / "base"
            write_checkpoint(base, config)
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            logits[name] = run(model)
            if name == "llama3":
                write_adapter(Path(folder) / "adapter", config, base)
                adapted = PeftModel.from_pretrained(model, Path(folder) / "adapter")
                logits["llama3 with adapter"] = run(adapted)
    FIXTURES.mkdir(exist_ok=True)
    np.savez_compressed(FIXTURES / "logits.npz", **logits)  # type: ignore[arg-type]  # the stub requires `allow_pickle`


def run(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()[:, KEPT]


if __name__ == "__main__":
    main()
