"""The artifact store: ``<root>/<stage>/<digest>/``, content-keyed, resumable, on any ``pyarrow.fs`` URI.

A stage's output is data first and ``result.json`` last, written atomically: a folder without a valid ``result.json`` is
work in progress, never a result. Three methods say it all: :meth:`Store.is_done`, :meth:`Store.mark_done`,
:meth:`Store.incomplete`.

On a local root, stages work directly in their folder. On a remote root (``s3://…``) they work in a local cache folder;
:meth:`StageFolder.commit` uploads a file as soon as it is final, so shards survive the machine.

Left out: locking. Two writers of one digest write the same bytes, and the last rename wins.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import urllib.parse
import uuid
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from dora_core.errors import StoreError

RESULT = "result.json"
SPEC = "spec.json"
ERROR = "error.json"


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, no NaN. The basis of every digest."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write, fsync, rename: a reader sees the old content or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class StageFolder:
    """The working folder of one stage output: a local ``path`` plus ``commit`` for what is final."""

    def __init__(self, store: Store, stage: str, digest: str):
        self.store, self.stage, self.digest = store, stage, digest
        self.path = store.local(f"{stage}/{digest}")
        self.path.mkdir(parents=True, exist_ok=True)

    def commit(self, relative: str) -> None:
        """Make one finished file durable in the store (a no-op on a local root)."""
        self.store.upload(f"{self.stage}/{self.digest}/{relative}", self.path / relative)

    def write_json(self, relative: str, value: Any) -> None:
        write_atomic(self.path / relative, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")
        self.commit(relative)


class Store:
    """See the module docstring.

    Args:
        uri: a local path, ``file:///…``, or any URI ``pyarrow.fs.FileSystem.from_uri`` knows (``s3://bucket/prefix``).
    """

    def __init__(self, uri: str):
        scheme = urllib.parse.urlsplit(uri).scheme
        _refuse_credentials(uri)
        try:
            if scheme in ("", "file"):
                self.local_root = Path(urllib.parse.unquote(urllib.parse.urlsplit(uri).path) if scheme else uri).expanduser().resolve()
                self.local_root.mkdir(parents=True, exist_ok=True)
                self.remote: tuple[pafs.FileSystem, str] | None = None
                self.uri = str(self.local_root)
            else:
                self.remote = pafs.FileSystem.from_uri(uri)
                self.uri = uri.rstrip("/")
                self.local_root = _private_cache() / hashlib.sha256(self.uri.encode()).hexdigest()[:16]
                self.local_root.mkdir(exist_ok=True)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"cannot open the artifact store {uri!r}: {error}",
                hint="give a writable folder or a URI pyarrow can open (s3://bucket/prefix) in DORA_STORE",
            ) from error

    # ------------------------------------------------------------------------------------------- resume, read aloud

    def is_done(self, stage: str, digest: str) -> bool:
        """A result exists and every file it names is there with the right size."""
        result = self.read_result(stage, digest)
        return result is not None and not self.incomplete(stage, result)

    def incomplete(self, stage: str, result: dict[str, Any]) -> list[str]:
        """Names of the result's files that are missing or have another size."""
        return [name for name, facts in result["files"].items() if self._size(f"{stage}/{result['digest']}/{name}") != facts["bytes"]]

    def mark_done(self, folder: StageFolder, result: dict[str, Any]) -> None:
        """Publish a finished stage: checksums of all its files, then ``result.json`` last."""
        files = sorted(p for p in folder.path.rglob("*") if p.is_file() and not _is_bookkeeping(p.relative_to(folder.path)))
        names = [p.relative_to(folder.path).as_posix() for p in files]
        result = result | {"files": {n: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for n, p in zip(names, files, strict=True)}}
        for name in names:
            folder.commit(name)
        folder.write_json(RESULT, result)

    def read_result(self, stage: str, digest: str) -> dict[str, Any] | None:
        return self.read_json(f"{stage}/{digest}/{RESULT}")

    # ------------------------------------------------------------------------------------------------------- files

    def folder(self, stage: str, digest: str) -> StageFolder:
        return StageFolder(self, stage, digest)

    def fetch(self, stage: str, digest: str) -> Path:
        """A local folder with a finished stage's files (downloaded once from a remote root)."""
        result = self.read_result(stage, digest)
        if result is None:
            raise StoreError(
                f"{stage}/{digest[:12]} has no {RESULT} in {self.uri}",
                hint="the stage has not finished or its output was deleted; run `dora realign` again to recompute it",
            )
        local = self.local(f"{stage}/{digest}")
        for name, facts in result["files"].items():
            file = self.local(f"{stage}/{digest}/{name}")
            if self.remote is not None and (not file.exists() or file.stat().st_size != facts["bytes"]):
                self.download(f"{stage}/{digest}/{name}")
        missing = [n for n, facts in result["files"].items() if not (local / n).exists() or (local / n).stat().st_size != facts["bytes"]]
        if missing:
            raise StoreError(
                f"{stage}/{digest[:12]} is damaged: {', '.join(missing[:3])} missing or of another size",
                hint=f"delete {self.uri}/{stage}/{digest} and run again; only this stage and what depends on it are recomputed",
            )
        return local

    def local(self, relative: str) -> Path:
        """The local path of a file or folder of the store. Names come from files, and a store may be shared.

        Raises:
            StoreError: the name leads out of the store, by ``..``, from the root, or through a link.
        """
        path = self.local_root / relative
        if not path.resolve().is_relative_to(self.local_root):
            raise StoreError(
                f"{relative!r} leads out of the store {self.uri}", hint="somebody changed the store by hand: delete that entry"
            )
        return path

    def read_json(self, relative: str) -> Any | None:
        path = self.local(relative)
        if self.remote is not None:
            filesystem, root = self.remote
            if filesystem.get_file_info(f"{root}/{relative}").type != pafs.FileType.File:
                return None
            with filesystem.open_input_stream(f"{root}/{relative}") as stream:
                return json.loads(stream.read())
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except json.JSONDecodeError:
            return None  # torn by a crash of an older version; treated as absent, recomputed

    def write_json(self, relative: str, value: Any) -> None:
        path = self.local(relative)
        write_atomic(path, json.dumps(value, indent=1, sort_keys=True) + "\n")
        self.upload(relative, path)

    def list(self, relative: str) -> list[str]:
        """Names directly under a folder, sorted; empty where there is none."""
        if self.remote is not None:
            filesystem, root = self.remote
            selector = pafs.FileSelector(f"{root}/{relative}", allow_not_found=True)
            return sorted(info.base_name for info in filesystem.get_file_info(selector))
        folder = self.local(relative)
        return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []

    def download(self, relative: str) -> Path:
        target = self.local(relative)
        if self.remote is not None:
            filesystem, root = self.remote
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            pafs.copy_files(
                f"{root}/{relative}", str(temporary), source_filesystem=filesystem, destination_filesystem=pafs.LocalFileSystem()
            )
            os.replace(temporary, target)
        return target

    def upload(self, relative: str, path: Path) -> None:
        if self.remote is not None:
            filesystem, root = self.remote
            filesystem.create_dir(f"{root}/{relative}".rsplit("/", 1)[0], recursive=True)
            pafs.copy_files(str(path), f"{root}/{relative}", source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem)

    def _size(self, relative: str) -> int | None:
        if self.remote is not None:
            filesystem, root = self.remote
            info = filesystem.get_file_info(f"{root}/{relative}")
            return info.size if info.type == pafs.FileType.File else None
        path = self.local(relative)
        return path.stat().st_size if path.is_file() else None


