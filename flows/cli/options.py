"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Option("--config", "-c", help="Configuration file (YAML); see infra/configs/ for documented examples.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one value, e.g. align.objective.lambda=2.0; repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would run and why; run nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs of the stages and of Prefect.")]

# Of the commands that work on files alone: `dora generate`, `dora judge`.
OutputFile = Annotated[Path, typer.Option("--output", "-o", help="File to write: .parquet or .jsonl.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there and differs.")]
Column = Annotated[
    list[str], typer.Option("--column", metavar="FIELD=COLUMN", help="Name of a column in the file, e.g. prompt=question; repeatable.")
]
Server = Annotated[str | None, typer.Option("--endpoint", metavar="URL", help="OpenAI-compatible server, up to and including /v1.")]
KeyVariable = Annotated[str | None, typer.Option("--api-key-env", metavar="NAME", help="Environment variable with the server's key.")]
Workers = Annotated[int | None, typer.Option("--workers", min=0, help="Ray actors that share the work; 0: in this process.")]
AnySetting = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, e.g. text.max_prompt_tokens=2048; repeatable.")
]
