"""What evaluate.py says of the games it has played: a record in JSON values, and a table."""

from typing import Any


def as_table(record: dict[str, Any]) -> str:
    """The result for people, one line for each thing."""
    if record["policy"] == "random":
        player = "none: uniformly random actions"
    else:
        # Policies from elsewhere may not tell their frames.
        frames = record["trained_frames"]
        player = record["weights"] + (f", after {frames:,} frames of training" if frames else "")
        if record["from"] is not None:
            player = f"those of {record['from']}"
        elif record["teacher"] is not None:
            player = f"distilled from {record['teacher']}"
            if frames:
                player += f" after its {frames:,} frames of training"
    mean = f"{record['mean']:,.2f}"
    if record["interval_95"] is not None:
        low, high = record["interval_95"]
        half = (high - low) / 2
        mean += f" ± {half:,.2f}  (95 % interval {low:,.2f} to {high:,.2f}, Student's t)"
    rows = {
        "game": record["game"],
        "protocol": record["protocol"]
        + (" (separate evaluation)" if record["separate_evaluation"] else ""),
        "weights": player,
        "epsilon": f"{record['epsilon']:g}" + _aside(record, "epsilon", record["protocol_epsilon"]),
        "games": f"{record['games']}"
        + _aside(record, "games", record["protocol_games"])
        + f", {record['capped_games']} of them ended by the time limit",
        "raw mean": mean,
        "median": f"{record['median']:,.2f}",
    }
    if record["precision"] is not None:
        rows["precision"] = record["precision"]
    if record["deviation"] is not None:
        rows["deviation"] = f"{record['deviation']:,.2f}"
    if record["human_normalised"] is not None:
        rows["human-normalised"] = (
            f"{record['human_normalised']:.1%}  (human table {record['human_table']}: "
            f"human {record['human_score']:,g}, random {record['random_score']:,g})"
        )
    else:
        rows["human-normalised"] = "the protocol's table has no human score of this game"
    rows["frames played"] = (
        f"{record['frames_played']:,}, {record['mean_length_frames']:,.0f} in a game on average"
    )
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _aside(record: dict[str, Any], name: str, of_protocol: float) -> str:
    if (record["policy"] == "random" and name == "epsilon") or record[name] == of_protocol:
        return ""
    return f" (not the protocol's {of_protocol:g})"
