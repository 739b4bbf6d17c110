"""Files, headings and Python objects named in documents, docstrings and comments exist."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dora_core", "flows", "infra", "tasks", "tests")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.md"))])
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SETTINGS = sorted(
    [
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
        *(path for suffix in ("yaml", "yml", "sh") for path in (ROOT / "infra").rglob(f"*.{suffix}")),
    ]
)

FILE = re.compile(r"(?<![\w/.<>*{}-])((?:[\w.-]+/)*[\w-]+\.(?:py|md|yaml|yml|html|json))(?::([A-Z_a-z]\w*))?(?![\w*])")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?((?:dora_core|flows|infra|tasks|tests)(?:\.\w+)+)`")
DOTTED = re.compile(r"``((?:dora_core|flows|infra|tasks)(?:\.\w+)+)``")


def named_files(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield (path, name of an object in it) of Python and Markdown files, and of other files whose path begins with a package."""
    for path, name in FILE.findall(text):
        if path.split("/")[0] in PACKAGES or ("/" not in path and path.endswith(".py")):
            yield path, name or None


@cache
def prose(module: Path) -> list[str]:
    """Return docstrings and comments."""
    text, found = module.read_text(encoding="utf-8"), list[str]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.append(node.value.value)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            found.append(token.string)
    return found


def exists(path: str, *folders: Path) -> bool:
    return any((folder / path).exists() for folder in folders)


@cache
def defined_in(module: Path) -> dict[str, ast.AST]:
    """Return the top-level names of a module, imported ones included, since packages import their interface."""
    return names_of(ast.parse(module.read_text(encoding="utf-8")).body)


def names_of(body: list[ast.stmt]) -> dict[str, ast.AST]:
    found: dict[str, ast.AST] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.If | ast.Try):
            found |= names_of(node.body)
    return found


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a folder or module of this project, or an object in one; attributes are looked up in classes only."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:count])
        module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if not module.is_file():
            continue
        if count == len(parts):
            return True
        found = defined_in(module).get(parts[count])
        if isinstance(found, ast.ClassDef) and len(parts) > count + 1:
            return bool(found.bases) or parts[count + 1] in names_of(found.body)
        return found is not None
    return False


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_names_files_that_exist(document: Path) -> None:
    """A bare file name may be anywhere in the document's package; a name after the colon is defined in the file."""
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    package = ROOT / document.relative_to(ROOT).parts[0] if document.parent != ROOT else ROOT
    within = {path.name for path in package.rglob("*.py")} if package != ROOT else {path.name for path in MODULES}
    missing = []
    for path, name in named_files(LINK.sub("", text)):
        places = [folder / path for folder in (document.parent, ROOT, package) if (folder / path).is_file()]
        if not places and not ("/" not in path and path in within):
            missing.append(path)
        elif name and places and not any(name in defined_in(place) for place in places):
            missing.append(f"{path}:{name}")
    for folder in re.findall(r"`((?:dora_core|flows|infra|tasks|tests)/(?:[\w-]+/)*)`", text):
        missing += [] if (ROOT / folder).is_dir() else [folder]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_documents_links_lead_somewhere(document: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", document.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if "://" in link:
            continue
        if not target.exists():
            broken.append(link)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            broken += [] if anchor in map(slug, headings) else [link]
    assert not broken


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_and_comments_name_files_that_exist(package: str) -> None:
    missing = []
    for module in MODULES:
        if module.relative_to(ROOT).parts[0] != package:
            continue
        for text in prose(module):
            for path, _ in named_files(text):
                if not exists(path, ROOT, module.parent):
                    missing.append(f"{module.relative_to(ROOT)}: {path}")
    assert not missing


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_refer_to_objects_that_exist(package: str) -> None:
    missing = []
    for module in MODULES:
        if module.relative_to(ROOT).parts[0] != package:
            continue
        for text in prose(module):
            for dotted in (*ROLE.findall(text), *DOTTED.findall(text)):
                if not resolves(dotted):
                    missing.append(f"{module.relative_to(ROOT)}: {dotted}")
    assert not missing


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_comments_of_settings_name_files_that_exist(path: Path) -> None:
    comments = "\n".join(line[line.index("#") :] for line in path.read_text(encoding="utf-8").splitlines() if "#" in line)
    missing = [name for name, _ in named_files(comments) if not exists(name, ROOT, path.parent)]
    assert not missing


@pytest.mark.parametrize("package", ["dora_core", "flows", "infra", "tasks"])
def test_a_readme_names_every_folder_with_modules(package: str) -> None:
    text = (ROOT / package / "README.md").read_text(encoding="utf-8")
    folders = {module.parent.relative_to(ROOT / package) for module in MODULES if module.is_relative_to(ROOT / package)}
    unnamed = [str(folder) for folder in folders - {Path()} if f"{folder.name}/" not in text]
    assert not unnamed


def test_a_stale_name_would_be_found(tmp_path: Path) -> None:
    assert dict(named_files("see ``flows/chain.py``, `plan.py` and mlflow/utils/validation.py; `tasks/stages/<stage>.py`")) == {
        "flows/chain.py": None,
        "plan.py": None,
    }
    assert not exists("flows/chain.py", ROOT, tmp_path)
    assert resolves("flows.planning.specs.Chain.compare") and resolves("tasks.runtime.stage")
    assert not resolves("flows.planning.specs.Chain.gone") and not resolves("flows.chain.Chain")
    assert slug("What may be killed") == "what-may-be-killed"
