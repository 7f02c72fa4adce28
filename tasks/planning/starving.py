"""Whether the data come as fast as the devices of a plan take them."""

from typing import Any

from tasks.training.reading import Reading

# Of the time of a run: more of it than that spent on reading is worth a warning.
MOST = 0.1


def reading_plan(reading: Reading, per_second: float, gpus: int) -> dict[str, Any]:
    """What a core makes, and what it would have to make, as JSON values.

    Args:
        reading: How the processes get their batches.
        per_second: Tokens that all devices take together, if they never wait.
        gpus: How many there are, with one process and one core each.
    """
    wanted = per_second / gpus if reading.own_rows else per_second
    waiting = reading.seconds(1, gpus)
    return {
        "way": reading.way,
        "tokens_per_core_second": round(reading.rate),
        "wanted_per_core_second": round(wanted),
        "times_the_need": reading.rate / wanted,
        "share_of_time": waiting / (waiting + 1 / per_second),
    }


def in_words(found: dict[str, Any]) -> str:
    """One sentence of such a plan, and what to do where the devices would wait for data."""
    made, wanted = found["tokens_per_core_second"], found["wanted_per_core_second"]
    text = f"{found['way']}: a core makes {made:,} tokens a second, and {wanted:,} are wanted"
    if found["share_of_time"] <= MOST:
        return f"{text}."
    return (
        f"{text}, so that GPUs wait for data in {found['share_of_time']:.0%} of the time. Write "
        "the tokens once with `prepare`, and train with `--shards`."
    )
