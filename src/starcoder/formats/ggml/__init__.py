"""Legacy ggml `.bin` files: read and written."""
