"""Whether the data come as fast as the devices of a plan take them."""

from typing import Any

from tasks.training.reading import Reading

# Of the time of a run: more of it than that spent on reading is worth a warning.
MOST = 0.1
# What to do then.
WRITE = "Write the tokens once with `prepare`, and train with `--shards`"
SMALL = "The tokens are prepared already: the model is too small to keep such a GPU busy"


def reading_plan(reading: Reading, per_second: float, gpus: int) -> dict[str, Any]:
    """What a core makes, what it would have to make, and what to do, as JSON values.

    Args:
        reading: How the processes get their batches.
        per_second: Tokens that all devices take together, if they never wait.
        gpus: How many there are, with one process and one core each.
    """
    wanted = per_second / gpus if reading.own_rows else per_second
    waiting = reading.seconds(1, gpus)
    share = waiting / (waiting + 1 / per_second)
    advice = (
        f"{reading.way}: a core makes {reading.rate:,.0f} tokens a second, and {wanted:,.0f} are "
        "wanted"
    )
    if share > MOST:
        advice += f", so that GPUs wait for data in {share:.0%} of the time. " + (
            SMALL if reading.own_rows else WRITE
        )
    return {
        "tokens_per_core_second": round(reading.rate),
        "wanted_per_core_second": round(wanted),
        "times_the_need": reading.rate / wanted,
        "share_of_time": share,
        "advice": f"{advice}.",
    }
