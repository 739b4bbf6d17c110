"""Rows of nested JSON lines as canonical rows: the adapter's speed and memory beside ``datasets.map`` with the same mapping by hand.

Both read the same file of lists in the schema of UltraFeedback (instruction, completions[] with response, score and model) and end with
prompt, responses, rewards and sources of every row. The adapter also checks every value and keeps row positions; ``datasets`` first
converts the file to Arrow and keeps it on disk. Each contestant runs in a fresh process, so that its peak memory is its own.

    python -m tests.benchmarks.bench_adapter [--rows 1000000] [--save FILE]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.harness import Row, argument_parser, report

PEAK_GIB = 1.0
MODELS = ("llama-2-7b-chat", "gpt-4", "alpaca-7b", "pythia-12b")


def write_rows(path: Path, rows: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            completions = [
                {"model": model, "response": f"Answer {i} of {model}. " * 6, "overall_score": float((i * 7 + place * 3) % 10)}
                for place, model in enumerate(MODELS)
            ]
            file.write(json.dumps({"source": "sharegpt", "instruction": f"Question {i}? " * 8, "completions": completions}) + "\n")


def by_adapter(path: Path) -> int:
    from dora_core.config.data import DataSource
    from dora_core.data.adapted import AdaptedInput
    from dora_core.data.adapter.canonical import CanonicalRow
    from dora_core.data.inputs import Input

    columns = {
        "prompt": "instruction",
        "responses": "completions[].response",
        "rewards": "completions[].overall_score",
        "sources": "completions[].model",
    }
    source = DataSource.model_validate({"path": str(path), "preset": "none", "columns": columns, "carry": ["source"]})
    rows = AdaptedInput(Input(source, "train", "bench"), {}).rows()
    return sum(isinstance(row.value, CanonicalRow) for row in rows)


def by_datasets(path: Path, cache: Path) -> int:
    import datasets

    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))

    def canonical(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": row["instruction"]}],
            "responses": [one["response"] for one in row["completions"]],
            "rewards": [one["overall_score"] for one in row["completions"]],
            "sources": [one["model"] for one in row["completions"]],
        }

    return len(loaded.map(canonical, remove_columns=loaded.column_names))


def child(name: str, path: Path, cache: Path) -> None:
    started = time.perf_counter()
    rows = by_adapter(path) if name == "adapter" else by_datasets(path, cache)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"rows": rows, "seconds": time.perf_counter() - started, "peak": peak}))


def measured(name: str, path: Path, cache: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_adapter", "--child", name, str(path), str(cache)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--child", nargs=3, metavar=("NAME", "FILE", "CACHE"), help="(used by itself) one contestant in this process")
    arguments = parser.parse_args()
    if arguments.child:
        name, path, cache = arguments.child
        child(name, Path(path), Path(cache))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, arguments.rows)
        ours, theirs = measured("adapter", path, Path(folder)), measured("datasets", path, Path(folder) / "cache")
    assert ours["rows"] == theirs["rows"] == arguments.rows
    speed = {name: arguments.rows / one["seconds"] for name, one in (("adapter", ours), ("datasets", theirs))}
    rows = [
        Row(f"adapter, {arguments.rows:,} nested rows", f"{speed['adapter']:,.0f} rows/s"),
        Row("datasets: load_dataset and map by hand", f"{speed['datasets']:,.0f} rows/s"),
        Row("adapter against datasets", f"{speed['adapter'] / speed['datasets']:.2f} ×"),
        Row("peak memory of the adapter", f"{ours['peak']:.2f} GiB", f"≤ {PEAK_GIB} GiB", ours["peak"] <= PEAK_GIB),
        Row("peak memory of datasets", f"{theirs['peak']:.2f} GiB"),
    ]
    report("Nested JSON lines through the adapter", rows, arguments.save)


if __name__ == "__main__":
    main()
