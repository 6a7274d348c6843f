"""Makes the files in `data` that other programs write, where those are installed."""
