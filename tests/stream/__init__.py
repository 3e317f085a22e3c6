"""Saved steps, and the C library that runs them."""
