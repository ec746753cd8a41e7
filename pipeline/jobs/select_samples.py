"""Graph-guided choice of source rows for a target domain, as a stream of its own.

The users and items of the target's training rows are *seeds*.  Clicks (or other
positive labels) of the source rows are edges between users and items.  Source rows
whose user and item are both near the seeds, one of them a seed itself, are written to
`<data_dir>/streams/<name>`, with what was chosen and why in `selection.json`.

Source: ECAT (arXiv 2407.02542), section 3.1, "GST".
Differs: both ends of a row must be near and one a seed (the paper leaves it open; see
`require_seed`); a node hands on `degree_cap` edges at most, items two hops away need
`min_co_clicks` common users, and at most `max_ratio` rows a target row are kept, since
two hops through a popular node reach everything; hop two goes to items only.
"""

import json
import pathlib
from typing import Any

import apache_beam as beam
import numpy as np

from features.dataset import Dataset
from pipeline import launch
from pipeline.errors import JobError
from pipeline.publish import Staging
from pipeline.selection import SelectOptions, report
from pipeline.transforms import (
    combine,
    graph,
    graph_clusters,
    graph_look,
    graph_rows,
    graph_similar,
    prepared,
    record_batches,
    stream,
)

REPORT_FILE = "selection.json"


def build(
    pipeline: beam.Pipeline, options: SelectOptions, folder: pathlib.Path
) -> None:
    """Adds the whole job to a pipeline; it writes below `folder`."""
    record_batches.register_coder()
    dataset = Dataset.open(options.data_dir)
    plan = graph_look.SelectionPlan(options, dataset)
    files = prepared.RowFiles.of(dataset, "train")
    looked = _look_at_rows(pipeline, files, plan, options)
    counts = beam.pvalue.AsSingleton(
        looked[graph_look.COUNTS]
        | "Add up rows"
        >> beam.CombineGlobally(combine.MergePartials(combine.add_counts, {}))
    )
    near = _near_rows(looked, plan, options)
    kept = near[graph_rows.ROWS] | "Keep the nearest" >> graph_rows.KeepMost(
        counts, options.max_ratio
    )
    columns = tuple(c.name for c in dataset.info.columns)
    written = (
        kept[graph_rows.ROWS]
        | "Take rows" >> prepared.TakeRows(files)
        | "Write rows"
        >> stream.WriteStream(_writing(options, dataset), folder, columns)
    )
    _ = (
        pipeline
        | "Begin summary" >> beam.Create([None], reshuffle=False)
        | "Write summary"
        >> beam.Map(
            launch.write_summary,
            folder,
            files=beam.pvalue.AsList(written),
            counts=counts,
            hops=beam.pvalue.AsSingleton(
                (near[graph_rows.COUNTS], kept[graph_rows.COUNTS])
                | "All counts by hop" >> beam.Flatten()
                | "Add up by hop"
                >> beam.CombineGlobally(combine.MergePartials(combine.add_counts, {}))
            ),
        )
    )


def _look_at_rows(
    pipeline: beam.Pipeline,
    files: prepared.RowFiles,
    plan: graph_look.SelectionPlan,
    options: SelectOptions,
) -> Any:
    """Returns rows of the source domains, edges, seeds and counts, by tag."""
    tags = (
        graph.LINKS,
        graph.USERS,
        graph.ITEMS,
        graph_look.COUNTS,
        *map(graph_look.members, plan.clusters),
    )
    return (
        pipeline
        | "Read rows" >> prepared.ReadPrepared(files, plan.columns)
        | "Look at rows"
        >> beam.ParDo(graph_look.Look(plan, options)).with_outputs(
            *tags, main=graph_look.ROWS
        )
    )


def _near_rows(
    looked: Any, plan: graph_look.SelectionPlan, options: SelectOptions
) -> Any:
    """Returns rows between near nodes with their hop, and counts by hop, by tag."""
    nodes = _near_nodes(looked, plan, options)
    return {graph_rows.ROWS: looked[graph_look.ROWS], **nodes} | (
        "Find rows"
        >> graph_rows.NearRows(
            require_seed=options.require_seed, num_buckets=options.num_buckets
        )
    )


def _near_nodes(
    looked: Any, plan: graph_look.SelectionPlan, options: SelectOptions
) -> dict[str, beam.PCollection]:
    """Returns the nodes of users and items that rows may have."""
    nodes = {
        tag: looked[tag] for tag in (graph.LINKS, graph.USERS, graph.ITEMS)
    } | "Find nodes" >> graph.FindNodes(
        hops=options.hops,
        degree_cap=options.degree_cap,
        min_co_clicks=options.min_co_clicks,
        num_buckets=options.num_buckets,
    )
    for feature, side in plan.clusters.items():
        members = (
            (looked[graph_look.members(feature)], looked[side])
            | f"Members and seeds of {feature}" >> beam.Flatten()
            | f"Nodes by {feature}"
            >> graph_clusters.NodesOfClusters(
                options.cluster_min_share, options.num_buckets
            )
        )
        both = (nodes[side], members)
        nodes[side] = both | f"Nodes with {feature}" >> beam.Flatten()
    return graph_similar.add_similar(nodes, looked, options)


def run(options: SelectOptions) -> Dataset:
    """Runs the job and publishes the stream.

    Raises:
      JobError: For domains, features or days that cannot be, a target without rows, or
        when no row is chosen.
      LookupError: For a domain or task that the data set does not have.
    """
    dataset = Dataset.open(options.data_dir)
    # What is amiss is said before anything runs.
    plan = graph_look.SelectionPlan(options, dataset)
    target = stream.stream_dir(options.data_dir, options.name)
    with Staging(target, overwrite=options.overwrite, option="name") as staging:
        with launch.beam_pipeline(
            options.beam_args, show_progress=options.show_progress
        ) as pipeline:
            build(pipeline, options, staging.path)
        summary = launch.take_summary(staging.path)
        files = summary["files"]
        info = stream.stream_info(dataset.info, _writing(options, dataset), files)
        domains = np.array(dataset.info.fitted.domains)[plan.chosen_domains].tolist()
        values = report(options, info, domains, summary)
        if not values["rows"]:
            raise JobError(
                f"select_samples must choose rows; got none of {values['source_rows']} "
                f"source rows ({values['target_rows']} target rows, "
                f"{values['nodes']}). Allow more hops, or check that both share users "
                "or items."
            )
        info.save(staging.path)
        text = json.dumps(values, indent=1, sort_keys=True) + "\n"
        (staging.path / REPORT_FILE).write_text(text, "utf-8")
        staging.publish()
    return Dataset.open(target)


def _writing(options: SelectOptions, dataset: Dataset) -> Any:
    return stream.write_options(
        dataset.info, seed=options.seed, rows_per_file=options.rows_per_file
    )
