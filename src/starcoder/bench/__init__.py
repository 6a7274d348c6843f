"""Speed: one model timed beside what the machine can do.

`sources` finds the model, `synthetic` makes one where there is no file, `runner` times, `session`
orders the runs, `result` says what the times mean. The command is in `cli.bench`. What only a
checkout needs, other programs and drawings, is in `bench/` at the root.
"""
