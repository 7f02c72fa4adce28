"""Pictures of mazes: each cell's colour, whole files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F

from implicit.diagnostics.style import BLUE, GREEN
from tasks.maze.maze import FREE, GOAL, PATH, START, SYMBOLS, WALL, label, shortest_path
from tasks.maze.pictures import (
    GROUND,
    PURPLE,
    YELLOW,
    MazePicture,
    _draw_cells,
    draw_maze,
)
from tasks.puzzles.pictures import HOLD_MS, RED, Frame, animate, draw_sheet

QUESTION = [START, *[FREE] * 4, WALL, WALL, FREE, FREE, WALL, WALL, *[FREE] * 4, GOAL]
ANSWER = label(QUESTION)
PICTURE = MazePicture(4, QUESTION, ANSWER, SYMBOLS)


def solve(num_frames: int) -> list[Frame]:
    """Frames whose path grows from S to G."""
    order = {cell: i for i, cell in enumerate(shortest_path(QUESTION))}
    frames = []
    for step in range(num_frames):
        codes = [
            right if order.get(cell, 0) <= step // 2 else asked
            for cell, (asked, right) in enumerate(zip(QUESTION, ANSWER, strict=True))
        ]
        probabilities = (6 * F.one_hot(torch.tensor(codes), 5).double()).softmax(-1)
        frames.append((step, 0.5**step if step else float("nan"), probabilities))
    return frames


def colors_of(found: list[int], confidence: float = 1.0) -> list[str]:
    """The colour drawn for each cell."""
    axes = Figure().subplots()
    _draw_cells(axes, QUESTION, found, [confidence] * len(found), ANSWER, letter_size=9)
    pixels = np.asarray(axes.images[0].get_array()).reshape(-1, 3)
    return [to_hex(tuple(pixel)) for pixel in pixels]


def test_each_cell_tells_what_it_is() -> None:
    found = list(ANSWER)
    path = [cell for cell, code in enumerate(ANSWER) if code == PATH]
    missed, strayed, dug, opened = path[0], 1, 5, 6
    found[missed], found[strayed], found[dug], found[opened] = FREE, PATH, PATH, FREE
    colors = colors_of(found)
    expected = {cell: BLUE for cell in path[1:]}
    expected |= {missed: YELLOW, strayed: RED, dug: RED, 0: GREEN, 15: PURPLE}
    expected |= {9: GROUND[WALL], 2: GROUND[FREE]}
    for cell, color in expected.items():
        assert colors[cell] == color.lower(), cell
    assert colors[opened] not in {color.lower() for color in (*GROUND.values(), BLUE, RED)}


def test_start_and_goal_are_named_where_they_are() -> None:
    axes = Figure().subplots()
    question = [FREE] * 16
    question[1], question[11] = START, GOAL
    _draw_cells(axes, question, question, [1.0] * 16, label(question), letter_size=9)
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert places == {"S": (1, 0), "G": (3, 2)}  # column, row


def test_the_legend_has_what_occurs() -> None:
    on_its_way, solved = solve(15)[0], solve(15)[-1]
    assert [patch.get_label() for patch in PICTURE.legend([solved])] == ["path, right"]
    both = [patch.get_label() for patch in PICTURE.legend([on_its_way, solved])]
    assert both == ["path, right", "path missed"]
    strayed = (0, 0.1, F.one_hot(torch.full((16,), PATH), 5).double())
    labels = {p.get_label(): to_hex(p.get_facecolor()) for p in PICTURE.legend([strayed])}
    assert labels == {"path, right": BLUE.lower(), "path, wrong": RED.lower()}


def test_an_unsure_path_is_pale() -> None:
    cell = ANSWER.index(PATH)
    shades = [int(colors_of(ANSWER, sure)[cell][1:3], 16) for sure in (0.2, 0.5, 0.8, 1.0)]
    assert shades == sorted(set(shades), reverse=True)
    assert shades[0] < 255  # a guess is seen, too


def test_captions_count_the_path() -> None:
    found = solve(4)[3][2].clone()
    found[2] = F.one_hot(torch.tensor(PATH), 5).double()
    axes = Figure().subplots()
    PICTURE.draw(axes, (3, 0.125, found))
    assert axes.get_title() == "step 3, residual 1.2e-01\n1 of 5 path cells, 1 elsewhere"
    PICTURE.draw(axes, (0, float("nan"), found))
    assert axes.get_title().startswith("step 0, residual not measured\n")


def is_png(path: Path) -> bool:
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG"


def test_maze(tmp_path: Path) -> None:
    path = tmp_path / "maze.png"
    assert draw_maze(solve(15), PICTURE, path) == path
    assert is_png(path)
    whole = path.read_bytes()
    draw_maze(solve(2), PICTURE, path)
    assert path.read_bytes() != whole
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("num_frames", [1, 3, 15])
def test_sheet(num_frames: int, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    assert draw_sheet(solve(num_frames), PICTURE, path) == path
    assert is_png(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("num_frames", [1, 15])
def test_animation_has_every_frame_and_holds_the_last(num_frames: int, tmp_path: Path) -> None:
    path = tmp_path / "solve.gif"
    assert animate(solve(num_frames), PICTURE, path) == path
    with Image.open(path) as image:
        assert image.format == "GIF"
        # Frames 12 on show the whole path, but with another caption each.
        assert getattr(image, "n_frames", 1) == num_frames
        image.seek(num_frames - 1)
        assert image.info["duration"] == HOLD_MS
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing/a\.png cannot be written"):
        draw_maze(solve(2), PICTURE, tmp_path / "missing" / "a.png")
    assert list(tmp_path.iterdir()) == []
