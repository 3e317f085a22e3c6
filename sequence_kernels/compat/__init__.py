"""For those who have S4 code, models or checkpoints already: see docs/migration.md. Importing this changes nothing."""

from .install import install, uninstall

__all__ = ["install", "uninstall"]
