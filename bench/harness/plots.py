"""Pictures of a run: time and speed-up against length, speed-ups, share of roofline, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

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
    note = "bar: from 1, as fast as the peer; line: 20 to 80 % of the interleaved rounds"
    return _bars(run, _speed_headline(rows), rows, lambda value, _: f"{significant(value)}x", note, "ratio")


def _speed_headline(rows: Sequence[Bar]) -> str:
    values = [value for *_, value, _ in rows]
    if not values:
        return ""
    won = sum(value > 1 for value in values)
    middle, best = significant(quantile(values, 0.5)), significant(max(values))
    return f"Faster than the peer in {won} of {len(values)} measurements: {middle} times at the median, {best} at most"


def roofline(run: Run) -> Figure | None:
    """One bar a mode: how much of the roofline our time reaches."""
    rows = {}
    for pair in largest(run):
        found = share_of_floor(run, pair)
        if found and pair["allocator"] == DEFAULT and run.quiet(pair):
            rows[pair["op"], pair["shape"], pair["mode"]] = (
                f"{pair['op']} {pair['shape']}",
                f"{pair['mode']} ({pair['ours']})",
                found[0] * 100,
                {"bound": found[1]},
            )
    note = "floor: the largest of bytes, flops and special functions, each over its ceiling measured in the same run"
    values = [value for *_, value, _ in rows.values()]
    middle = f"{quantile(values, 0.5):.0f}" if values else ""
    return _bars(
        run,
        f"Our calls reach {middle} % of this machine's roofline at the median",
        list(rows.values()),
        lambda value, about: f"{significant(value)} %, bound by {about['bound']}",
        note,
        "share",
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
    more = [pair for pair in largest(run) if pair["ours_bytes"] and pair.get("peer_bytes")]
    less = sum(pair["ours_bytes"] < pair["peer_bytes"] for pair in more)
    return _bars(
        run,
        f"Peak memory of a call, MiB: less than the peer's in {less} of {len(more)} measurements",
        ordered,
        lambda value, _: mebibytes(int(value * 2**20)),
        "on a logarithmic axis",
        "amount",
    )


def _bars(
    run: Run, headline: str, rows: Sequence[Bar], text: Callable[[float, Record], str], note: str, kind: str
) -> Figure | None:
    """A line a value under group headings; ours in the highlight colour.

    ``kind``: of the values. A "ratio" is a bar from 1 on a logarithmic axis, a "share" one from 0 on a linear axis, and
    an "amount", for which a logarithmic axis has no place to start from, a dot.
    """
    if not rows:
        return None
    groups = list(dict.fromkeys(group for group, *_ in rows))
    height = 0.24 * len(rows) + 0.42 * len(groups)
    figure = _figure(10.5, height + 1.5, headline, where(run), note)
    figure.subplots_adjust(left=0.33, right=0.97, top=1 - 1.0 / (height + 1.5), bottom=0.3 / (height + 1.5))
    axes = figure.subplots()
    at, ticks, names = 0.0, [], []
    for group in groups:
        axes.text(
            -0.5, at, group, transform=axes.get_yaxis_transform(), weight="bold", va="center", color=INK
        )
        at += 1
        for _, name, value, about in (row for row in rows if row[0] == group):
            _value(axes, at, name, value, about, kind)
            axes.annotate(
                text(value, about),
                (_end(value, about, kind), at),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
            ticks.append(at)
            names.append(name)
            at += 1
        at += 0.35
    axes.set_yticks(ticks, names, fontsize=9)
    axes.set_ylim(at - 0.5, -0.7)
    _value_axis(axes, rows, kind)
    axes.tick_params(axis="y", length=0)
    _plain(axes)
    axes.grid(False, axis="y")
    return figure


def _value(axes: Axes, at: float, name: str, value: float, about: Record, kind: str) -> None:
    colour = HIGHLIGHT if OURS in name or "bound" in about else OTHER
    if kind == "amount":
        axes.plot([value], [at], "o", color=colour, markersize=7)
    elif kind == "share":
        axes.barh(at, value, color=colour, height=0.72)
    else:
        axes.barh(at, value - 1, left=1, color=HIGHLIGHT if value >= 1 else SLOWER, height=0.72)
        axes.plot([about["ratio"]["q20"], about["ratio"]["q80"]], [at, at], color=INK, lw=1.4)


def _end(value: float, about: Record, kind: str) -> float:
    """Where the label of a value stands: right of all that is drawn for it."""
    return max(value, 1.0, about["ratio"]["q80"]) if kind == "ratio" else value


def _value_axis(axes: Axes, rows: Sequence[Bar], kind: str) -> None:
    """So long that the labels lie within, with numbers as people write them."""
    values = [value for *_, value, _ in rows]
    most = max(_end(value, about, kind) for *_, value, about in rows)
    if kind == "share":
        axes.set_xlim(0, most * 1.4)
        return
    least = min(*values, most / 10, *([1.0] if kind == "ratio" else []))
    if kind == "ratio":
        least = min(least, *(about["ratio"]["q20"] for *_, about in rows))
        axes.axvline(1, color=INK, lw=1)
    axes.set_xscale("log")
    axes.set_xlim(least / 1.3, most * (most / least) ** 0.2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most / least < 200 else (1,)))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.0f}" if value >= 1 else f"{value:g}")
    )
    axes.xaxis.set_minor_formatter(NullFormatter())


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
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.0f}" if value >= 1 else f"{value:g}")
    )
    axes.set_xlabel("sequence length L")
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize=10.5, loc="left", color=INK)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.grid(True, which="major", color=GRID, lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
