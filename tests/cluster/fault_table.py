#!/usr/bin/env python3
"""Prints the table of faults in docs/operations.md, from what the tests found:

bash tests/run.sh --long; tests/cluster/fault_table.py build/faults.json"""

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="as pytest --report wrote it")
    report = json.loads(parser.parse_args().report.read_text())
    print("| fault | what happens | exit codes | goes on after | steps done again |")
    print("|---|---|---|---|---|")
    for row in report["faults"]:
        codes = ", ".join("none" if code is None else str(code) for code in row["exit_codes"])
        cells = [
            row["fault"],
            row["happened"],
            codes,
            f"{row['seconds']:.1f} s",
            row["steps_done_again"],
        ]
        print("| " + " | ".join(str(cell) for cell in cells) + " |")
    print(f"\n({report['machine']}; {report['date']}, commit {report['commit']}.)")


if __name__ == "__main__":
    main()
