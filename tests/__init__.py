"""The tests, their helpers, the slow reference and the fuzzer, as a package."""
