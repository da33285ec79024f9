"""Weights in and out: Hugging Face, safetensors, GGUF, PEFT, Orbax."""
