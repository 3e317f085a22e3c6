"""The ops: state-space kernels as functions of tensors, each with several implementations."""

from .activation import activation
from .cauchy import cauchy, cauchy_transpose
from .causal_conv1d import causal_conv1d
from .diagonal_discretize import diagonal_discretize
from .dispatch import BACKENDS, BackendUnavailableError, explain, operations, use_backend
from .dplr_discretize import dplr_discretize
from .dplr_generating import dplr_generating
from .fft_conv import fft_conv
from .gated_rms_norm import gated_rms_norm
from .selective_scan import selective_scan
from .selective_step import selective_step, selective_step_
from .ssd import ssd
from .ssm_chunk import ssm_chunk
from .ssm_conv import ssm_conv
from .ssm_conv_packed import ssm_conv_packed
from .ssm_direct import ssm_direct
from .ssm_step import ssm_step, ssm_step_
from .vandermonde import vandermonde, vandermonde_transpose

__all__ = [
    "BACKENDS",
    "BackendUnavailableError",
    "activation",
    "cauchy",
    "cauchy_transpose",
    "causal_conv1d",
    "diagonal_discretize",
    "dplr_discretize",
    "dplr_generating",
    "explain",
    "fft_conv",
    "gated_rms_norm",
    "operations",
    "selective_scan",
    "selective_step",
    "selective_step_",
    "ssd",
    "ssm_chunk",
    "ssm_conv",
    "ssm_conv_packed",
    "ssm_direct",
    "ssm_step",
    "ssm_step_",
    "use_backend",
    "vandermonde",
    "vandermonde_transpose",
]
