"""The demo behind `make demo`: one airfoil campaign, the table it ends with, and its report.

    python -m experiments.demo [--directory DIR]

Killed at any moment and started again, it goes on where it was.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: two threads on a busy machine are 40 times slower

import argparse
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bbo.cli import refusals
from bbo.config.plan import Plan, load_plan
from bbo.display import shown
from bbo.ledger import Ledger
from bbo.objective import value_of
from bbo.report import write_report
from experiments.problems.airfoil import CONFIG, best_and_top, data_designs, prior_designs, values


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m experiments.demo")
    parser.add_argument(
        "--directory", default="runs/demo", help="directory of the campaign (default runs/demo)"
    )
    directory = Path(parser.parse_args().directory)
    console = Console(highlight=False)
    console.print("Airfoil with the highest lift-to-drag ratio at an angle of attack of 5° and Re 1e6.\n")
    began = time.perf_counter()
    plan = load_plan(CONFIG, [f"campaign.directory={directory}"])
    with shown(plan.settings.batch_size) as listener, plan.open(listener) as campaign:
        campaign.run()
    console.print(comparison(plan))
    console.print(f"\n{time.perf_counter() - began:.0f} s in all. The report, for any browser:")
    console.print(f"  {write_report(directory)}", soft_wrap=True)


def comparison(plan: Plan) -> Table:
    """Return the campaign beside the real airfoils and beside as many samples of the prior alone."""
    with Ledger.open(plan.directory) as ledger:
        found = np.array([value_of(query, "value") for query in ledger.queries()])
    rows = {
        f"data: {len(data_designs())} real airfoils": values(data_designs()),
        f"prior alone: {len(found)} samples": values(prior_designs(len(found), seed=plan.settings.seed)),
        f"this campaign: {len(found)} queries": found,
    }
    table = Table(title="\nL/D of feasible designs", title_justify="left", box=None, header_style="dim")
    table.add_column("")
    for name in ("best", "mean of top 16", "feasible"):
        table.add_column(name, justify="right")
    for name, row in rows.items():
        best, top = best_and_top(row)
        table.add_row(name, f"{best:.1f}", f"{top:.1f}", f"{np.mean(~np.isnan(row)):.0%}")
    return table


if __name__ == "__main__":
    with refusals():
        main()
