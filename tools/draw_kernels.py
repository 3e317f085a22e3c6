"""docs/kernels.svg, what the kernels of the layers look like: `python -m tools.draw_kernels` writes it anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sequence_kernels import DSS, LRU, S4, S4D, S5

FILE = Path(__file__).parents[1] / "docs" / "kernels.svg"
LAYERS = (S4, S4D, DSS, S5, LRU)
CHANNELS, LENGTH = 3, 150
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c")
WIDTH, HEIGHT, MARGIN, TOP = 180, 120, 10, 26  # of a panel, around it, and above it for the name


def kernels() -> dict[str, Tensor]:
    """Of each layer as it begins, the response of each channel to a 1 in it, ``(CHANNELS, LENGTH)``, at most 1."""
    found = {}
    for layer in LAYERS:
        torch.manual_seed(0)
        module = layer(CHANNELS, activation=None, postact=None, transposed=False).double().eval()
        impulses = torch.zeros(CHANNELS, LENGTH, CHANNELS, dtype=torch.float64)
        impulses[:, 0] = torch.eye(CHANNELS)
        with torch.no_grad():
            still, _ = module(torch.zeros_like(impulses))
            responses = (module(impulses)[0] - still).diagonal(dim1=0, dim2=2).T
        without_skip = responses[:, 1:]  # the first element has the skip, D, too
        found[layer.__name__] = without_skip / without_skip.abs().amax(1, keepdim=True)
    return found


def points(kernel: Tensor) -> list[tuple[float, float]]:
    """The kernel within its panel, from its top left corner."""
    return [(i * WIDTH / LENGTH, (1 - float(value)) * HEIGHT / 2) for i, value in enumerate(kernel)]


def panels(found: dict[str, Tensor]) -> Iterator[str]:
    for i, (name, responses) in enumerate(found.items()):
        yield f'<g transform="translate({MARGIN + i * (WIDTH + MARGIN)},{TOP})">'
        yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>'
        yield f'<path d="M0 {HEIGHT // 2}h{WIDTH}" stroke="#ddd"/>'
        yield f'<text x="{WIDTH // 2}" y="-8" text-anchor="middle" font-weight="bold">{name}</text>'
        for colour, kernel in zip(COLOURS, responses, strict=True):
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points(kernel))
            yield f'<polyline fill="none" stroke="{colour}" points="{line}"/>'
        yield "</g>"


def picture(found: dict[str, Tensor]) -> str:
    width, height = MARGIN + len(found) * (WIDTH + MARGIN), TOP + HEIGHT + MARGIN
    box = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="14"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join((head, ground, *panels(found), "</svg>", ""))


if __name__ == "__main__":
    FILE.write_text(picture(kernels()))
