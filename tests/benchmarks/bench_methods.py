"""Training rows/s of every method against the mlp of the same width, in one run.

The whole of it: `--domains 3 10 30 100` (the default).  A method's `cost_vs_mlp` is
how many times longer a row takes than mlp's at the same D; `cost_vs_first` against its
own first D.  `update_share_of_cpu` is the optimiser's step on all weights but tables,
alone, over the whole step: what the weights of D domains cost whatever the rows.
`ple` is one CGC level; `ple_2_levels` has a lower level, whose cost grows with D by
definition.  `din`, `eta` and `ecat_history` attend to a history of 50 items, which the
others do not have; what that costs does not depend on D.  `ple_2_levels` and
`ecat_history` are run for the smallest D only.

A second line has the baselines with one task: the figures that are public for models of
these sizes are of models with one label.

Every number of domains has a process of its own: none inherits another's memory.
"""

import argparse
import concurrent.futures
import multiprocessing
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # run as a script too

from tests.benchmarks import timing  # isort: skip

FIELDS = 15  # and the domain's: 16 of width 16
ROWS_OF_TABLE = 10_000
UNITS = [256, 128, 64]
HISTORY = 50  # items, all there
WITH_HISTORY = ("din", "eta", "ecat_history")
SMALLEST_ONLY = ("ple_2_levels", "ecat_history")
ONE_TASK = ("mlp", "shared_bottom", "mmoe", "star")
SETTINGS = {
    "mlp": ("mlp", {"hidden_units": UNITS}),
    "shared_bottom": ("shared_bottom", {"hidden_units": UNITS}),
    "mmoe": ("mmoe", {"expert_units": UNITS}),
    "ple": ("ple", {"levels": [UNITS]}),
    "ple_2_levels": ("ple", {"levels": [UNITS[:2], UNITS[2:]]}),
    "star": ("star", {"hidden_units": UNITS}),
    "m3oe": ("m3oe", {}),
    "m3oe_sampled": ("m3oe", {"foreign_experts": 2}),
    # Dropout as in the others: off.
    "ssctl": (
        "ssctl",
        {"dominant_domains": ["d0"], "expert_units": UNITS, "dropout": 0.0},
    ),
    # Without its searches: bench_aread_search times these.
    "aread": ("aread", {"base_units": UNITS, "dropout": 0.0}),
    # Source rows beside as many target rows; no sequences here, so no attention and no
    # distillation: what is timed are T, the discriminator, and the two towers.
    "ecat": (
        "ecat",
        {
            "target_domain": "d1",
            "hidden_units": UNITS,
            "taps": ["fields"],
            "use_distillation": False,
        },
    ),
    "cctl": ("cctl", {"target_domain": "d1", "hidden_units": UNITS}),
    "din": ("din", {"hidden_units": UNITS}),
    "eta": ("eta", {"hidden_units": UNITS, "short_length": 10, "top_k": 20}),
    "ecat_history": (
        "ecat",
        {
            "target_domain": "d1",
            "hidden_units": UNITS,
            "short_length": 10,
            "top_k": 20,
            "use_distillation": False,
        },
    ),
}


def measure(names, num_domains, num_tasks, args):
    """Returns results by method for one number of domains and of tasks."""
    peak = timing.MatmulPeak()
    schemas = {
        history: timing.make_schema(
            [ROWS_OF_TABLE] * FIELDS, num_domains, num_tasks, history=history
        )
        for history in (0, HISTORY)
    }
    clock, runs, results = timing.Clock(), {}, {}
    for name in names:
        method, settings = SETTINGS[name]
        timing.reset_peak()
        before = timing.peak_mib()
        schema = schemas[HISTORY if name in WITH_HISTORY else 0]
        made = timing.make_method(method, schema, **settings)
        runs[name] = timing.Training(made, timing.make_batches(made, args.batch))
        runs[name].run(1)
        results[name] = {"peak_mib_added": timing.peak_mib() - before}
    for _ in range(args.rounds):
        peak.time(clock)
        for name, run in runs.items():
            clock.time(name, lambda run=run: run.run(args.steps))
    for name, run in runs.items():
        rows, flops = run.rows * args.steps, run.flops()
        update, parameters = timing.dense_update(run.method)
        for _ in range(args.rounds):
            clock.time("update", update)
        update_secs = clock.cpu_secs("update") * args.steps
        clock.forget("update")
        results[name] |= {
            "rows_per_sec": round(rows / clock.secs(name)),
            "rows_per_cpu_sec": round(rows / clock.cpu_secs(name)),
            "matmul_kflop_per_row": round(flops / run.rows / 1e3),
            "dense_parameters": parameters,
            "update_share_of_cpu": timing.significant(
                update_secs / clock.cpu_secs(name), 2
            ),
            "share_of_matmul_peak": peak.share(clock, name, flops * args.steps),
            "cost_vs_mlp": timing.significant(
                clock.ratio("mlp", name) * runs["mlp"].rows / run.rows
            ),
        }
    return {"matmul_peak_gflops": peak.gflops(clock), "methods": results}


def compare(names, num_tasks, args, processes):
    """Measures for every number of domains; prints one line."""
    table = {}
    for num_domains in args.domains:
        small = num_domains == min(args.domains)
        chosen = [n for n in names if small or n not in SMALLEST_ONLY]
        made = processes.submit(measure, chosen, num_domains, num_tasks, args)
        table[num_domains] = made.result()
    first = table[args.domains[0]]["methods"]
    rows = []
    for num_domains, results in table.items():
        for name, result in results["methods"].items():
            cost = first[name]["rows_per_cpu_sec"] / result["rows_per_cpu_sec"]
            result["cost_vs_first"] = timing.significant(cost)
            rows.append({"method": name, "domains": num_domains, **result})
    timing.print_line(
        "methods",
        batch=args.batch,
        tasks=num_tasks,
        matmul_peak_gflops={d: r["matmul_peak_gflops"] for d, r in table.items()},
        results=sorted(rows, key=lambda row: names.index(row["method"])),
    )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domains", type=int, nargs="+", default=[3, 10, 30, 100])
    parser.add_argument(
        "--methods", nargs="+", choices=SETTINGS, default=list(SETTINGS)
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=2, help="in one timed call")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    with concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as processes:
        for num_tasks in args.tasks:
            known = list(SETTINGS) if num_tasks > 1 else ONE_TASK
            names = ["mlp", *(n for n in known if n in args.methods and n != "mlp")]
            compare(names, num_tasks, args, processes)


if __name__ == "__main__":
    main()
