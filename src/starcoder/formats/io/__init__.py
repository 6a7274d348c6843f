"""What the readers and writers of every format share: bytes in, whole files out, errors."""
