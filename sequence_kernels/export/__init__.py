"""Trained modules outside of Python."""

from .onnx import onnx

__all__ = ["onnx"]
