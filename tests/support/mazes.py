"""An oracle for mazes."""

import math

from tasks.maze.maze import GOAL, START, WALL


def count_paths(codes: list[int]) -> int:
    """How many shortest paths lead from start to goal; 0 if the goal cannot be reached."""
    side = math.isqrt(len(codes))
    goal = codes.index(GOAL)
    seen, front = set[int](), {codes.index(START): 1}
    while front and goal not in front:
        seen |= set(front)
        beyond: dict[int, int] = {}
        for cell, count in front.items():
            row, column = divmod(cell, side)
            for r, c in (
                (row + 1, column),
                (row - 1, column),
                (row, column + 1),
                (row, column - 1),
            ):
                other = r * side + c
                inside = 0 <= r < side and 0 <= c < side
                if inside and codes[other] != WALL and other not in seen:
                    beyond[other] = beyond.get(other, 0) + count
        front = beyond
    return front.get(goal, 0)
