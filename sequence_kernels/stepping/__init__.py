"""Modules made ready to run through time, one step or one block after another."""
