"""The tables of a card: `accelerator.py`, `launches.py` and `kernel_check.py`."""

from benchmarks.table_parts import head, line, short


def accelerator(results: dict) -> str:
    """Training steps, networks by size, sweeps, Graves' grid and optimizers on one card."""
    rows = [row for row in results["rows"] if "error" not in row]
    names = [row["name"] for row in rows]
    rows.sort(key=lambda row: (names.index(row["name"]), row.get("level", "")))
    columns = "loop", "mean N", "ms", "/ (N × plain)", "kernels, products an iteration", "busy"
    lines = [results.get("note", ""), ""]
    for group, first in (("training", "setting"), ("shapes", "network, T 20")):
        lines += head((first, *columns))
        lines += [_on_card(row) for row in rows if row["group"] == group] + [""]
    lines += ["| networks at once | loop | mean N | µs an update and network | |"]
    lines.append("|" + "---|" * 5)
    for row in rows:
        if row["group"] in ("sweeps", "grid"):
            minutes = row.get("grid_minutes")
            grid = f"10,000 updates of all: {minutes:.1f} min" if minutes else ""
            cells = row["name"], row["way"], f"{row['mean_ponder']:.2f}", short(1e3 * row["ms"])
            lines.append(line((*cells, grid)))
    lines += ["", *_optimizers(rows)]
    lines += ["", "| others | | |", "|---|---|---|"]
    for row in rows:
        if row["group"] == "lfact":
            cells = f"text, mean N {row['mean_ponder']:.2f}", row["way"], f"{short(row['ms'])} ms"
            lines.append(line(cells))
        if row["group"] == "stream":
            speed = f"{row['characters_per_s']:,.0f} characters a second"
            lines.append(f"| stream | {row['way']} | {speed} |")
    lines += ["", "| PyTorch, the same card | | mean N | ms | over ours |", "|" + "---|" * 5]
    for row in rows:
        if row["group"] == "torch":
            over = f"{row['over_ours']:.1f}" if "over_ours" in row else ""
            cells = row["name"], row["way"], f"{row['mean_ponder']:.2f}", short(row["ms"]), over
            lines.append(line(cells))
    return "\n" + "\n".join(lines)


def _optimizers(rows: list[dict]) -> list[str]:
    """A step of each optimizer, by parameters; columns of those that were measured."""
    steps = {(r["name"], r["way"]): r for r in rows if r["group"] == "optimizer"}
    ways = {
        "learned": "a step of the learned optimizer, ms",
        "learned, bfloat16 state": "state in bfloat16, ms",
        "learned, no kernel": "without the kernel, ms",
        "adam": "of Adam, ms",
    }
    ways = {way: title for way, title in ways.items() if any(way == found for _, found in steps)}
    titles = []
    for way, title in ways.items():
        titles += [title] if way == "adam" else [title, "over its bytes"]
    lines = [*head(("parameters", *titles))]
    for name in dict.fromkeys(name for name, _ in steps):
        cells = [name]
        for way in ways:
            found = steps.get((name, way), {})
            cells.append(short(found["ms"]) if found else "")
            if way != "adam":
                cells.append(f"{found['over_bytes']:.1f}" if found else "")
        lines.append(line(cells))
    return lines


def _on_card(row: dict) -> str:
    """A line for a training step; launches are told where the profile saw them one by one."""
    graph = row["way"].endswith("buffers") or row["way"] == "kernel"
    launches = "one graph" if graph else ""
    if not graph and "kernels_an_iteration" in row:
        launches = f"{row['kernels_an_iteration']:.0f}, {row['products_an_iteration']:.0f}"
    busy = f"{row['busy']:.0%}" if "busy" in row and not graph else ""
    over = f"{row['over_plain']:.2f}" if "over_plain" in row else ""
    cells = row["name"], row["way"], f"{row['mean_ponder']:.2f}", short(row["ms"]), over
    return line((*cells, launches, busy))


def launches(results: dict) -> str:
    """What a training step launches and moves, as it is compiled, beside the plain network's."""
    plain = {row["name"]: row for row in results["rows"] if row["way"] == "plain"}
    titles = "launches an iteration", "MB an iteration", "launches a step", "MB a step"
    lines = head(("setting", "loop", *titles, "launches / (N × plain)", "MB / (N × plain)"))
    for row in results["rows"]:
        cells = [row["name"], row["way"]]
        cells += [short(row[unit]) for unit in ("launches", "megabytes")]
        cells += [f"{row[f'{unit} a step']:,.0f}" for unit in ("launches", "megabytes")]
        for unit in ("launches", "megabytes"):
            known = row["way"] != "plain" and row["name"] in plain
            least = results["ponder"] * plain[row["name"]][f"{unit} a step"] if known else None
            cells.append(f"{row[f'{unit} a step'] / least:.2f}" if known else "")
        lines.append(line(cells))
    return "\n" + "\n".join(lines)


def kernel(results: dict) -> str:
    """Ways to cut the kernels, beside the adaptive loop."""
    rows = results["tune"]
    lines = [
        "\nLoss and gradient at GRU 128, T 50, mean N 2, ms. The default is now `t128 resident`.",
        "",
        "| way | B 64 | B 512 |",
        "|---|---|---|",
    ]
    for way in dict.fromkeys(row["way"] for row in rows):
        at = {row["batch"]: row["ms"] for row in rows if row["way"] == way and "ms" in row}
        if len(at) == 2:
            lines.append(f"| {way} | {short(at[64])} | {short(at[512])} |")
    return "\n".join(lines)
