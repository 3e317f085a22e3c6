"""Pictures of a run: time and speed-up against length, speed-ups, share of roofline, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from bench.harness.declare import DEFAULT, KEEPS, label
from bench.harness.results import Record, Run
from bench.harness.stats import quantile
from bench.harness.tables import largest, mebibytes, share_of_floor, significant, where

OURS = "sequence_kernels"
Bar = tuple[str, str, float, Record]  # group, name, value, what the label needs
INK, GRID, HIGHLIGHT, OTHER, SLOWER = "#24292f", "#d8dee4", "#2f7fd1", "#a3abb3", "#d1703c"
COLOURS = ("#c4442d", "#8250df", "#b58900", "#1a7f64", "#bf3989", "#57606a", "#7a4b1e", "#3b8ea5")
MARKERS = "sD^vP*Xh"


def write(run: Run, folder: Path) -> list[Path]:
    """Write the pictures there is data for; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"speedup": speedups(run), "roofline": roofline(run), "memory": memory(run)}
    for op in sorted({pair["op"] for pair in run.pairs}):
        figures[f"length-{op}"] = against_length(run, op)
    written = []
    for name, figure in figures.items():
        if figure is not None:
            path = folder / f"{name}.png"
            FigureCanvasAgg(figure)
            figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})
            written.append(path)
    return written


def against_length(run: Run, op: str) -> Figure | None:
    """Time, and how many times faster we are, against the sequence length; a row of panels for each mode."""
    pairs = [
        pair
        for pair in run.pairs
        if pair["op"] == op and "L" in pair["dims"] and pair["peer"] and run.quiet(pair)
    ]
    families = _families(pairs)
    if not families:
        return None
    family, pairs = max(families.items(), key=lambda item: len(item[1]))
    modes = sorted({pair["mode"] for pair in pairs})
    figure = _figure(10.5, 3.7 * len(modes) + 0.6, f"{op}, {family}", where(run))
    grid = figure.subplots(len(modes), 2, squeeze=False)
    style = _styles(pairs)
    for (left, right), mode in zip(grid, modes, strict=True):
        chosen = [pair for pair in pairs if pair["mode"] == mode]
        usual = [pair for pair in chosen if pair["allocator"] == DEFAULT]
        lengths = sorted({pair["dims"]["L"] for pair in chosen})
        own = {at: _own_time([pair for pair in usual if pair["dims"]["L"] == at]) for at in lengths}
        left.plot(*_xy(own), "o-", color=HIGHLIGHT, lw=2.4, label=OURS, zorder=3)
        for peer, (colour, marker) in style.items():
            theirs = {p["dims"]["L"]: p["peer_s"]["median"] * 1e3 for p in usual if p["peer"] == peer}
            left.plot(*_xy(theirs), marker + "-", color=colour, lw=1.5, label=peer)
            for allocator, line in ((DEFAULT, "-"), (KEEPS, "--")):
                faster = {
                    p["dims"]["L"]: p["ratio"]["median"]
                    for p in chosen
                    if p["peer"] == peer and p["allocator"] == allocator
                }
                right.plot(*_xy(faster), marker + line, color=colour, lw=1.5)
        right.axhline(1, color=INK, lw=1)
        _log_axes(left, lengths, "ms", f"{mode}: time (default allocator)")
        _log_axes(right, lengths, "times faster", f"{mode}: times faster (dashed: pages kept)")
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=min(len(names), 5), frameon=False)
    figure.subplots_adjust(
        left=0.08,
        right=0.97,
        wspace=0.22,
        hspace=0.38,
        top=1 - 0.95 / figure.get_figheight(),
        bottom=1.0 / figure.get_figheight(),
    )
    return figure


def speedups(run: Run) -> Figure | None:
    """One bar a peer, for the largest shape of each operation, grouped."""
    rows = [
        (f"{pair['op']} {pair['shape']}", f"{pair['mode']}, {pair['peer']}", pair["ratio"]["median"], pair)
        for pair in largest(run)
        if pair["peer"] and pair["allocator"] == DEFAULT and run.quiet(pair)
    ]
    note = "bar: ratio of medians; line: 20 to 80 % of the interleaved rounds"
    return _bars(
        run, "Times faster than each peer", rows, lambda value, _: f"{significant(value)}x", note, one=True
    )


def roofline(run: Run) -> Figure | None:
    """One bar a mode: how much of the roofline our time reaches."""
    rows = {}
    for pair in largest(run):
        found = share_of_floor(run, pair)
        if found and pair["allocator"] == DEFAULT and run.quiet(pair):
            rows[pair["op"], pair["mode"]] = (
                f"{pair['op']} {pair['shape']}",
                f"{pair['mode']} ({pair['ours']})",
                found[0] * 100,
                {"bound": found[1]},
            )
    note = "floor: the largest of bytes, flops and special functions, each over its ceiling measured in the same run"
    return _bars(
        run,
        "Share of this machine's roofline, per cent",
        list(rows.values()),
        lambda value, about: f"{significant(value)} %, bound by {about['bound']}",
        note,
    )


