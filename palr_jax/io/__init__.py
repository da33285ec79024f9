"""Files, paths, checkpoints, locks and progress: what the package reads, writes and prints."""
