"""What follows from the declaration of an op."""

from __future__ import annotations

import pytest
import torch

from sequence_kernels.ops.signature import adjoint, signature

CONVOLUTION = signature("u: BHL, d?: CH, lengths?: B int, chunk: int, tail: bool", "y: BCHL, state: BHS")


def test_the_schema_has_the_backend_behind_all_others() -> None:
    assert CONVOLUTION.schema == (
        "(Tensor u, Tensor? d, Tensor? lengths, int chunk, bool tail, str backend) -> (Tensor, Tensor)"
    )
    in_place = signature("state!: ...HN, u: ...H, L: SymInt", "y: ...H")
    assert in_place.schema == "(Tensor(a!) state, Tensor u, SymInt L, str backend) -> Tensor"


def test_an_axis_counts_from_the_side_whose_dimensions_are_named() -> None:
    u, v, state, matrix = signature("u: BHL, v: *N, state: ...HN, matrix: H...", "y: L").takes
    assert [u.axis(letter) for letter in "BHLN"] == [0, 1, 2, None]
    assert [v.axis("N"), state.axis("H"), state.axis("N")] == [-1, -2, -1]
    assert [matrix.axis("H"), matrix.axis("B")] == [0, None]


def test_sizes_are_those_of_dimensions_named_from_the_left() -> None:
    assert CONVOLUTION.sizes((torch.empty(2, 3, 7), None, torch.empty(2))) == {"B": 2, "H": 3, "L": 7}


def test_the_adjoint_takes_gradients_first_and_gives_those_of_tensors_but_integers() -> None:
    reverse = adjoint(CONVOLUTION)
    names = [argument.name for argument in reverse.takes]
    assert names == ["g_y", "g_state", "u", "d", "lengths", "chunk", "tail"]
    assert [argument.axis("C") for argument in reverse.takes[:2]] == [1, None]
    assert [(argument.name, argument.dims, argument.optional) for argument in reverse.gives] == [
        ("u", "BHL", False),
        ("d", "CH", False),
    ]


def test_tensors_come_before_numbers() -> None:
    with pytest.raises(ValueError, match=r"^takes must name tensors before numbers, got d after one in "):
        signature("u: BHL, chunk: int, d?: CH", "y: BHL")
