"""Kernels prove themselves where they are used."""
