"""HTML templates, and the escaping of text from outside."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_HERE = Path(__file__).parent

_HIDDEN = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Characters that steer instead of showing: controls (but tab and newline), directions, invisible ones, tags. Not the
two joiners, which scripts and emoji are written with. ``browser.js`` has the same set."""


def visible(text: str) -> str:
    """The text with every character of ``_HIDDEN`` replaced by its number, such as ``⟨U+202E⟩``."""
    return _HIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def _finalize(value: Any) -> Any:
    # Markup is ours; any other text may come from an item.
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def inline(svg: str, name: str, caption: str) -> Markup:
    """An SVG for the page: one picture with a name for screen readers, and ids unique among the figures.

    Args:
        svg: as ``figures.save`` returns it.
        name: of the figure, unique in the page.
        caption: what it shows.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    # Its marks have roles, but no names of their own.
    svg = re.sub(r' (role="graphics-[^"]*"|aria-roledescription="[^"]*")', "", svg)
    label = Markup.escape(visible(caption))
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


def render(template: str, **context: Any) -> str:
    """A page from a template of this directory.

    Every text is escaped, and its control characters are made visible. The page may run the one script that is part of
    it, recognised by its digest, and load nothing.

    Args:
        template: file name.
        context: what the template names; ``style``, ``script`` and ``policy`` are given by this function.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    script = (_HERE / "browser.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return environment.get_template(template).render(
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=policy,
        **context,
    )
