"""Trained modules outside of Python: ONNX files, and packages that torch compiles ahead of time."""

from .aoti import package
from .onnx import onnx

__all__ = ["onnx", "package"]
