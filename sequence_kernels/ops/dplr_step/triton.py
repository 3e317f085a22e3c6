"""The steps by the Triton kernel of ``ssm_step``, which takes any rank."""

from ..ssm_step.triton import ssm_step as dplr_step
from ..ssm_step.triton import ssm_step_ as dplr_step_

__all__ = ["dplr_step", "dplr_step_"]
