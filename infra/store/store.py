"""The artifact store: ``<root>/<stage>/<digest>/``, content-keyed, resumable, on any ``pyarrow.fs`` URI.

A stage's output is data first and ``result.json`` last, written atomically: a folder without a valid ``result.json`` is
work in progress, never a result. Three methods implement this: :meth:`Store.is_done`, :meth:`Store.mark_done`,
:meth:`Store.incomplete`.

On a local root, stages work directly in their folder. On a remote root (``s3://…``) they work in a local cache folder;
:meth:`StageFolder.commit` uploads a file as soon as it is final, so shards survive the machine.

Damage is detected before it is used. ``result.json`` names the size and the sha256 of every file. A missing or truncated file makes its
stage not done (:meth:`Store.is_done`: sizes alone, so that a plan reads no data), and it is computed again. Other bytes of the same size
are found by :meth:`Store.fetch`, through which every result is read: once per process and file, at the speed of sha256.

A full disk is a :class:`StoreError` with the disk and the next step, whichever library raised the error (:func:`full_disk`). An outage of
a remote store is waited out (``dora_core/remote_files.py``).

Left out: locking (``infra/store/locks.py``). Two writers of one digest write the same bytes, and the last rename wins.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import threading
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pyarrow.fs as pafs

from dora_core.environment import variable
from dora_core.errors import DoraError, StoreError
from dora_core.remote_files import open_filesystem, read_object

if TYPE_CHECKING:
    from infra.store.json_files import FileFacts, Result, StoredResult

RESULT = "result.json"
SPEC = "spec.json"
ERROR = "error.json"
TEMPORARY = ".*.tmp"
"""Files being written; a killed process leaves them behind."""
_FULL = ("No space left on device", "os error 28", "Disk quota exceeded", "disk is full", "unexpected pos", "PytorchStreamWriter failed")
"""Messages of a full disk in libraries with their own errors: safetensors, Arrow, Ray; torch after a short write."""


def canonical_json(value: Any) -> str:
    """Serialise a value to a unique text: sorted keys, no spaces, no NaN. The basis of every digest."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """:func:`replacing` with a text in UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path``, fsynced, at the end of the block: a reader sees the old content or the new, never a part.

    If the block fails, the old content stays and the new is deleted.

    Raises:
        StoreError: the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if (named := full_disk(error, path.parent)) is not None:
            raise named from error
        raise


def full_disk(error: BaseException, folder: Path) -> StoreError | None:
    """Translate ``error``, raised while ``folder`` was written, if it means a full disk; None if it does not.

    The disk is that of the file in the error, of ``folder`` or of temporary files: the one with the least free space.
    """
    if isinstance(error, DoraError):
        return None
    quota = isinstance(error, OSError) and error.errno == errno.EDQUOT
    if not (quota or (isinstance(error, OSError) and error.errno == errno.ENOSPC) or any(text in str(error) for text in _FULL)):
        return None
    named = [Path(error.filename)] if isinstance(error, OSError) and isinstance(error.filename, str) else []
    mounts = {_mount(path) for path in (*named, folder, Path(tempfile.gettempdir()))}
    mount = min(mounts, key=lambda mount: shutil.disk_usage(mount).free)
    usage = shutil.disk_usage(mount)
    return StoreError(
        f"{'the disk quota is used up' if quota else 'the disk is full'}: {usage.free / 1e6:,.1f} of {usage.total / 1e6:,.1f} MB are free "
        f"on {mount} now, while {folder} was written",
        hint="free space there (`dora gc` lists what can be deleted) and run the same command again: finished stages and shards are kept",
    )


