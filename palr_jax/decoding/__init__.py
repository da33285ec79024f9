"""Ranking with a LLaMA constrained to write candidates: trie, scoring, generation."""
