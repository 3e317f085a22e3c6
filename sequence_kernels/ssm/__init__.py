"""State-space models: initial values, discretisation, and from parameters to kernels and chunk matrices."""

from .diagonal import DiagonalSSM, DiagonalSystem
from .discretize import DISCRETIZATIONS, discretize
from .dplr import DPLRSSM, DPLRSystem
from .hippo import DiagonalInit, DPLRInit, diagonal_init, dplr_init, hippo_matrices
from .system import ChunkMatrices, System

__all__ = [
    "DISCRETIZATIONS",
    "DPLRSSM",
    "ChunkMatrices",
    "DPLRInit",
    "DPLRSystem",
    "DiagonalInit",
    "DiagonalSSM",
    "DiagonalSystem",
    "System",
    "diagonal_init",
    "discretize",
    "dplr_init",
    "hippo_matrices",
]
