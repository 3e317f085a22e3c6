"""README's benchmark table: generated from bench/results, between two marker comments."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench.harness import targets
from bench.harness.plan import benches
from bench.harness.results import RECORDED, Run, load_all
from bench.harness.tables import summary, where
from bench.harness.targets import MET, SHORT, UNMEASURED

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


class MarkersMissingError(ValueError):
    """README has no place for the table."""


def section(runs: list[Run]) -> str:
    """The text between the markers: the newest recorded run of each kind of machine."""
    newest = {run.kind: run for run in runs}
    parts = [f"{where(run)}:\n\n{summary(run)}" for _, run in sorted(newest.items())]
    note = (
        f"How many times faster than each peer: {_measure(newest.values())} of interleaved runs with the default "
        'allocator; "pages kept": with one that keeps freed pages. Of each operation, part of a layer and mode that '
        "was measured beside a peer, this is the shape with the most arithmetic; what other programs disturbed is left "
        "out. First what people call, layers and stacks of them, then parts of layers, then single ops. "
        f"{_promises(runs)} Written by `python -m bench report --readme`."
    )
    return "\n\n".join([note, LEGEND, *parts])


LEGEND = """\
In *work*, B is the batch, H the width (`d_model`), N the pairs of conjugate numbers in a head's state (N32 is
`d_state=64`), L the length, V sets of weights on one set of nodes. `layer` is a whole layer, `state` one that takes a
state and returns one, `layers16` a stack of 16; `_step` is one element through it. Of parts of a layer, `ssm` goes from
its parameters to the output of the convolution, `kernel` is the recurrence of a step alone, and `prepare` all that
comes before the first step."""


def _measure(runs: Iterable[Run]) -> str:
    """What the ratios are: see ``machine.SCHEMA``."""
    older = any(run.header["schema"] < 2 for run in runs)
    return "the ratio of the medians" if older else "the median ratio"


def _promises(runs: list[Run]) -> str:
    """How many of the promised speeds are met, all of them and not those of the table alone."""
    rows = targets.rows(benches(), runs)
    count = {verdict: sum(row.verdict == verdict for row in rows) for verdict in (MET, SHORT, UNMEASURED)}
    on_gpus = sum(row.verdict == UNMEASURED and row.target.device != "cpu" for row in rows)
    return (
        f"Of {len(rows)} promised ratios {count[MET]} are met, {count[SHORT]} fall short, and {count[UNMEASURED]} have "
        f"no recorded measurement yet, {on_gpus} of these for want of a GPU; `python -m bench targets` lists all."
    )


def replaced(text: str, content: str) -> str:
    """The README with `content` between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise MarkersMissingError(
            f"the README has no line {BEGIN} followed by a line {END}; add both where the table shall stand"
        )
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def regenerate(readme: Path, results: Path = RECORDED) -> bool:
    """Write the table into the README; says whether that changed it."""
    text = readme.read_text()
    new = replaced(text, section(load_all([results])))
    readme.write_text(new)
    return new != text
