"""Instruction data as tokens: templates, tasks, profiles, the grain pipeline."""
