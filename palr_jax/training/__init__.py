"""Fine-tuning: the train step, the loop, its checkpoints."""
