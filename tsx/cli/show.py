"""`tsx show RUN`: everything the registry knows of one run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from registry.queries import Reader
    from registry.views import RunDetail


def command(
    run: Annotated[str, typer.Argument(help="Id, unique prefix, name, @last or @-2.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    captured: Annotated[
        bool, typer.Option("--output", help="Print what the run wrote to stdout and stderr.")
    ] = False,
) -> None:
    """Show everything the registry knows of one run.

    The id of a search shows its table instead.
    """
    from tsx.cli import output
    from tsx.cli.reading import open_reader

    with open_reader() as reader:
        if _show_search(run, reader, as_json=as_json):
            return
        detail = reader.get_detail(reader.get_run(run).id)
        if as_json:
            output.json(to_plain(detail))
        elif captured:
            _show_output(detail)
        else:
            _show_detail(detail, reader)


def _show_search(reference: str, reader: Reader, *, as_json: bool) -> bool:
    """Show the table of a search; return whether there is one of that id."""
    from tsx.cli import output, search_table

    table = search_table.find_search(reader, reference)
    if table is None:
        return False
    if as_json:
        output.json(search_table.to_plain(table))
    else:
        search_table.show(table)
    return True


def to_plain(detail: RunDetail) -> dict[str, Any]:
    """Return a run as plain data for JSON."""
    from tsx.cli.reading import to_plain_run

    names = ("time", "from_step", "steps")
    resumes = [dict(zip(names, resume, strict=True)) for resume in detail.resumes]
    plain = {
        "run": to_plain_run(detail.run) | {"resumes": resumes},
        "config": detail.config,
        "environment": detail.environment,
        "metrics": {key: asdict(summary) for key, summary in detail.metrics.items()},
        "findings": [asdict(finding) for finding in detail.findings],
        "artifacts": [asdict(artifact) for artifact in detail.artifacts],
    }
    if detail.histograms:
        plain["histograms"] = {key: asdict(row) for key, row in detail.histograms.items()}
    return plain


def _show_output(detail: RunDetail) -> None:
    """Print captured output; what belongs to which stream goes to stderr."""
    from tsx.cli import output

    texts = [part for part in detail.output if part.text]
    if not texts:
        output.talk(f"run {detail.run.id} has no captured output")
    for part in texts:
        if len(texts) > 1:
            output.talk(f"--- {part.stream} ---", style="dim")
        output.data(part.text.removesuffix("\n"))
        if part.dropped_bytes:
            output.talk(f"({part.dropped_bytes} bytes of {part.stream} were not kept)")


def _show_detail(detail: RunDetail, reader: Reader) -> None:
    """Show the run from top to bottom: status, numbers, curves, findings, config, files."""
    import time

    from tsx import pages
    from tsx.cli.finding_lines import offer_replay
    from tsx.cli.paint import find_width, show_heading, show_lines
    from tsx.compare.configdiff import is_run_config

    show_lines(pages.list_head_lines(detail.run, time.time()))
    _show_loss(detail, reader)
    if detail.findings:
        show_heading("findings")
        show_lines(pages.list_finding_lines(detail.findings, find_width()))
    show_heading("metrics")
    show_lines(pages.list_metric_lines(detail.metrics, find_width()))
    if detail.histograms:
        show_heading("histograms")
        show_lines(pages.list_histogram_lines(detail.histograms.values()))
    ours = is_run_config(detail.config)
    show_heading("config, where it is not the default" if ours else "config")
    show_lines(pages.list_change_lines(detail.config))
    show_heading("environment")
    show_lines(pages.list_environment_lines(detail.environment))
    if detail.artifacts:
        show_heading("files")
        show_lines(pages.list_artifact_lines(detail.artifacts))
    if detail.resumes:
        show_heading("resumed")
        show_lines(pages.list_resume_lines(detail))
    offer_replay(detail.run.id)


def _show_loss(detail: RunDetail, reader: Reader) -> None:
    """Draw the loss curves, where the run has any."""
    from tsx.chart import Frame
    from tsx.cli.charts import MAX_COLUMNS, show_curves
    from tsx.curve_groups import find_loss_group, make_curves

    group = find_loss_group(detail.metrics)
    keys = [key for _, key in group.members]
    if keys:
        from tsx.cli import output

        output.data("")
        held = {key: reader.get_outline(detail.run.id, key, MAX_COLUMNS) for key in keys}
        show_curves(make_curves(group, held), Frame(title=group.title))
