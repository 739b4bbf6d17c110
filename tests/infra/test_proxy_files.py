"""proxy/nginx.conf before stub servers, where nginx is installed (``apt install nginx-light``), and slurm/realign.sbatch, as far as it goes
without SLURM."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
import urllib3

from infra.ports import free_port, reserved_until_bound
from infra.services import PORTS
from tests.infra.deploy_files import INFRA

NGINX = (INFRA / "proxy" / "nginx.conf").read_text(encoding="utf-8")
SBATCH = INFRA / "slurm" / "realign.sbatch"


class Echo(BaseHTTPRequestHandler):
    """Answers with the headers that arrived."""

    def do_GET(self) -> None:
        body = (
            f"{self.headers['host']} {self.headers['x-forwarded-proto']} {self.headers['authorization']} {self.headers['upgrade']}".encode()
        )
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_the_proxy_knows_every_page_and_its_port() -> None:
    assert dict(re.findall(r"~\^(\w+)\\\. +127\.0\.0\.1:(\d+);", NGINX)) == {name: str(port) for name, port in PORTS.items()}
    for names in re.findall(r"server_name (.*);", NGINX):
        assert names.split() == [f"{name}.example.org" for name in ("prefect", "mlflow", "home", "ray")]


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Ports of https and http of an nginx with the file, in front of one stub for all servers."""
    programs = {name: shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin:/bin:/usr/local/bin") for name in ("nginx", "openssl")}
    if None in programs.values():
        pytest.skip("no nginx, or no openssl: apt install nginx-light openssl")
    key, certificate = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
    subject = ["-subj", "/CN=example.org", "-addext", "subjectAltName=DNS:*.example.org"]
    made = [str(programs["openssl"]), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *subject]
    subprocess.run(made, check=True, capture_output=True)
    stub = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=stub.serve_forever, daemon=True).start()
    with reserved_until_bound():
        secure, plain = free_port(), free_port()
        text = NGINX.replace("/etc/ssl/dora", str(tmp_path)).replace("listen 443", f"listen 127.0.0.1:{secure}")
        text = text.replace("listen 80;", f"listen 127.0.0.1:{plain};")
        for port in PORTS.values():
            text = text.replace(f"127.0.0.1:{port};", f"127.0.0.1:{stub.server_port};")
        folders = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        text = f"pid {tmp_path}/pid; daemon off;\n" + text.replace("http {", f"http {{ access_log off; {folders}", 1)
        (tmp_path / "nginx.conf").write_text(text)
        command = [str(programs["nginx"]), "-e", f"{tmp_path}/log", "-c", str(tmp_path / "nginx.conf")]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                with suppress(requests.ConnectionError):
                    requests.get(f"http://127.0.0.1:{plain}/", allow_redirects=False, timeout=30)
                    break
                time.sleep(0.05)
            assert process.poll() is None, (tmp_path / "log").read_text()
            yield secure, plain
        finally:
            process.terminate()
            process.wait()
            stub.shutdown()
            stub.server_close()


def ask(port: int, host: str, **headers: str) -> bytes:
    """GET / over TLS under a name that no DNS has."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with urllib3.HTTPSConnectionPool("127.0.0.1", port, ssl_context=context, server_hostname=host, assert_hostname=False) as pool:
        return pool.request("GET", "/", headers={"Host": host} | headers, retries=False, timeout=30).data


def test_each_name_reaches_its_server_and_other_names_none(proxy: tuple[int, int]) -> None:
    secure, plain = proxy
    for name in PORTS:
        assert ask(secure, f"{name}.example.org", Authorization="Basic x") == f"{name}.example.org https Basic x None".encode()
    web_socket = ask(secure, "prefect.example.org", Upgrade="websocket", Connection="Upgrade")
    assert web_socket.endswith(b"websocket")
    with pytest.raises(urllib3.exceptions.ProtocolError):
        ask(secure, "evil.example.com")
    moved = requests.get(f"http://127.0.0.1:{plain}/runs", headers={"Host": "home.example.org"}, allow_redirects=False, timeout=30)
    assert (moved.status_code, moved.headers["location"]) == (301, "https://home.example.org/runs")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own modules
def test_the_batch_script_is_one_and_rays_options_are_known() -> None:
    import click
    from ray.scripts.scripts import start

    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    text = SBATCH.read_text(encoding="utf-8")
    assert isinstance(start, click.Command)
    known = {option for parameter in start.params for option in parameter.opts}
    [common] = re.findall(r"^common=\((.*)\)$", text, re.MULTILINE)
    lines = [common, *re.findall(r'"\$bin/ray" start (.*?) &$', text, re.MULTILINE | re.DOTALL)]
    used = {word for line in lines for word in re.findall(r"--[a-z][a-z-]*", line)}
    assert len(lines) == 3 and len(used) > 10 and used <= known