def _is_bookkeeping(relative: Path) -> bool:
    """Files that are not part of the output: specs, results, journals, scratch, temporaries."""
    return relative.parts[0] in {RESULT, SPEC, ERROR, "journal", "scratch"} or relative.name.endswith(".tmp")


def _private_cache() -> Path:
    """``$DORA_CACHE/dora-cache-<uid>``, by default in the temporary folder, which others share: ours alone, or nobody's.

    Raises:
        PermissionError: somebody else made it first.
    """
    cache = Path(os.environ.get("DORA_CACHE", tempfile.gettempdir())).resolve() / f"dora-cache-{os.getuid()}"
    cache.mkdir(parents=True, mode=0o700, exist_ok=True)
    if cache.is_symlink() or cache.stat().st_uid != os.getuid():
        raise PermissionError(f"the cache {cache} belongs to somebody else; set DORA_CACHE to a folder of your own")
    cache.chmod(0o700)
    return cache


def check_writable(uri: str) -> None:
    """Write a small file below a remote URI, and delete it.

    Raises:
        StoreError: the bucket is missing, or the credentials do not suffice.
    """
    _refuse_credentials(uri)
    try:
        filesystem, root = pafs.FileSystem.from_uri(uri)
        probe = f"{root}/.doctor-{uuid.uuid4().hex}"
        with filesystem.open_output_stream(probe) as stream:
            stream.write(b"x")
        filesystem.delete_file(probe)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{uri} is not writable: {error}",
            hint="check the bucket's name, AWS_ENDPOINT_URL, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ) from error


def _refuse_credentials(uri: str) -> None:
    """A store's URI stands in specs, manifests and tags; pyarrow would accept ``s3://key:secret@bucket``."""
    if urllib.parse.urlsplit(uri).username is not None:
        raise StoreError(
            "the store's URI holds credentials",
            hint="give s3://bucket/prefix alone, and the credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )


def split_uri(uri: str, parts: int) -> tuple[str, list[str]]:
    """``("root", ["align", "<digest>", "spec.json"])`` for a URI below a store root."""
    pieces = uri.rstrip("/").split("/")
    return "/".join(pieces[:-parts]), pieces[-parts:]
