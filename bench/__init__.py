"""What measures the package and is no part of it; run from the root of a checkout.

    python -m bench.against llama-cpp       another program, in turns with us
    python -m bench.roofline roof.svg       draws what `starcoder bench --json` prints

`results/` has the figures of the experiments in `docs/log/`, a line of JSON each.
"""
