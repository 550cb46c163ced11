"""Pages in a real browser: what they ask for, what they complain of, and what axe-core finds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@dataclass
class Opened:
    """A page, and what it did while it was open."""

    page: Any
    seconds: float
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def opened(
    browser: Any, path: Path, *, width: int = 1280, scheme: str = "light", items: bool = True
) -> Opened:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    found = Opened(page, 0.0)
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.on("dialog", lambda dialog: found.complaints.append(f"dialog: {dialog.message}"))
    start = time.monotonic()
    page.goto(path.as_uri())
    if items:
        page.wait_for_selector("html[data-items=ready]", state="attached")
    found.seconds = time.monotonic() - start
    return found


def faults(page: Any) -> list[str]:
    """What axe-core finds serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="brings axe-core")
    # A figure is one picture with a name; what it is drawn of is none of axe's business, and slow.
    found = axe.Axe().run(page, context={"exclude": [["figure svg > *"]]}).response["violations"]
    return [
        f"{fault['id']}: {node['html'][:150]} {node['failureSummary']}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]
