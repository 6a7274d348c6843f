"""Hugging Face directories: weights, config and vocabulary, whichever files hold them. Read only."""
