"""Trained modules outside of Python: ONNX files, and packages that torch compiles ahead of time."""

from .onnx import onnx

__all__ = ["onnx"]
