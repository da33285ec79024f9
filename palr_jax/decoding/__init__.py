"""Ranking with a LLaMA that can only write candidates: trie, scoring, generation."""
