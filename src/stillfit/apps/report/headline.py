"""What happened, in a few sentences. Every number comes from the summary, good news or bad."""

from __future__ import annotations

from collections import Counter

from stillfit.apps.report.figures import (
    best_and_equal,
    conditions,
    losses,
    season,
    updating,
    within,
    won_back,
)
from stillfit.apps.report.knowing import flag_sentence
from stillfit.apps.report.words import count, listing, percent, unit_of, with_error
from stillfit.apps.summary import Summary


def paragraphs(summary: Summary) -> list[str]:
    """Sentences for the top of the report and for the terminal."""
    if not summary.fills or not summary.lanes:
        return [f"No {unit_of(summary)} has been scored yet."]
    texts = [_means(summary), _by_condition(summary), flag_sentence(summary), _events(summary)]
    return [text for text in texts if text]


def _means(summary: Summary) -> str:
    metric, word = summary.headline, unit_of(summary)
    unit = f" {metric.unit}" if metric.unit else ""
    names = conditions(summary)
    text = f"{count(len(summary.fills), word)}, {count(len(names), 'condition')}. "
    means = {name: season(summary, name, metric) for name in summary.lanes}
    base = summary.baseline
    if base is not None:
        before = within(summary.lanes[base], names[0], metric)
        text += (
            f"{metric.title}, mean of all events: {with_error(means[base])}{unit} with the model "
            f"left alone ({base}), which had {with_error(before)}{unit} in “{names[0]}”"
        )
    rivals = {name: figure for name, figure in means.items() if name != base}
    best, equal = best_and_equal(metric, rivals)
    if len(rivals) == 1:
        best = next(iter(rivals))
    if best is None:
        return f"{text}." if base is not None else text.strip()
    if base is None:
        text += (
            f"{metric.title}, mean of all events: {with_error(means[best])}{unit} in lane {best}"
        )
    else:
        others = ", the best of the others" if len(rivals) > 1 else ""
        text += f"; {with_error(means[best])}{unit} with {best}{others}"
        share = won_back(summary, best) if best in updating(summary) else None
        if share is not None:
            text += f", which won back {percent(share)} of what was lost"
    if equal:
        text += f" (not measurably worse: {listing(sorted(equal))})"
    cost = summary.lanes[best].cost
    if cost.updates:
        text += (
            f", with {count(cost.updates, 'update')} from "
            f"{count(cost.labelled_events, 'labelled event')}"
        )
    return f"{text}."


def _by_condition(summary: Summary) -> str:
    found = losses(summary)
    if not found or not updating(summary):
        return ""
    sentences = []
    worst = max(found, key=lambda loss: loss.lost.value)
    if worst.lost.sure:
        sentences.append(f"Most was lost in “{worst.condition}”: {with_error(worst.lost)}")
    won = [
        f"“{loss.condition}” "
        f"({percent(loss.gains[loss.best].value / loss.lost.value)}, {loss.best})"
        for loss in found
        if loss.finding == "won" and loss.best is not None
    ]
    if won:
        sentences.append(f"Updating won back, at best: {listing(won)}")
    none = [f"“{loss.condition}”" for loss in found if loss.finding == "not"]
    if none:
        sentences.append(
            f"No lane was measurably better than the model left alone in {listing(none)}"
        )
    fine = [f"“{loss.condition}”" for loss in found if loss.finding == "none"]
    if fine:
        sentences.append(f"Nothing measurable was lost in {listing(fine)}")
    harm = [f"{listing(loss.harmed)} in “{loss.condition}”" for loss in found if loss.harmed]
    if harm:
        sentences.append(f"Measurably worse than the model left alone: {'; '.join(harm)}")
    return " ".join(f"{sentence}." for sentence in sentences)


def _events(summary: Summary) -> str:
    if not summary.decisions:
        return ""
    happened = Counter(decision.what for decision in summary.decisions)
    parts = [
        count(happened["switch"], "new version was switched in", "new versions were switched in"),
        count(happened["redeploy"], "known version redeployed", "known versions redeployed"),
        count(happened["refused"], "candidate refused", "candidates refused"),
        count(happened["rollback"], "version rolled back", "versions rolled back"),
    ]
    text = f"{listing(parts)}.".capitalize()
    if len(summary.lanes) > 1:
        text = f"All lanes together: {listing(parts)}."
    held = on_hold(summary)
    if held:
        text += f" On hold at the end, until a person resumes: {listing(held)}."
    return text


def on_hold(summary: Summary) -> list[str]:
    """Lanes whose last word is a hold."""
    last: dict[str, str] = {}
    for decision in summary.decisions:
        if decision.what in ("hold", "resume"):
            last[decision.lane] = decision.what
    return [name for name in summary.lanes if last.get(name) == "hold"]