def memory(run: Run) -> Figure | None:
    """Peak memory of ours and of each peer."""
    rows: dict[tuple[str, str, str], tuple[str, str, float, Record]] = {}
    for pair in largest(run):
        group = f"{pair['op']} {pair['shape']}"
        sides = ((OURS, pair["ours_bytes"]), (pair["peer"], pair.get("peer_bytes")))
        for name, count in sides:
            if name and count:
                rows[group, pair["mode"], name] = (group, f"{pair['mode']}, {name}", count / 2**20, pair)
    ordered = [rows[key] for key in sorted(rows, key=lambda key: (key[0], key[1], key[2] != OURS, key[2]))]
    return _bars(
        run, "Peak memory of a call, MiB", ordered, lambda value, _: f"{mebibytes(int(value * 2**20))}", ""
    )


def _bars(
    run: Run,
    title: str,
    rows: Sequence[Bar],
    text: Callable[[float, Record], str],
    note: str,
    one: bool = False,
) -> Figure | None:
    """Horizontal bars on a logarithmic axis under group headings; ours in the highlight colour."""
    if not rows:
        return None
    groups = list(dict.fromkeys(group for group, *_ in rows))
    height = 0.24 * len(rows) + 0.42 * len(groups)
    figure = _figure(10.5, height + 1.5, title, where(run), note)
    figure.subplots_adjust(left=0.27, right=0.88, top=1 - 1.0 / (height + 1.5), bottom=0.3 / (height + 1.5))
    axes = figure.subplots()
    at, ticks, names = 0.0, [], []
    low = min(min(value for _, _, value, _ in rows), 1.0 if one else float("inf")) / 1.5
    for group in groups:
        axes.text(
            -0.43, at, group, transform=axes.get_yaxis_transform(), weight="bold", va="center", color=INK
        )
        at += 1
        for _, name, value, about in (row for row in rows if row[0] == group):
            colour = HIGHLIGHT if OURS in name or "bound" in about else OTHER
            if one:
                colour = HIGHLIGHT if value >= 1 else SLOWER
            axes.barh(at, value - low, left=low, color=colour, height=0.72)
            if one:
                axes.plot([about["ratio"]["q20"], about["ratio"]["q80"]], [at, at], color=INK, lw=1.4)
            end = max(value, about["ratio"]["q80"]) if one else value
            axes.annotate(
                text(value, about), (end, at), (6, 0), textcoords="offset points", va="center", fontsize=9
            )
            ticks.append(at)
            names.append(name)
            at += 1
        at += 0.35
    axes.set_yticks(ticks, names, fontsize=9)
    axes.set_ylim(at - 0.5, -0.7)
    axes.set_xscale("log")
    axes.set_xlim(low, max(value for _, _, value, _ in rows) * (1.5 if one else 2.5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", length=0)
    if one:
        axes.axvline(1, color=INK, lw=1)
    _plain(axes)
    axes.grid(False, axis="y")
    return figure


def _figure(width: float, height: float, title: str, where: str, note: str = "") -> Figure:
    figure = Figure(figsize=(width, height))
    figure.text(0.012, 1 - 0.3 / height, title, fontsize=14, weight="bold", color=INK, va="center")
    figure.text(0.012, 1 - 0.56 / height, where, fontsize=9, color="#57606a", va="center")
    figure.text(0.012, 1 - 0.76 / height, note, fontsize=9, color="#57606a", va="center")
    return figure


def _families(pairs: Sequence[Record]) -> dict[str, list[Record]]:
    """Pairs by the rest of their shape, where at least two lengths were measured."""
    found: dict[str, list[Record]] = {}
    for pair in pairs:
        rest = label({key: value for key, value in pair["dims"].items() if key != "L"})
        found.setdefault(rest, []).append(pair)
    return {rest: group for rest, group in found.items() if len({pair["dims"]["L"] for pair in group}) > 1}


def _styles(pairs: Sequence[Record]) -> dict[str, tuple[str, str]]:
    peers = dict.fromkeys(pair["peer"] for pair in pairs)
    return dict(zip(peers, zip(COLOURS, MARKERS, strict=True), strict=False))


def _own_time(pairs: Sequence[Record]) -> float:
    """Our milliseconds: the median over the peers we were timed against."""
    return quantile([pair["ours_s"]["median"] for pair in pairs], 0.5) * 1e3


def _xy(points: dict[int, float]) -> tuple[list[int], list[float]]:
    lengths = sorted(points)
    return lengths, [points[length] for length in lengths]


def _log_axes(axes: Axes, lengths: Sequence[int], unit: str, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(
        lengths, [f"{length // 1024}k" if length % 1024 == 0 else str(length) for length in lengths]
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("sequence length L")
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize=10.5, loc="left", color=INK)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(True, which="major", color=GRID, lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
