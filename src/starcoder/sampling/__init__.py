"""From logits to a token: the options of a request, and the draw."""
