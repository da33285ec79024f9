"""The ranker: base model, prompts, scores of candidates, explanations, export."""
