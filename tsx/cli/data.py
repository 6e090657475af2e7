"""`tsx data`: series, before anything is trained on them."""

from __future__ import annotations

import typer

from tsx.cli import data_download, data_inspect

app = typer.Typer()


@app.callback()
def group() -> None:
    """Inspect and download series."""


app.command("inspect")(data_inspect.command)
app.command("download")(data_download.command)
