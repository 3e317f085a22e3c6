"""Ahead-of-time gate: every GPU kernel compiles for every architecture, within a budget of registers, spilled bytes and
shared memory. No GPU and no driver is needed.

``python -m tests.aot write`` measures and writes budget.json, which is reviewed like code.
"""
