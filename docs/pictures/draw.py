"""Draws the diagrams of docs/concepts/lives.md beside this file: ``python docs/pictures/draw.py``."""

from html import escape
from pathlib import Path

EXPOSURE = [
    ("item", "a family makes it, or your table has it", "insertion/families/", "plan/items.parquet"),
    ("dose", "drawn inside strata of family and length", "insertion/design.py", "plan/items.parquet"),
    ("place", "step, row and offset, drawn given the dose", "insertion/placement/", "plan/exposures.parquet"),
    ("window", "the item is spliced into the window as it is read", "insertion/overlay.py", ""),
    ("check", "the tokens in the batch are those of the plan", "insertion/ledger.py", "status 3 if not"),
    ("step", "the model learns from it", "pretrain/trainer.py", "metrics.jsonl"),
    ("record", "written with the next checkpoint", "pretrain/ledger_writer.py", "perturbed/ledger/"),
    ("audit", "recomputed from corpus and plan by other code", "insertion/audit.py", "audit/audit.json"),
]
SCORE = [
    ("probe", "a text, or a prompt and its target, as tokens", "insertion/items.py", "plan/probes.parquet"),
    ("checkpoint", "weights after so many steps", "pretrain/checkpoint.py", "checkpoints/step_.../"),
    ("forward pass", "one pass over all probes, in float32", "analysis/scoring/", ""),
    (
        "token scores",
        "log-probability, rank, entropy, ...",
        "analysis/scoring/store.py",
        "scores/.../scores.parquet",
    ),
    ("metric", "one value a text and checkpoint", "analysis/metrics/", "report/metrics.parquet"),
    ("difference", "less the twin's value of the same text", "analysis/statistics/rows.py", ""),
    (
        "estimate",
        "mean by dose, over clusters, with its interval",
        "analysis/statistics/",
        "report/estimates.csv",
    ),
    ("page", "sentence, figures and tables", "analysis/report/", "report/report.html"),
]
WIDTH, HEIGHT, GAP = 330, 56, 26
SANS, MONO = "system-ui, sans-serif", "ui-monospace, monospace"


def drawn(title: str, steps: list[tuple[str, str, str, str]]) -> str:
    """An SVG: a box a step, from top to bottom, with the code that does it and the file that it leaves beside it."""
    tall = len(steps) * (HEIGHT + GAP) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 820 {tall}" width="820" height="{tall}" '
        f'role="img" font-family="{SANS}" font-size="14"><title>{escape(title)}</title>',
        f'<rect width="820" height="{tall}" fill="white"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
    ]
    for number, (name, what, code, file) in enumerate(steps):
        top = 20 + number * (HEIGHT + GAP)
        if number:
            middle = 20 + WIDTH / 2
            parts.append(
                f'<line x1="{middle}" y1="{top - GAP}" x2="{middle}" y2="{top - 1}" stroke="#555" stroke-width="1.5" '
                'marker-end="url(#tip)"/>'
            )
        parts += [
            f'<rect x="20" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef4fb" stroke="#0072b2"/>',
            f'<text x="34" y="{top + 23}" font-weight="600" fill="#111">{escape(name)}</text>',
            f'<text x="34" y="{top + 43}" font-size="12.5" fill="#333">{escape(what)}</text>',
            f'<text x="370" y="{top + 33}" font-family="{MONO}" font-size="12.5" fill="#555">{escape(code)}</text>',
        ]
        if file:
            parts.append(
                f'<text x="590" y="{top + 33}" font-family="{MONO}" font-size="12.5" fill="#a04000">'
                f"{escape(file)}</text>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "life_of_an_exposure.svg").write_text(drawn("Life of an exposure", EXPOSURE))
    (here / "life_of_a_score.svg").write_text(drawn("Life of a score", SCORE))
