"""Hugging Face directories: weights, config and vocabulary, whatever holds them. Read only."""
