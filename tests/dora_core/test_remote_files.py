"""Outages of an S3 server: 503, cut connections, none at all; with a real client, a real server and a proxy between them."""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from dora_core import remote_files
from dora_core.errors import StoreError
from dora_core.remote_files import Unreachable, is_transient, open_filesystem, outages, read_object
from tests.faults import Recovery
from tests.s3_proxy import S3Proxy, s3_proxy
from tests.s3_server import BUCKET, S3Server, s3_server

CONTENT = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """S3 with few attempts of its client, so that the attempts of this project are needed, and short pauses."""
    for name, value in {"ATTEMPTS": 2, "LONGEST_PAUSE": 0.3}.items():
        monkeypatch.setattr(remote_files, name, value)
    with s3_proxy(server) as proxy:
        for name, value in proxy.server.environment.items():
            monkeypatch.setenv(name, value)
        yield proxy


def there(name: str) -> tuple[pafs.FileSystem, str]:
    filesystem, path = open_filesystem(f"s3://{BUCKET}/{name}")
    with filesystem.open_output_stream(path) as stream:
        stream.write(CONTENT)
    return filesystem, path


def read(filesystem: pafs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


@pytest.mark.fault(25)
def test_answers_of_503_are_outlasted(proxy: S3Proxy, caplog: pytest.LogCaptureFixture, recovery: Recovery) -> None:
    """Seven refusals are more than three times the two attempts of the client."""
    filesystem, path = there("busy")
    before = len(outages)
    proxy.next("slow_down", "HEAD", 7)
    recovery.begins()
    with caplog.at_level(logging.WARNING, "dora.store"):
        assert filesystem.get_file_info(path).size == len(CONTENT)
    recovery.ends()
    assert proxy.failed == {"slow_down HEAD": 7} and len(outages) == before + 1
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"s3://{BUCKET} does not answer (") and "HTTP status 503" in first
    assert last.startswith(f"s3://{BUCKET} answers again after ")


@pytest.mark.fault(25)
def test_an_upload_outlasts_503(proxy: S3Proxy) -> None:
    proxy.next("slow_down", "PUT", 3)
    filesystem, path = there("uploaded")
    assert proxy.failed["slow_down PUT"] == 3 and read(filesystem, path) == CONTENT


@pytest.mark.fault(26)
def test_a_connection_cut_in_an_upload_and_in_a_download_costs_no_byte(proxy: S3Proxy, server: S3Server, tmp_path: Path) -> None:
    """6 MB are sent in parts; one is cut, and the answer to another is lost, so that it is sent twice."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(6_000_000))
    filesystem, path = open_filesystem(f"s3://{BUCKET}/large")
    proxy.next("cut_request", "PUT")
    proxy.next("cut_answer", "PUT")
    pafs.copy_files(str(source), path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem)
    assert sum(proxy.failed.values()) == 2
    assert server.objects("large") == {"large": source.read_bytes()}
    proxy.next("cut_answer", "GET", 2)
    target.write_bytes(read(filesystem, path))
    assert proxy.failed["cut_answer GET"] == 2 and target.read_bytes() == source.read_bytes()


def test_a_folder_of_more_files_than_threads_is_uploaded(proxy: S3Proxy, server: S3Server, tmp_path: Path) -> None:
    """As Ray Train uploads a checkpoint; with writes in the background, pyarrow's threads would wait for each other."""
    for number in range(12):
        (tmp_path / f"{number}").write_bytes(bytes([number]) * 1000)
    filesystem, path = open_filesystem(f"s3://{BUCKET}/folder", in_background=False)
    pafs.copy_files(str(tmp_path), path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=filesystem)
    found = {name: content for name, content in server.objects("folder/").items() if not name.endswith("/")}
    assert found == {f"folder/{number}": bytes([number]) * 1000 for number in range(12)}


@pytest.mark.fault(28)
def test_a_server_that_comes_back_is_waited_for(proxy: S3Proxy, caplog: pytest.LogCaptureFixture, recovery: Recovery) -> None:
    filesystem, path = there("waited")
    proxy.is_away = True
    recovery.begins()
    back = threading.Timer(1.5, setattr, (proxy, "is_away", False))
    back.start()
    with caplog.at_level(logging.WARNING, "dora.store"):
        assert read(filesystem, path) == CONTENT
        assert filesystem.get_file_info(path).size == len(CONTENT)
    recovery.ends()
    back.join()


