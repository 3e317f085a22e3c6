"""The modules that code around Mamba imports, and what stands in them where they are not installed: see ``install``."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import compiled, duality, generation, language_model, mixers, norms, pretrained, selective


def _applied(function: Callable[..., Any]) -> type:
    """What a ``torch.autograd.Function`` is called by, ``apply``, of a function that is differentiable as it is."""
    return type(function.__name__, (), {"__doc__": function.__doc__, "apply": staticmethod(function)})


_SCAN = {
    "selective_scan_fn": selective.selective_scan_fn,
    "selective_scan_ref": selective.selective_scan_fn,
    "mamba_inner_fn": selective.mamba_inner_fn,
    "mamba_inner_ref": selective.mamba_inner_fn,
    "mamba_inner_fn_no_out_proj": selective.mamba_inner_fn_no_out_proj,
    "bimamba_inner_fn": selective.bimamba_inner_fn,
    "SelectiveScanFn": _applied(selective.selective_scan_fn),
    "MambaInnerFn": _applied(selective.mamba_inner_fn),
}
_CHUNK_STATE = {"chunk_state": duality.chunk_state, "chunk_state_ref": duality.chunk_state}
_STATE_PASSING = {"state_passing": duality.state_passing, "state_passing_ref": duality.state_passing}
_CHUNK_SCAN = {"chunk_scan": duality.chunk_scan, "chunk_scan_ref": duality.chunk_scan}
_DUALITY = {
    "mamba_chunk_scan_combined": selective.mamba_chunk_scan_combined,
    "mamba_split_conv1d_scan_combined": selective.mamba_split_conv1d_scan_combined,
}
_OTHER_FORMS = {
    "mamba_chunk_scan": duality.mamba_chunk_scan,
    "ssd_chunk_scan_combined_ref": duality.mamba_chunk_scan,
    "ssd_selective_scan": duality.ssd_selective_scan,
    "mamba_conv1d_scan_ref": duality.mamba_conv1d_scan_ref,
    "mamba_split_conv1d_scan_ref": duality.mamba_split_conv1d_scan_ref,
}
_UPDATE = {
    "selective_state_update": selective.selective_state_update,
    "selective_state_update_ref": selective.selective_state_update,
}
_GATED_NORMS = {
    "RMSNorm": norms.GatedRMSNorm,
    "LayerNorm": norms.GatedLayerNorm,
    "rmsnorm_fn": norms.rmsnorm_fn,
    "rms_norm_ref": norms.rms_norm_ref,
    "layernorm_fn": norms.layernorm_fn,
}
_NORMS = {
    "RMSNorm": norms.RMSNorm,
    "layer_norm_fn": norms.layer_norm_fn,
    "rms_norm_fn": norms.rms_norm_fn,
}
_CONVOLUTION = {
    "causal_conv1d_fn": selective.causal_conv1d_fn,
    "causal_conv1d_update": selective.causal_conv1d_update,
}
_CORE = {"fwd": compiled.core_fwd, "bwd": compiled.core_bwd}

_BLOCK = {"Block": language_model.Block}
_MODEL = {
    "MambaConfig": language_model.MambaConfig,
    "MambaLMHeadModel": language_model.MambaLMHeadModel,
    "MixerModel": language_model.MixerModel,
    "create_block": language_model.create_block,
    "_init_weights": language_model._init_weights,
}
_GENERATION = {
    "InferenceParams": generation.InferenceParams,
    "GenerationMixin": generation.GenerationMixin,
    "decode": generation.decode,
    "sample": generation.sample,
}
_PRETRAINED = {
    "load_config_hf": pretrained.load_config_hf,
    "load_state_dict_hf": pretrained.load_state_dict_hf,
}

#: What each module has; those below another come after it.
MODULES: dict[str, dict[str, Any]] = {
    "mamba_ssm": {
        "__version__": "2.3.2",
        "Mamba": mixers.Mamba,
        "Mamba2": mixers.Mamba2,
        "MambaLMHeadModel": language_model.MambaLMHeadModel,
        "selective_scan_fn": selective.selective_scan_fn,
        "mamba_inner_fn": selective.mamba_inner_fn,
    },
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {
        "Mamba": mixers.Mamba,
        "selective_scan_fn": selective.selective_scan_fn,
        "mamba_inner_fn": selective.mamba_inner_fn,
        "selective_state_update": selective.selective_state_update,
        **_BLOCK,  # in 1.x
        **_NORMS,
        **_CONVOLUTION,
    },
    "mamba_ssm.modules.mamba2": {
        "Mamba2": mixers.Mamba2,
        "RMSNormGated": norms.GatedRMSNorm,
        "causal_conv1d_varlen_states": selective.causal_conv1d_varlen_states,
        "selective_state_update": selective.selective_state_update,
        **_DUALITY,
        **_CONVOLUTION,
    },
    "mamba_ssm.modules.mamba2_simple": {
        "Mamba2Simple": mixers.Mamba2Simple,
        "RMSNormGated": norms.GatedRMSNorm,
        "LayerNorm": norms.GatedLayerNorm,
        "causal_conv1d_fn": selective.causal_conv1d_fn,
        **_DUALITY,
    },
    "mamba_ssm.modules.ssd_minimal": {"ssd_minimal_discrete": duality.ssd_minimal_discrete},
    "mamba_ssm.modules.block": {**_BLOCK, **_NORMS},
    "mamba_ssm.modules.mlp": {"GatedMLP": language_model.GatedMLP},
    "mamba_ssm.models": {},
    "mamba_ssm.models.config_mamba": {"MambaConfig": language_model.MambaConfig},
    "mamba_ssm.models.mixer_seq_simple": {
        **_MODEL,
        **_BLOCK,
        **_NORMS,
        **_PRETRAINED,
        "GatedMLP": language_model.GatedMLP,
        "GenerationMixin": generation.GenerationMixin,
        "Mamba": mixers.Mamba,
        "Mamba2": mixers.Mamba2,
    },
    "mamba_ssm.utils": {},
    "mamba_ssm.utils.generation": _GENERATION,
    "mamba_ssm.utils.hf": _PRETRAINED,
    "mamba_ssm.utils.torch": {
        name: functools.partial(getattr(torch.amp, name), device_type="cuda")
        for name in ("custom_fwd", "custom_bwd")
    },
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": _SCAN,
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.ssd_combined": {
        **_DUALITY,
        **_OTHER_FORMS,
        **_CHUNK_STATE,
        **_STATE_PASSING,
        **_CHUNK_SCAN,
    },
    "mamba_ssm.ops.triton.ssd_chunk_state": _CHUNK_STATE,
    "mamba_ssm.ops.triton.ssd_state_passing": _STATE_PASSING,
    "mamba_ssm.ops.triton.ssd_chunk_scan": _CHUNK_SCAN,
    "mamba_ssm.ops.triton.selective_state_update": _UPDATE,
    "mamba_ssm.ops.triton.layernorm_gated": _GATED_NORMS,
    "mamba_ssm.ops.triton.layer_norm": _NORMS,
    "mamba_ssm.ops.triton.layernorm": _NORMS,  # its name in 1.x
    "causal_conv1d": {"__version__": "1.6.1", **_CONVOLUTION},
    "causal_conv1d.causal_conv1d_interface": {
        **_CONVOLUTION,
        "causal_conv1d_ref": selective.causal_conv1d_fn,
        "causal_conv1d_update_ref": selective.causal_conv1d_update,
    },
    "causal_conv1d.causal_conv1d_varlen": {
        "causal_conv1d_varlen_states": selective.causal_conv1d_varlen_states,
        "causal_conv1d_varlen_states_ref": selective.causal_conv1d_varlen_states,
    },
    "causal_conv1d.cpp_functions": {
        "causal_conv1d_fwd_function": compiled.conv_fwd_function,
        "causal_conv1d_bwd_function": compiled.conv_bwd_function,
        "causal_conv1d_update_function": compiled.conv_update_function,
    },
    "causal_conv1d_cuda": {
        "causal_conv1d_fwd": compiled.conv_fwd,
        "causal_conv1d_bwd": compiled.conv_bwd,
        "causal_conv1d_update": compiled.conv_update,
    },
    "selective_scan_cuda": {"fwd": compiled.scan_fwd, "bwd": compiled.scan_bwd},
    "selective_scan_cuda_core": _CORE,
    "selective_scan_cuda_oflex": _CORE,
}


def made(name: str, functions: dict[str, Any], origin: str, package: bool = False) -> ModuleType:
    """A module of that name with these attributes."""
    spec = ModuleSpec(name, None, origin=origin, is_package=package)
    module = importlib.util.module_from_spec(spec)
    vars(module).update(functions)
    return module


def _is_there(name: str) -> bool:
    """Whether a package is installed; of a compiled module, whether it also loads ("undefined symbol")."""
    if importlib.util.find_spec(name) is None:
        return False
    try:
        return "_cuda" not in name or importlib.import_module(name) is not None
    except ImportError:
        return False


def absent(origin: str) -> dict[str, ModuleType]:
    """Modules for all packages of the table that nothing installed provides, by their names."""
    found: dict[str, ModuleType] = {}
    for name, functions in MODULES.items():
        above, _, last = name.rpartition(".")
        if above in found or not (above or _is_there(name)):
            found[name] = made(
                name, functions, origin, any(other.startswith(f"{name}.") for other in MODULES)
            )
            if above:
                setattr(found[above], last, found[name])
    return found


def serving_cpu(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """For the functions that such a module has itself: ours for tensors on a CPU, its own for others."""
    there = {name: getattr(module, name, None) for name in MODULES.get(module.__name__, {})}
    return {
        name: _on_cpu(MODULES[module.__name__][name], theirs)
        for name, theirs in there.items()
        if callable(theirs) and not isinstance(theirs, type) and not hasattr(theirs, "replaces")
    }


def _on_cpu(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def function(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else next(iter(kwargs.values()), None)
        there = isinstance(first, Tensor) and first.device.type == "cpu"
        return (ours if there else theirs)(*args, **kwargs)

    function.replaces = theirs  # type: ignore[attr-defined]
    return function
