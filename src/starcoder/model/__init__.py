"""Models: what an architecture declares, what a file brings, and the graph that comes of both."""
