"""Run every short benchmark and write RESULTS.md with the date and the machine: ``make bench``."""

import datetime
import json
import subprocess
import sys
from pathlib import Path

from measure import machine

HERE = Path(__file__).parent
# Shared parts, and what takes hours or tens of gigabytes.
NOT_BENCHMARKS = {
    "ingest_scale.py",
    "ingestion.py",
    "measure.py",
    "package_first.py",
    "plain_readers.py",
    "raw_files.py",
    "run_all.py",
    "speedup.py",
    "watch.py",
}


def main() -> None:
    """Run them one after the other; one that fails ends all with its own message."""
    lines = [
        "# Results",
        "",
        f"{datetime.date.today()}, {machine()}.",
        "A ratio above 1 is better than the peer, or the share of a limit that is reached.",
    ]
    for path in sorted(HERE.glob("*.py")):
        if path.name in NOT_BENCHMARKS:
            continue
        print(f"{path.name} ...", file=sys.stderr, flush=True)
        output = subprocess.run(
            [sys.executable, str(path), "--json"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        lines += [
            "",
            f"## {path.stem}",
            "",
            "| what | ours | unit | peer | peer's | ratio |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r['name']} | {r['value']:,.4g} | {r['unit']} | {r['peer']} | {r['peer_value']:,.4g} "
            f"| {r['ratio']:.2f} |"
            for r in json.loads(output)["results"]
        ]
    (HERE / "RESULTS.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