def _mount(path: Path) -> Path:
    """Return the root of the file system of ``path`` or, if it does not exist, of its next parent."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists() and p.is_mount())


class StageFolder:
    """The working folder of one stage output: a local ``path``, and ``commit`` for final files."""

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
        uri: a local path, ``file:///…``, or any URI ``pyarrow.fs.FileSystem.from_uri`` accepts (``s3://bucket/prefix``).
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
                self.remote = open_filesystem(uri)
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
        """Whether a result exists and every file it names has the right size; :meth:`fetch` checks their content."""
        result = self.read_result(stage, digest)
        return result is not None and not self.incomplete(stage, result)

    def incomplete(self, stage: str, result: StoredResult) -> list[str]:
        """List the result's files that are missing or have another size."""
        return [name for name, facts in result["files"].items() if self._size(f"{stage}/{result['digest']}/{name}") != facts["bytes"]]

    def mark_done(self, folder: StageFolder, result: Result) -> None:
        """Publish a finished stage: checksums of all its files, ``result.json`` last. Temporary files of killed processes are deleted."""
        for left in folder.path.rglob(TEMPORARY):
            left.unlink(missing_ok=True)
        files = sorted(p for p in folder.path.rglob("*") if p.is_file() and not _is_bookkeeping(p.relative_to(folder.path)))
        names = [p.relative_to(folder.path).as_posix() for p in files]
        facts: dict[str, FileFacts] = {}
        for name, path in zip(names, files, strict=True):
            facts[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for name in names:
            folder.commit(name)
        folder.write_json(RESULT, {**result, "files": facts})

    def read_result(self, stage: str, digest: str) -> StoredResult | None:
        """Read ``result.json``; None if it is missing or damaged."""
        result = self.read_json(f"{stage}/{digest}/{RESULT}")
        return cast("StoredResult", result) if isinstance(result, dict) and result.keys() >= {"digest", "files"} else None

    # ------------------------------------------------------------------------------------------------------- files

    def folder(self, stage: str, digest: str) -> StageFolder:
        return StageFolder(self, stage, digest)

    def fetch(self, stage: str, digest: str) -> Path:
        """Return a local folder with a finished stage's files (downloaded once from a remote root), verified by their checksums.

        Raises:
            StoreError: the stage is not finished, or a file of it is missing, truncated or altered.
        """
        result = self.read_result(stage, digest)
        if result is None:
            raise StoreError(
                f"{stage}/{digest[:12]} has no {RESULT} in {self.uri}",
                hint="the stage has not finished or its output was deleted; run `dora realign` again to recompute it",
            )
        local = self.local(f"{stage}/{digest}")
        for name, facts in result["files"].items():
            file = self.local(f"{stage}/{digest}/{name}")
            if self.remote is not None and not _is_whole(file, facts):
                self.download(f"{stage}/{digest}/{name}")
        damaged = [name for name, facts in result["files"].items() if not _is_whole(local / name, facts)]
        if damaged:
            raise StoreError(
                f"{stage}/{digest[:12]} is damaged: {', '.join(damaged[:3])} missing or not what was written (sha256)",
                hint=f"delete {self.uri}/{stage}/{digest} and run the same command again: only this stage is computed again",
            )
        return local

    def local(self, relative: str) -> Path:
        """Return the local path of a file or folder of the store. Names are read from files, and a store may be shared.

        Raises:
            StoreError: the name leads out of the store, by ``..``, an absolute path, or a link.
        """
        path = self.local_root / relative
        if not path.resolve().is_relative_to(self.local_root):
            raise StoreError(f"{relative!r} leads out of the store {self.uri}", hint="the store was changed by hand: delete that entry")
        return path

    def read_json(self, relative: str) -> Any | None:
        """Read a JSON file; None if it is missing or not JSON (a damaged disk), so that it is written again."""
        path = self.local(relative)
        if self.remote is not None:
            filesystem, root = self.remote
            try:
                return _parsed(read_object(filesystem, f"{root}/{relative}"))
            except FileNotFoundError:
                return None
        try:
            return _parsed(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_json(self, relative: str, value: Any) -> None:
        path = self.local(relative)
        write_atomic(path, json.dumps(value, indent=1, sort_keys=True) + "\n")
        self.upload(relative, path)

    def list(self, relative: str) -> list[str]:
        """List the names directly under a folder, sorted; empty if there is none. Hidden ones, being written or deleted, are left out."""
        if self.remote is not None:
            filesystem, root = self.remote
            selector = pafs.FileSelector(f"{root}/{relative}", allow_not_found=True)
            return sorted(info.base_name for info in filesystem.get_file_info(selector) if not info.base_name.startswith("."))
        folder = self.local(relative)
        return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []

    def has(self, relative: str) -> bool:
        """Whether a file is there: asked for by its name, since the listing of some remote stores lags behind their files."""
        return self._size(relative) is not None

    def download(self, relative: str) -> Path:
        """Copy a file of a remote store to this machine; returns its path here.

        Raises:
            FileNotFoundError: the remote store does not have it.
        """
        target = self.local(relative)
        if self.remote is not None:
            filesystem, root = self.remote
            with replacing(target) as file, filesystem.open_input_stream(f"{root}/{relative}") as stream:
                shutil.copyfileobj(stream, file, 1 << 20)
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


def _parsed(text: bytes) -> Any | None:
    try:
        return json.loads(text)
    except ValueError:  # neither JSON nor text
        return None


_checked: set[tuple[Path, int, int]] = set()
"""Files that this process has verified, with size and time of change."""


def _is_whole(path: Path, facts: FileFacts) -> bool:
    """Whether a file has the size and checksum in ``result.json``."""
    if not path.is_file() or path.stat().st_size != facts["bytes"]:
        return False
    seen = (path, facts["bytes"], path.stat().st_mtime_ns)
    if seen not in _checked:
        if sha256_file(path) != facts["sha256"]:
            return False
        _checked.add(seen)
    return True


def _is_bookkeeping(relative: Path) -> bool:
    """Whether a file is not part of the output: specs, results, journals, scratch, temporaries."""
    return relative.parts[0] in {RESULT, SPEC, ERROR, "journal", "scratch"} or relative.name.endswith(".tmp")


def _private_cache() -> Path:
    """Create ``$DORA_CACHE/dora-cache-<uid>``, by default in the shared temporary folder, for this user alone.

    Raises:
        PermissionError: it belongs to another user.
    """
    cache = Path(variable("DORA_CACHE") or tempfile.gettempdir()).expanduser().resolve() / f"dora-cache-{os.getuid()}"
    cache.mkdir(parents=True, mode=0o700, exist_ok=True)
    if cache.is_symlink() or cache.stat().st_uid != os.getuid():
        raise PermissionError(f"the cache {cache} belongs to another user; set DORA_CACHE to a folder of your own")
    cache.chmod(0o700)
    return cache


def check_writable(uri: str) -> None:
    """Write a small file below a remote URI, and delete it.

    Raises:
        StoreError: the bucket is missing, or the credentials are insufficient.
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
    """Refuse credentials in a store's URI, which is written into specs, manifests and tags; pyarrow would accept them."""
    if urllib.parse.urlsplit(uri).username is not None:
        raise StoreError(
            "the store's URI holds credentials",
            hint="give s3://bucket/prefix alone, and the credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )


def split_uri(uri: str, parts: int) -> tuple[str, list[str]]:
    """Split a URI below a store root: ``("root", ["align", "<digest>", "spec.json"])``."""
    pieces = uri.rstrip("/").split("/")
    return "/".join(pieces[:-parts]), pieces[-parts:]
