"""GGUF, the format of llama.cpp: read and written."""
