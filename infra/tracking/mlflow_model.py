"""Make a model folder an MLflow model, by a few small files beside its weights: nothing is copied, and nothing is pickled.

``MLmodel`` names a signature (chat messages → text), an input example, and the code that answers (:mod:`infra.tracking.served_chat`, copied
beside it: a server needs mlflow, torch and transformers, not this package). With it `mlflow models serve`, ``mlflow.pyfunc.load_model`` and
the buttons of MLflow's pages work on the registered version. transformers and vLLM ignore these files.

The files are the same for the same releases of the libraries, so that a folder written twice is the same folder.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.tracking.mlflow_import import load_mlflow

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

MLMODEL = "MLmodel"
CODE = "dora_chat.py"
EXAMPLE = "input_example.json"
SERVING_EXAMPLE = "serving_input_example.json"
REQUIREMENTS = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "pandas")
MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": "How do I learn to swim?"}]}


def mlflow_files() -> dict[str, str]:
    """Return the files by name, with their text."""
    import yaml

    load_mlflow()
    from mlflow.models import Model

    pinned = [f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS]  # "2.13.0+cpu" is on no common index
    python = platform.python_version()
    code = (Path(__file__).parent / "served_chat.py").read_text(encoding="utf-8")
    table = json.dumps({"columns": ["messages"], "data": [[MESSAGES["messages"]]]})
    example = {"artifact_path": EXAMPLE, "serving_input_path": SERVING_EXAMPLE, "type": "dataframe", "pandas_orient": "split"}
    flavour = {
        "loader_module": "mlflow.pyfunc.model",
        "model_code_path": CODE,
        "artifacts": {"model": {"path": ".", "uri": "."}},
        "python_version": python,
        "env": {"virtualenv": "python_env.yaml"},
    }
    model = Model(signature=_signature(), saved_input_example_info=example, flavors={"python_function": flavour})
    described = {name: value for name, value in model.to_dict().items() if name not in ("utc_time_created", "model_uuid")}
    environment = {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    return {
        CODE: code,
        EXAMPLE: table,
        SERVING_EXAMPLE: json.dumps({"dataframe_split": json.loads(table)}),
        "requirements.txt": "\n".join(pinned) + "\n",
        "python_env.yaml": yaml.safe_dump(environment, sort_keys=False),
        MLMODEL: yaml.safe_dump(described, sort_keys=False),  # last: with it the folder is a model
    }


def _signature() -> ModelSignature:
    load_mlflow()
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    message = Object([Property("role", DataType.string), Property("content", DataType.string)])
    params = [
        ParamSpec("max_tokens", DataType.long, 256),
        ParamSpec("temperature", DataType.double, 0.0),
        ParamSpec("seed", DataType.long, 0),
    ]
    inputs, outputs = Schema([ColSpec(Array(message), "messages")]), Schema([ColSpec(DataType.string)])
    return ModelSignature(inputs=inputs, outputs=outputs, params=ParamSchema(params))


def describe_model(folder: Path) -> list[Path]:
    """Write the files into a folder with a language model that is no MLflow model yet; returns the new files.

    A folder that may not be written to stays as it is.
    """
    written: list[Path] = []
    if not (folder / "config.json").is_file() or (folder / MLMODEL).is_file():
        return written
    try:
        for name, text in mlflow_files().items():
            aside = folder / f".{name}.part"
            aside.write_text(text, encoding="utf-8")
            written.append(aside.replace(folder / name))
    except OSError:
        return []
    return written
