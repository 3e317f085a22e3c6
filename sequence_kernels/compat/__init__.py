"""For those who have S4 code, models or checkpoints already: see docs/migration.md. Importing this changes nothing."""

from .accelerate import Acceleration, accelerate
from .attenuate import AttenuateStream
from .checkpoints import export_espnet, export_s4, load_espnet, load_s4
from .decoder import espnet_decoder
from .install import install, uninstall
from .mamba import export_mamba, load_mamba

__all__ = [
    "Acceleration",
    "AttenuateStream",
    "accelerate",
    "espnet_decoder",
    "export_espnet",
    "export_mamba",
    "export_s4",
    "install",
    "load_espnet",
    "load_mamba",
    "load_s4",
    "uninstall",
]
