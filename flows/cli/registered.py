"""`dora model`: registered models, to look at, export, talk to and push."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.app import app
from flows.cli.errors import explained
from flows.cli.options import Json

if TYPE_CHECKING:
    from flows.cli.files.hub import Hub
    from infra.tracking.model_registry import Registered

model_app = typer.Typer(no_args_is_help=True, help="Registered models: list, show, export, chat, card, push.")
app.add_typer(model_app, name="model")
Name = Annotated[str, typer.Argument(help="NAME (its champion), NAME@ALIAS, NAME:VERSION, or models:/NAME@ALIAS.")]


@model_app.command(name="list", epilog="Example: dora model list")
def list_models(as_json: Json = False) -> None:
    """List every version of every registered model, with its aliases and decision."""
    with explained(as_json):
        from flows.cli.output import Out
        from infra.tracking.model_registry import versions

        found, out = versions(_uri()), Out(as_json)
        rows = []
        for one in sorted(found, key=lambda one: (one.model, -int(one.version))):
            decision, summary = one.tags.get("dora.decision", ""), one.tags.get("dora.summary", "")
            rows.append((one.model, one.version, ", ".join(one.aliases), decision, summary))
        if rows:
            out.table(("model", "version", "aliases", "decision", "summary"), rows)
        else:
            out.say("nothing is registered; `dora realign` registers")
        out.document({"models": [vars(one) for one in found]})


@model_app.command(epilog="Example: dora model show demo@champion")
def show(model: Name, as_json: Json = False) -> None:
    """Show a version: decision, evaluation in a sentence, reasons, history, and the folder of its files."""
    with explained(as_json):
        from flows.cli.output import Out
        from infra.tracking import model_registry as registry
        from infra.tracking.registered_models import files

        uri, version = _found(model)
        past, folder, out = registry.history(uri, version.model, version.version), files(uri, version), Out(as_json)
        aliases, tags = " ".join(f"@{alias}" for alias in version.aliases), version.tags
        out.say(f"{version.model} version {version.version}: {tags.get('dora.decision', 'registered')} {aliases}".rstrip())
        for line in (tags.get("dora.summary", ""), *tags.get("dora.reasons", "").split("; ")):
            if line:
                out.say(f"  {line}")
        for entry in past:
            out.say(f"  {entry['when']}: {entry['action'].replace('_', ' ')} by {entry['who']}")
        out.links({"files": str(folder), "training": tags.get("dora.digest", ""), "evaluation": tags.get("dora.evaluation", "")})
        out.document(vars(version) | {"history": past, "folder": str(folder)})


@model_app.command(epilog="Example: dora model export demo@champion ./champion && vllm serve ./champion")
def export(
    model: Name,
    folder: Annotated[Path, typer.Argument(help="New folder to write.")],
    merge: Annotated[bool, typer.Option("--merge", help="Fold an adapter into its base model.")] = False,
    license: Annotated[str | None, typer.Option("--license", help="Licence for the model card, as an SPDX id.")] = None,
    as_json: Json = False,
) -> None:
    """Write a version as a Hugging Face folder (safetensors, tokenizer, chat template, generation settings, model card).

    Plain `AutoModelForCausalLM.from_pretrained` of transformers 4.45 or later loads it, and servers such as vLLM.
    """
    with explained(as_json):
        from dora_core.models.portable import export_model
        from flows.cli.output import Out
        from infra.tracking.registered_models import files

        uri, version = _found(model)
        notes = export_model(files(uri, version), folder, merge=merge)
        (folder / "README.md").write_text(_card(uri, version, license, None), encoding="utf-8")
        size, out = sum(path.stat().st_size for path in folder.iterdir()), Out(as_json)
        out.say(f"{folder}: {version.model} version {version.version}, {size / 1e6:.1f} MB")
        for note in notes:
            out.say(f"note: {note}")
        out.document({"model": version.model, "version": version.version, "folder": str(folder), "bytes": size, "notes": notes})


@model_app.command(epilog="Example: dora model card demo --license apache-2.0 -o MODEL_CARD.md")
def card(
    model: Name,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: print it.")] = None,
    license: Annotated[str | None, typer.Option("--license", help="Licence, as an SPDX id.")] = None,
    intended_use: Annotated[str | None, typer.Option("--intended-use", help="What the model is for, and what not.")] = None,
    as_json: Json = False,
) -> None:
    """Write a version's model card: data by digest and source, objective, evaluation with intervals, decisions."""
    with explained(as_json):
        from flows.cli.output import Out

        uri, version = _found(model)
        text, out = _card(uri, version, license, intended_use), Out(as_json)
        if output is not None:
            output.write_text(text, encoding="utf-8")
        out.say(text if output is None else f"card: {output}")
        out.document({"model": version.model, "version": version.version, "card": text})


