"""Runs benchmarks and keeps their JSON lines as a page: the figures of the docs.

`python -m tests.benchmarks.report --out docs/results` (what `make bench` does).  With
the name of one benchmark, flags of its own may follow, as `--flag=value`.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent


def run(name, flags=()):
    """Runs `bench_<name>.py`; returns its JSON lines."""
    command = [sys.executable, "-m", f"tests.benchmarks.bench_{name}", *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    for line in lines:
        print(line, flush=True)
    return [json.loads(line) for line in lines]


def page(results):
    """Returns all results as Markdown."""
    parts = ["# Benchmarks\n", "Made by `make bench`; each compares in one run.\n"]
    for name, result in sorted(results.items()):
        parts.append(f"## {name}\n\n{result['date']}, {result['machine']}\n")
        parts += [table(line) for line in result["lines"]]
    return "\n".join(parts)


def table(line):
    """Returns one JSON line as a table; lists of objects become tables of their own."""
    plain = {k: v for k, v in line.items() if not _is_rows(v) and k != "benchmark"}
    text = ["| what | value |", "|---|---|"]
    text += [f"| {key} | {_shown(value)} |" for key, value in plain.items()]
    for key, rows in line.items():
        if _is_rows(rows):
            heads = list(rows[0])
            text += ["", f"{key}:", "", "| " + " | ".join(heads) + " |"]
            text.append("|" + "---|" * len(heads))
            for row in rows:
                cells = [_shown(row.get(head)) for head in heads]
                text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def _is_rows(value):
    return bool(value) and isinstance(value, list) and isinstance(value[0], dict)


def _shown(value):
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
    return str(value)


def main(argv=None):
    known = sorted(p.stem.removeprefix("bench_") for p in FOLDER.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("docs/results")
    )
    parser.add_argument(
        "names", nargs="*", help="which; without any, all: " + str(known)
    )
    args, flags = parser.parse_known_args(argv)
    if flags and len(args.names) != 1:
        parser.error(f"flags {flags} need the name of one benchmark")
    unknown = set(args.names) - set(known)
    if unknown:
        parser.error(f"no benchmark {sorted(unknown)}; there are {', '.join(known)}")
    path = args.out / "benchmarks.json"
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or known:
        lines = run(name, flags)
        results = json.loads(path.read_text()) if path.exists() else {}
        results[name] = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{os.cpu_count()} x {platform.machine()}",
            "lines": lines,
        }
        path.write_text(json.dumps(results, indent=1) + "\n")
        (args.out / "benchmarks.md").write_text(page(results))


if __name__ == "__main__":
    main()
