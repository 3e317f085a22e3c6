"""Side-by-side speed and memory measurements; `python -m bench --help` says what can be asked.

Every module beside this one that holds a `BENCH` measures one operation: adding one is adding a file.
"""
