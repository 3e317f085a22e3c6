"""State-space models: initial values, discretisation, and from parameters to kernels and chunk matrices."""

from .convolve import choose_convolution, chunk_matrices, convolve
from .diagonal import DISCRETIZATIONS, DiagonalSSM, DiagonalSystem, SampledDiagonalSystem, discretize
from .dplr import DPLRSSM, DPLRSystem
from .frozen import FrozenSystem
from .hippo import DiagonalInit, DPLRInit, diagonal_init, dplr_init, hippo_matrices
from .kernel import SSKernel
from .system import ChunkMatrices, System
from .uneven import convolve_unevenly

__all__ = [
    "DISCRETIZATIONS",
    "DPLRSSM",
    "ChunkMatrices",
    "DPLRInit",
    "DPLRSystem",
    "DiagonalInit",
    "DiagonalSSM",
    "DiagonalSystem",
    "FrozenSystem",
    "SSKernel",
    "SampledDiagonalSystem",
    "System",
    "choose_convolution",
    "chunk_matrices",
    "convolve",
    "convolve_unevenly",
    "diagonal_init",
    "discretize",
    "dplr_init",
    "hippo_matrices",
]
