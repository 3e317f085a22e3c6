"""What the benchmarks of Mamba models have in common: a model, its matrix products alone, and Hugging Face's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.harness.declare import Inputs, Peer, Shape, same
from bench.harness.unavailable import unless_installed
from sequence_kernels import MambaLM
from sequence_kernels.compat import export_mamba

PRODUCTS, HUGGING_FACE = "matrix products", "transformers"


def inputs(layer: str, shape: Shape, device: torch.device) -> Inputs:
    model = MambaLM(shape["V"], shape["H"], shape["layers"], layer=layer).to(device).eval()
    tokens = torch.randint(shape["V"], (shape["B"], shape.get("L", 1)), device=device)
    return {"model": model, "tokens": tokens, "shape": shape}


def weights(model: Any) -> list[Tensor]:
    """Of every matrix product that a token goes through, the last that of the scores; of ours, or Hugging Face's."""
    blocks: Any = model.backbone.layers
    maps = [part.weight for block in blocks for part in block.mixer.modules() if isinstance(part, nn.Linear)]
    return [*maps, model.backbone.embedding.weight if model.lm_head is None else model.lm_head.weight]


def products(with_model: Callable[[Inputs], Inputs] = same) -> Peer:
    """The model's linear maps one after another, each of numbers of its own; the answer has the model's shape."""

    def setup(x: Inputs) -> Inputs:
        x = with_model(x)
        given = weights(x["model"])
        rows = [torch.randn(*x["tokens"].shape, w.shape[1], device=w.device) for w in given]
        return {**x, "weights": nn.ParameterList(given), "rows": rows}

    def run(x: Inputs) -> Tensor:
        outputs = [F.linear(row, w) for row, w in zip(x["rows"], x["weights"], strict=True)]
        return outputs[-1] if x["tokens"].shape[1] > 1 else outputs[-1].squeeze(1)

    return Peer(PRODUCTS, run, setup, tolerance=math.inf)


def hugging_face(layer: str) -> Peer:
    """The same model in transformers, by its own code for a CPU, kept from our functions."""

    def setup(x: Inputs) -> Inputs:
        import transformers

        shape, mixer = x["shape"], x["model"].backbone.layers[0].mixer
        sizes: dict[str, Any] = {
            "vocab_size": shape["V"],
            "hidden_size": shape["H"],
            "num_hidden_layers": shape["layers"],
            "state_size": mixer.size,
        }
        if layer == "mamba2":
            sizes |= {"num_heads": mixer.heads, "head_dim": mixer.headdim, "n_groups": mixer.ngroups}
            theirs: Any = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes))
        else:
            theirs = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))
        theirs.load_state_dict(export_mamba(x["model"], hugging_face=True))
        return {**x, "theirs": theirs.to(x["tokens"].device).eval()}

    return Peer(
        HUGGING_FACE,
        lambda x: x["theirs"](x["tokens"], use_cache=False).logits,
        setup,
        unavailable=unless_installed("transformers", "transformers==4.57.1"),
        quick=False,
    )
