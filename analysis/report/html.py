"""HTML templates, and escaping of untrusted text."""

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
"""Characters that are invisible or change the layout: controls (except tab and newline), marks of text direction,
invisible characters, tags. The two joiners are allowed, because scripts and emoji need them. ``browser.js`` has the
same set."""


def visible(text: str) -> str:
    """The text with every character of ``_HIDDEN`` replaced by its code point, such as ``⟨U+202E⟩``."""
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text)


def _finalize(value: Any) -> Any:
    # Markup is ours; any other text may come from an item.
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def inline(svg: str, name: str, caption: str) -> Markup:
    """SVG for the page, with a label for screen readers and with ids that are unique in the page.

    Args:
        svg: text that ``figures.save`` returned.
        name: name of the figure, unique in the page.
        caption: label of the figure.
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
    """HTML page from a template of this directory.

    Every text is escaped, and its control characters are made visible. The page's content policy allows only its own
    script, identified by its digest, and forbids loading anything.

    Args:
        template: file name of the template. context: variables of the template; this function adds ``style``,
            ``script`` and ``policy``.
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
