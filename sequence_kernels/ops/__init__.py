"""The ops: state-space kernels as functions of tensors, each with several implementations."""

from .cauchy import cauchy, cauchy_transpose
from .dispatch import BACKENDS, BackendUnavailableError, explain, operations, use_backend
from .vandermonde import vandermonde, vandermonde_transpose

__all__ = [
    "BACKENDS",
    "BackendUnavailableError",
    "cauchy",
    "cauchy_transpose",
    "explain",
    "operations",
    "use_backend",
    "vandermonde",
    "vandermonde_transpose",
]
