"""The LLaMA family: model, LoRA, attention, key-value cache, tokenizer, weight import."""
