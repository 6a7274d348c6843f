"""Speed: one model timed beside what the machine can do, and beside other programs.

`runner` times, `session` orders the runs, `result` says what the times mean; `synthetic` makes a
model where there is no file, `rival` talks to other programs, `roofline` draws. The command is in
`cli.bench`.
"""