@pytest.mark.fault(28)
def test_a_server_that_stays_away_is_an_error_with_the_next_step(proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem, path = there("gone")
    monkeypatch.setattr(remote_files, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(remote_files, "GIVEN_UP_SECONDS", 0.0)
    proxy.is_away = True
    with pytest.raises(Unreachable, match=rf"s3://{BUCKET} has not answered for \d+ s .*NETWORK_CONNECTION") as error:
        filesystem.get_file_info(path)
    assert isinstance(error.value, StoreError) and isinstance(error.value, OSError)
    assert "AWS_ENDPOINT_URL" in error.value.hint and "finished shards" in error.value.hint
    monkeypatch.setattr(remote_files, "PATIENCE_SECONDS", 600.0)
    with pytest.raises(Unreachable):  # the next operation does not wait as long again
        filesystem.get_file_info(path)
    proxy.is_away = False
    assert filesystem.get_file_info(path).size == len(CONTENT)


def test_errors_that_recur_are_raised_at_once(proxy: S3Proxy) -> None:
    filesystem, path = there("here")
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_stream(f"{path}-not")
    with pytest.raises(OSError, match=r"NO_SUCH_BUCKET|NoSuchBucket|does not exist"):
        filesystem.open_output_stream("no-such-bucket/x").close()
    transient = [
        "AWS Error SLOW_DOWN during X",
        "AWS Error UNKNOWN (HTTP status 503) during X",
        "AWS Error NETWORK_CONNECTION: curlCode: 7",
    ]
    permanent = ["AWS Error ACCESS_DENIED during X", "AWS Error UNKNOWN (HTTP status 403) during X", "NETWORK_CONNECTION curlCode: 60, bad"]
    assert [is_transient(OSError(text)) for text in transient + permanent] == [True] * 3 + [False] * 3


class _Deleting:
    """Deletes every object between its opening and its first read."""

    def __init__(self, filesystem: pafs.FileSystem):
        self._filesystem = filesystem

    def open_input_stream(self, path: str) -> Any:
        stream = self._filesystem.open_input_stream(path)
        self._filesystem.delete_file(path)
        return stream


@pytest.mark.fault(34)
def test_an_object_deleted_while_it_is_read_is_missing(proxy: S3Proxy, caplog: pytest.LogCaptureFixture) -> None:
    """Not an outage: the client's error for it looks like one (seen where three machines asked for one lease)."""
    filesystem, path = open_filesystem(f"s3://{BUCKET}/claim")
    with filesystem.open_output_stream(path) as out:
        out.write(b"1")
    assert read_object(filesystem, path) == b"1"
    with pytest.raises(FileNotFoundError):
        read_object(_Deleting(filesystem), path)
    assert not caplog.records


def test_a_deletion_whose_answer_was_lost_is_done(proxy: S3Proxy) -> None:
    """The client's two attempts lose their answers; the third finds no file."""
    filesystem, path = there("deleted")
    proxy.next("cut_answer", "DELETE", 2)
    filesystem.delete_file(path)
    assert filesystem.get_file_info(path).type == pafs.FileType.NotFound
    with pytest.raises(FileNotFoundError):
        filesystem.delete_file(path)


def test_workers_get_the_same_patience_and_no_credentials(proxy: S3Proxy) -> None:
    filesystem, path = there("pickled")
    sent = pickle.dumps(filesystem)
    assert b"s3-canary" not in sent
    proxy.next("slow_down", "HEAD", 5)
    assert pickle.loads(sent) == filesystem and read(pickle.loads(sent), path) == CONTENT
    assert proxy.failed == {"slow_down HEAD": 5}


def test_local_files_are_as_they_are(tmp_path: Path) -> None:
    filesystem, path = open_filesystem(f"file://{tmp_path}")
    assert isinstance(filesystem, pafs.LocalFileSystem) and path == str(tmp_path)
