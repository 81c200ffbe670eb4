"""Figures for people and for programs."""

import json
import math
import statistics

BASE = "thaw-lazy"
COMPARED = ("podman", "podman-zstd", "runc", "criu", "cold", "cold-runc", "thaw-eager", "thaw-no-slot", "thaw-slot", "thaw-standby", "floor")


def percentile(values, share):
    """Nearest rank: a value that was measured. With few values, p99 is the largest."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def row(system, heap_mib, samples, cache="warm"):
    times = [s.ms for s in samples]
    later = [ms for s in samples for ms in s.later_ms]
    first_bytes = [s.first_byte_ms for s in samples]
    made = {
        "system": system.name,
        "case": "python-http",
        "heap_mib": heap_mib,
        "page_cache": cache,
        "n": len(samples),
        "median_ms": round(statistics.median(times), 2),
        "p99_ms": round(percentile(times, 0.99), 2),
        "min_ms": round(min(times), 2),
        "host_mib": round(statistics.median(s.host_mib for s in samples), 1),
        "host_mib_of": "pss of the replica's processes and their supervisor, after the later requests; median",
        "note": system.note,
        "samples_ms": [round(ms, 2) for ms in times],
    }
    if system.asked_for_by_request:
        made["first_byte_p50_ms"] = round(statistics.median(first_bytes), 2)
        made["first_byte_p99_ms"] = round(percentile(first_bytes, 0.99), 2)
    if later:
        made["first100_p50_ms"] = round(percentile(later, 0.5), 3)
        made["first100_p99_ms"] = round(percentile(later, 0.99), 3)
    phases = {name for s in samples for name in s.phases}
    if phases:
        order = [name for name in samples[-1].phases] + sorted(phases - set(samples[-1].phases))
        made["phases_ms"] = {
            name: round(statistics.median(s.phases[name] for s in samples if name in s.phases), 2) for name in order
        }
    return made


def ratios(rows):
    """How many times longer each took than the base, by heap."""
    found = []
    for base in (r for r in rows if r["system"] == BASE and r["page_cache"] == "warm"):
        for other in rows:
            same = (other["heap_mib"], other["page_cache"]) == (base["heap_mib"], "warm")
            if same and other["system"] in COMPARED:
                found.append(
                    {
                        "of": other["system"],
                        "to": BASE,
                        "heap_mib": base["heap_mib"],
                        "ratio": round(other["median_ms"] / base["median_ms"], 2),
                    }
                )
    return found


def write(path, machine, options, rows, failures):
    value = {"machine": machine, "options": options, "rows": rows, "ratios": ratios(rows), "failures": failures}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def table(rows):
    """One block for each heap; `times` is how much longer than Thaw's lazy restore."""
    factor = {(r["heap_mib"], r["of"]): r["ratio"] for r in ratios(rows)}
    head = ("heap MiB", "system", "median ms", "p99 ms", "times", "then p50", "then p99", "host MiB")
    lines = [head]
    previous = None
    for r in rows:
        if previous not in (None, r["heap_mib"]):
            lines.append(("",) * len(head))
        times = factor.get((r["heap_mib"], r["system"])) if r["page_cache"] == "warm" else None
        lines.append(
            (
                str(r["heap_mib"]) if r["heap_mib"] != previous else "",
                r["system"] + ("" if r["page_cache"] == "warm" else ", cold cache"),
                f"{r['median_ms']:.1f}",
                f"{r['p99_ms']:.1f}",
                f"{times:.1f}" if times else "",
                f"{r['first100_p50_ms']:.2f}" if "first100_p50_ms" in r else "",
                f"{r['first100_p99_ms']:.2f}" if "first100_p99_ms" in r else "",
                f"{r['host_mib']:.1f}",
            )
        )
        previous = r["heap_mib"]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 1 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))).rstrip()
        for line in lines
    )


def sentences(rows):
    """The ratios that matter most, in words."""
    said = []
    for heap in dict.fromkeys(r["heap_mib"] for r in rows):
        parts = [
            f"{r['of']} {r['ratio']:.1f}"
            for r in ratios(rows)
            if r["heap_mib"] == heap and r["of"] in ("podman", "cold", "runc")
        ]
        if parts:
            said.append(f"{heap} MiB: times as long as {BASE}: {', '.join(parts)}")
    return said
