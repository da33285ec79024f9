"""Reading and writing weights: Hugging Face, safetensors, GGUF, PEFT, Orbax."""
