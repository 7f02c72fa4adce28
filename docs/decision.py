"""Draws `decision.svg`: the questions that lead to a solver and to a gradient.

    python docs/decision.py

Boxes bring their own background, and lines are of a middle grey, so that the picture can be read on
a light page and on a dark one. It loads nothing, fonts included.
"""

from html import escape
from pathlib import Path

TARGET = Path(__file__).with_suffix(".svg")

# A question, and the answer where it is "yes"; the last line is for whoever got there.
SOLVER = [
    ("Is it g(y) = 0, or stiff, as|an implicit time step is?", "newton_krylov|or solvers.root"),
    ("Is f cheap, with a spectral|radius below about 0.8?", "picard"),
    ("Are 16 copies of the state|too much memory?", "aitken, squarem|or a short window"),
    ("Do residuals jump: f noisy|or strongly nonlinear?", "anderson_safe|or more damping"),
    ("Must it be solved,|whatever it costs?", "robust|several in turn"),
    ("", "anderson|the default"),
]  # fmt: skip
GRADIENT = [
    ("Do you need|no derivative at all?", "solvers.solve"),
    ("Is it for y0, or a reference|for tests, in few steps?", "unrolled"),
    ("Can you afford an adjoint|solve, as long as the forward?", "exact|the default"),
    ("Do solves stop early, as in|training by segments?", "phantom|a few steps"),
    ("Is the spectral radius at the|solution below about 0.5?", "jacobian_free"),
    ("", "neumann|with enough terms"),
]  # fmt: skip

ROW, TOP, ASK, ANSWER, GAP, HEIGHT = 84, 56, 232, 178, 46, 54
COLUMN = ASK + GAP + ANSWER + 44
STYLE = (
    "text{font:14px system-ui,sans-serif;text-anchor:middle}"
    ".ask{fill:#e3f2fd;stroke:#1565c0}.ask-text{fill:#0d2a4a}"
    ".answer{fill:#1565c0}.answer-text{fill:#fff}.name{font-weight:600}"
    ".way{stroke:#808890;stroke-width:2;fill:none}.tip{fill:#808890}"
    ".sign{fill:#eceff1;stroke:#808890}.sign-text{fill:#263238;font-size:12px}"
    ".head{fill:#37474f}.head-text{fill:#fff;font-weight:600;font-size:16px}"
)


def box(x: float, y: float, width: float, text: str, kind: str) -> str:
    """A rectangle with one or two lines of text, of which an answer's first is in bold."""
    lines, half = text.split("|"), HEIGHT / 2
    parts = [f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="8"/>']
    for i, line in enumerate(lines):
        at = y + half + 5 + 18 * (i - (len(lines) - 1) / 2)
        bold = " name" if kind == "answer" and i == 0 else ""
        parts.append(
            f'<text class="{kind}-text{bold}" x="{x + width / 2}" y="{at:g}">{escape(line)}</text>'
        )
    return "\n".join(parts)


def sign(x: float, y: float, word: str) -> str:
    """The word on a line."""
    return (
        f'<rect class="sign" x="{x - 16}" y="{y - 10}" width="32" height="20" rx="10"/>\n'
        f'<text class="sign-text" x="{x}" y="{y + 4}">{word}</text>'
    )


def column(x: float, title: str, rows: list[tuple[str, str]]) -> str:
    """One chain of questions, from the top."""
    width = ASK + GAP + ANSWER
    parts = [
        f'<rect class="head" x="{x}" y="8" width="{width}" height="32" rx="8"/>',
        f'<text class="head-text" x="{x + width / 2}" y="29">{escape(title)}</text>',
    ]
    for i, (question, answer) in enumerate(rows):
        y, end = TOP + ROW * i, x + ASK + GAP
        middle, centre = y + HEIGHT / 2, x + ASK / 2
        if not question:  # the last "no" leads to the answer
            parts.append(
                f'<path class="way" d="M{centre} {y - ROW + HEIGHT}V{middle}H{end - 8}"/>'
                f'<path class="tip" d="M{end} {middle}l-10-5v10z"/>'
            )
            parts += [sign(centre, y - 14, "no"), box(end, y, ANSWER, answer, "answer")]
            continue
        if i:
            parts.append(
                f'<path class="way" d="M{centre} {y - ROW + HEIGHT}V{y - 8}"/>'
                f'<path class="tip" d="M{centre} {y}l-5-10h10z"/>'
            )
            parts.append(sign(centre, y - 17, "no"))
        parts.append(
            f'<path class="way" d="M{x + ASK} {middle}H{end - 8}"/>'
            f'<path class="tip" d="M{end} {middle}l-10-5v10z"/>'
        )
        parts.append(sign(x + ASK + GAP / 2 - 4, middle, "yes"))
        parts += [box(x, y, ASK, question, "ask"), box(end, y, ANSWER, answer, "answer")]
    return "\n".join(parts)


def drawing() -> str:
    """Both chains, side by side."""
    width, height = 2 * COLUMN - 28, TOP + ROW * len(SOLVER) - 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n'
        f"<title>Which solver, and which gradient</title>\n<style>{STYLE}</style>\n"
        f"{column(8, 'Which solver?', SOLVER)}\n"
        f"{column(8 + COLUMN, 'Which gradient?', GRADIENT)}\n</svg>\n"
    )


if __name__ == "__main__":
    TARGET.write_text(drawing())
