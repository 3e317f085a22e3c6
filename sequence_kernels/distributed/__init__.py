"""Beyond one device, on torch.distributed: long sequences split over ranks (docs/distributed.md)."""

from .context_parallel import context_parallel, sum_gradients

__all__ = ["context_parallel", "sum_gradients"]