@model_app.command(epilog="Example: dora model chat demo@champion --prompt 'How do I learn to swim?'")
def chat(
    model: Annotated[str, typer.Argument(help="NAME (its champion), NAME@ALIAS, NAME:VERSION, models:/NAME@ALIAS, or a folder.")],
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="A message; repeatable. Default: ask for them.")] = [],  # noqa: B006
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, max=8192, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=5, help="0: greedy.")] = 0.7,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed and messages, same answers.")] = 0,
    as_json: Json = False,
) -> None:
    """Talk to a version on this machine; an empty line or Ctrl-D ends it."""
    with explained(as_json):
        from flows.cli.files.chat import Chat
        from flows.cli.output import Out
        from infra.tracking.registered_models import files, is_registered_name

        is_folder = Path(model).is_dir() and not is_registered_name(model)
        folder = Path(model) if is_folder else files(*_found(model))
        talk, out = Chat.load(folder, system=system, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed), Out(as_json)
        for message in prompt or _asked():
            answer = talk.say(message)
            out.say(answer)
        out.document({"messages": talk.messages})


@model_app.command(epilog="Example: dora model push demo@champion my-team/demo --license apache-2.0 --yes")
def push(
    model: Name,
    repo: Annotated[str, typer.Argument(help="Repository on the hub, OWNER/NAME; it is created if there is none.")],
    yes: Annotated[bool, typer.Option("--yes", help="Send it; without this the command only says what it would send.")] = False,
    public: Annotated[bool, typer.Option("--public", help="A new repository is public; needs --license. Default: private.")] = False,
    license: Annotated[str | None, typer.Option("--license", help="Licence for the model card, as an SPDX id.")] = None,
    intended_use: Annotated[str | None, typer.Option("--intended-use", help="What the model is for, and what not.")] = None,
    as_json: Json = False,
) -> None:
    """Copy a version with its card to the Hugging Face hub, in one commit. The only command that sends a model anywhere."""
    with explained(as_json):
        from dora_core.errors import ConfigError
        from flows.cli.files.hub import files_to_push
        from flows.cli.files.hub import push as push_files
        from flows.cli.output import Out
        from infra.tracking.registered_models import files

        if public and license is None:
            raise ConfigError(
                "a public model needs a licence", hint="name it: --license apache-2.0; the licences of base model and data apply"
            )
        uri, version = _found(model)
        folder, out, url = files(uri, version), Out(as_json), None
        sent, where = files_to_push(folder), "public" if public else "private"
        size = sum(path.stat().st_size for path in sent)
        out.say(f"{version.model} version {version.version}: {len(sent)} files and a card, {size / 1e6:.1f} MB, to {repo} ({where} if new)")
        if yes:
            card = _card(uri, version, license, intended_use)
            message = f"{version.model} version {version.version}"
            url = push_files(_hub(), repo, folder, card, private=not public, message=message)
            out.say(f"sent: {url}")
        else:
            out.say("nothing was sent; to send it: the same command with --yes")
        named = {"model": version.model, "version": version.version, "repo": repo, "sent": yes, "url": url, "bytes": size}
        out.document(named | {"files": [path.relative_to(folder).as_posix() for path in sent]})


def _hub() -> Hub:
    from huggingface_hub import HfApi

    return HfApi()


def _asked() -> Iterator[str]:
    while True:
        try:
            if sys.stdin.isatty():
                print("> ", end="", file=sys.stderr, flush=True)
            message = input().strip()
        except EOFError:
            return
        if not message:
            return
        yield message


def _uri() -> str:
    from infra.settings import Settings, apply_environment

    return apply_environment(Settings()).mlflow_uri


def _found(model: str) -> tuple[str, Registered]:
    from infra.tracking.registered_models import find

    uri = _uri()
    return uri, find(uri, model)


def _card(uri: str, version: Registered, license: str | None, intended_use: str | None) -> str:
    from flows.report.model_card import model_card
    from infra.settings import Settings
    from infra.store.store import Store
    from infra.tracking import model_registry as registry

    past = registry.history(uri, version.model, version.version)
    return model_card(Store(Settings().store_uri), version, past, license=license, intended_use=intended_use)
