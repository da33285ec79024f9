"""Fine-tuning of the ranker: the train step, the loop, its checkpoints."""
