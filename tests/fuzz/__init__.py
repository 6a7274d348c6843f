"""Damaged models from seeds, and a judge of what becomes of them: `python -m tests.fuzz`."""
