"""Tokenizers: SentencePiece, Hugging Face JSON, GGUF."""
