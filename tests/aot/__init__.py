"""Ahead-of-time gate: every GPU kernel compiles for every architecture, within a budget of registers, spilled bytes and
shared memory. No GPU and no driver is needed.

``python -m tests.aot write`` measures what has changed and writes budget.json, which is reviewed like code; with
``--all`` it measures everything. ``python -m tests.aot check`` compiles every kernel for the fast targets, with
``--all`` for all, and exits with 1 where one does not fit its budget; ``check triton`` leaves nvcc out. With another
version of a compiler than the one that wrote the budget, a kernel must not spill; what else it uses is free.
"""
