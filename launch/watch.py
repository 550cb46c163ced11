"""Follow a running experiment in a browser: ``python launch/watch.py runs/quickstart``.

The page shows losses on inserted and on other tokens, past and future exposures, probes, the state of the audit, and a
link to the report once there is one. It refreshes itself and loads nothing from other machines; ``/data.json`` has the
same data as JSON. Without a directory it follows the run that ``PALIMPSEST_RUN`` names, or the newest in ``runs/``.
Only this machine can open the page, at ``port=8642``; ``port=0`` takes any free port, and ``host=0.0.0.0`` serves every
machine that can reach this one. Ctrl-C ends the server, not the run.
"""

from __future__ import annotations

import json
import math
import re
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from palimpsest.analysis.run import PAIR, open_run
from palimpsest.analysis.run.progress import Progress
from palimpsest.data import artifact
from palimpsest.data.errors import UserError, nearest
from palimpsest.launch.process import say
from palimpsest.launch.program import plain
from palimpsest.launch.runs import held

PORT = 8642
EVERY = 1.0
"""Time for which a response is cached, seconds, so that many open pages cost no more than one."""
_PAGE = Path(__file__).with_name("watch.html")
_KEYS = ("port", "host")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
_OF_A_REPORT = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""Content policy of the page; the report adds a stricter one, which also applies."""
_KINDS = {"html": "text/html; charset=utf-8", "svg": "image/svg+xml", "png": "image/png", "csv": "text/csv"}
"""Suffix of a report's file -> its media type."""


class Server(ThreadingHTTPServer):
    """HTTP server of the page and the state of one run.

    Args:
        address: host and port.
        progress: progress reader of the run.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], progress: Progress) -> None:
        self.progress = progress
        self._lock = threading.Lock()
        self._said: tuple[float, bytes] = (-math.inf, b"")
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a browser that disconnects in the middle of an answer; handle other errors as usual."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def state(self) -> bytes:
        """State as JSON, at most ``EVERY`` seconds old; ``error`` describes anything that cannot be read now."""
        with self._lock:
            now = time.monotonic()
            if now - self._said[0] >= EVERY:
                values: dict[str, Any]
                try:
                    values = {
                        "state": state(self.progress),
                        **self.progress.read(),
                        "report": self._headline(),
                    }
                except (UserError, OSError) as error:  # such as a run that is being removed
                    values = {"error": " ".join(str(error).split())}
                self._said = now, json.dumps(_plain(values), allow_nan=False).encode()
            return self._said[1]

    def _headline(self) -> str | None:
        """Headline of the report; None without a report."""
        path = self.report / "summary.json"
        if not (self.report / artifact.MANIFEST).is_file() or not path.is_file():
            return None
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["headline"])
        except (ValueError, LookupError, TypeError):
            return "the report"  # whose summary is damaged

    @property
    def report(self) -> Path:
        """Directory of the report."""
        return self.progress.run.directory / "report"


class Handler(BaseHTTPRequestHandler):
    """Handler of requests for the page and its data."""

    server: Server

    def do_GET(self) -> None:
        """Serve the page, the data, or 404; 403 where the Host header is not this machine's (DNS rebinding)."""
        if not _ours(self.headers.get("Host", "")):
            self._answer(403, "text/plain; charset=utf-8", b"ask by this machine's own name or address\n")
            return
        path = self.path.split("?")[0]
        if path == "/":
            self._answer(200, "text/html; charset=utf-8", _PAGE.read_bytes())
        elif path == "/data.json":
            self._answer(200, "application/json", self.server.state())
        elif (name := re.fullmatch(r"/report/([\w-]+\.(\w+))", path)) and (
            self.server.report / name[1]
        ).is_file():
            kind = _KINDS.get(name[2], "application/octet-stream")
            self._answer(200, kind, (self.server.report / name[1]).read_bytes(), _OF_A_REPORT)
        else:
            self._answer(
                404, "text/plain; charset=utf-8", b"there is /, /data.json and /report/report.html\n"
            )

    def _answer(self, status: int, kind: str, body: bytes, policy: str = _POLICY) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Ignore the request; requests are not logged."""


def _ours(host: str) -> bool:
    """True if a Host header is an address, which no foreign page can claim, or the name of this machine."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return name.lower() in {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}
    return True


def state(progress: Progress) -> str:
    """State of the run in a few words."""
    run = progress.run
    steps, last = run.plan.shape.steps, {}
    for which in PAIR:
        if held(run.directory / which / ".lock"):
            return f"training {'the twin' if which == 'twin' else 'the perturbed run'}"
        saved = run.checkpoints(which)
        last[which] = saved[-1] if saved else 0
    if (run.directory / "report" / artifact.MANIFEST).is_file():
        return "finished"
    if any(0 < step < steps for step in last.values()):
        return "stopped"
    if not last["perturbed"]:
        return "planned"
    return "trained" if last["twin"] else "perturbed run trained"


def _plain(value: Any) -> Any:
    """The value with NaN and infinity, which JSON lacks, replaced by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _asked(arguments: Sequence[str]) -> tuple[str | None, str, int]:
    """Directory, host and port of the command line."""
    place, wanted = None, {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in _KEYS:
            wanted[key] = value
        elif argument.startswith("+") or (equals and "/" not in key):
            raise UserError(
                f"{argument}: there is no such setting{nearest(key, _KEYS)}; give a run as the path of its directory, "
                "not by settings"
            )
        elif place is not None:
            raise UserError(f"{argument}: one run at a time; {place} was given before")
        else:
            place = argument
    port = wanted.get("port", str(PORT))
    if not port.isdecimal() or int(port) > 65535:
        raise UserError(f"port={port} must be a whole number from 0 to 65535; 0 takes any free one")
    return place, wanted.get("host", "127.0.0.1"), int(port)


def serve(progress: Progress, host: str, port: int) -> Server:
    """Listening server.

    Raises:
        UserError: if the address is not available.
    """
    try:
        return Server((host, port), progress)
    except OSError as error:
        raise UserError(
            f"host={host} port={port} is not available: {error.strerror or error}; give another port=, or port=0"
        ) from None


def work(arguments: Sequence[str]) -> int:
    """Serve the page of a run until Ctrl-C."""
    place, host, port = _asked(arguments)
    progress = Progress(open_run(place))
    with serve(progress, host, port) as server:
        progress.read()  # what is wrong with the run is said now, not on the page
        shown, number = str(server.server_address[0]), server.server_address[1]
        say(f"watching {progress.run.name}: http://{shown}:{number} (Ctrl-C ends it, and the run goes on)")
        if not ip_address(shown).is_loopback:
            say("everybody who reaches this machine can see it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say(f"no longer watching {progress.run.name}; the run goes on")
    return 0


def main() -> None:
    """Run the program."""
    plain(__doc__, work)


if __name__ == "__main__":
    main()
