"""Requests as callers see them: prompts that go in, and text that comes out piece by piece."""
