"""The stages of a run: prepare, retrieve, profile, finetune, evaluate."""
