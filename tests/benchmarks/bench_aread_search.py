"""What AREAD's mask search costs against the training between two searches.

The paper's settings: Z = 10 candidates of 25 domains, k = 5 batches each, every 2,000
steps, with search batches of a quarter (our default) and of a whole training batch
(the authors').  `hei` is a whole search.  `all` (the authors' form) trains a few
candidates and is scaled up to D x Z of them; so is training, from a few steps.  All in
one run, with the same batch size, rows in memory on both sides; ratios of CPU seconds
are hardly moved by other work on the machine.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # run as a script too

from tests.benchmarks import timing  # isort: skip

import numpy as np  # isort: skip

from models.aread import masks as masks_lib  # isort: skip
from models.aread.config import plan_search  # isort: skip

FIELDS = 15  # and the domain's: 16 of width 16
ROWS_OF_TABLE = 10_000


def make_training(schema, batch, scope, args):
    """Returns training under masks, as it is between searches."""
    method = timing.make_method(
        "aread",
        schema,
        search_scope=scope,
        num_candidates=args.candidates,
        candidate_steps=args.candidate_steps,
        score_batches=args.candidate_steps,
        search_every=args.search_every,
    )
    method.search_state.searches.assign(1)
    return timing.Training(method, batch)


def domain_batches(schema, args):
    """Returns one batch of rows of each domain, the size of a search batch."""
    rows = max(1, round(args.batch * args.search_batch_share))
    eye = np.eye(schema.num_domains)
    return [
        timing.make_batch(schema, rows, shares=eye[d], seed=d)
        for d in range(schema.num_domains)
    ]


def whole_search(method, batches):
    """Returns a whole search, everything traced before by that of one domain."""
    index = {name: d for d, name in enumerate(method.schema.domains)}

    def draw(stream):
        return batches[index[stream.split("/")[1]]]

    search = method.mask_search
    gates = [g.numpy() for g in method.model.hierarchy.gates()]
    search.search_domain(0, draw, plan_search(method.config, 0), gates)
    return lambda: method.search(draw)


def some_candidates(method, batches, args):
    """Trains `args.timed_candidates` of domain 0 on all parameters."""
    shapes = [tuple(v.shape[1:]) for v in method.model.hierarchy.masks]
    mask = tuple(np.ones(shape, bool) for shape in shapes)
    rng = np.random.default_rng(0)
    masks = [
        masks_lib.candidate(mask, 0.3, 1, rng) for _ in range(args.timed_candidates)
    ]
    rows = batches[:1] * args.candidate_steps
    return lambda: method.mask_search.trial.run(0, masks, rows, rows)


def measure(args):
    schema = timing.make_schema(
        [ROWS_OF_TABLE] * FIELDS, args.domains, args.tasks, width=16
    )
    batch = timing.make_batch(schema, args.batch)
    batches = domain_batches(schema, args)
    hei = make_training(schema, batch, "hei", args)
    full = make_training(schema, batch, "all", args)
    runs = {
        "training": lambda: hei.run(args.steps),
        "hei": whole_search(hei.method, batches),
        "all": some_candidates(full.method, batches, args),
    }
    for name in ("training", "all"):
        runs[name]()  # traces
    clock = timing.Clock()
    for _ in range(args.rounds):
        for name, run in runs.items():
            clock.time(name, run)
    interval = args.search_every / args.steps  # calls of `training` between searches
    scale = args.domains * args.candidates / args.timed_candidates
    result = {"training_step_ms": 1e3 * clock.secs("training") / args.steps}
    for name, times in (("hei", 1.0), ("all", scale)):
        result[f"{name}_search_secs"] = clock.secs(name) * times
        for kind in ("wall", "cpu"):
            ratio = clock.ratio("training", name, kind) * times / interval
            result[f"{name}_share_of_training_{kind}"] = ratio
    return {key: timing.significant(value) for key, value in result.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domains", type=int, default=25)
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--candidate-steps", type=int, default=5)
    parser.add_argument("--search-every", type=int, default=2000)
    parser.add_argument(
        "--search-batch-share",
        type=float,
        nargs="+",
        default=[0.25, 1.0],
        help="rows of a search batch over those of a training batch; a line for each",
    )
    parser.add_argument("--timed-candidates", type=int, default=2, help="of `all`")
    parser.add_argument("--steps", type=int, default=5, help="in one timed call")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args(argv)
    for share in args.search_batch_share:
        case = argparse.Namespace(**{**vars(args), "search_batch_share": share})
        timing.print_line("aread_search", **vars(case), **measure(case))


if __name__ == "__main__":
    main()
