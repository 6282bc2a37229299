"""Batches, balanced sampling, the training loop (DDP), checkpoints, evaluation."""
