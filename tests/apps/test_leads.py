"""How much earlier the flag rose: told from the journal's entries alone."""

import dataclasses

from stillfit.apps.leads import alarms_of, leads
from stillfit.apps.summary import Fill, Lead
from stillfit.registry import Entry

# Six fills of 1000 s and 1000 events, gaps of 500 s; the labels of a fill come in the next gap.
FILLS = tuple(
    Fill(fill=n, condition=name, start=1500.0 * (n - 1), end=1500.0 * (n - 1) + 1000)
    for n, name in enumerate(["nominal", "nominal", "hot", "hot", "cold", "nominal"], 1)
)


def entry(kind: str, time: float, **payload) -> Entry:
    return Entry(lane="a", time=time, kind=kind, payload=payload, seq=0, prev="", hash="")


def performance() -> list[Entry]:
    return [
        # An event a second; blocks of 500 events bear the time of their last one.
        entry(
            "performance",
            f.end + 1600,
            fill=f.fill,
            n=1000,
            first=f.start + 499,
            last=f.start + 999,
        )
        for f in FILLS
    ]


def alarm(monitor: str, time: float, age: float | None = None) -> Entry:
    return entry("alarm", time, monitor=monitor, age=age, because="it rose")


def told(*entries: Entry) -> dict[int, Lead]:
    journal = sorted([*performance(), *entries], key=lambda e: e.time)
    return {lead.fill: lead for lead in leads(journal, FILLS)}


def test_each_change_of_condition_has_a_lead_with_the_events_in_between():
    # Fill 3 runs from 3000 to 4000 s; its labels come in the gap after fill 4, at 5600 s.
    found = told(alarm("score-ks", 3249.0), alarm("late-metric", 5600.0, age=1600.0))
    assert list(found) == [3, 5, 6]
    assert found[3] == Lead(
        fill=3, condition="hot", start=3000.0, flag=3249.0, monitor="score-ks", delay=250,
        late=5600.0, late_monitor="late-metric", earlier=1750,
    )  # fmt: skip
    stood = ("late-metric", "score-ks")
    assert found[5] == Lead(fill=5, condition="cold", start=6000.0, stood=stood)


def test_labels_may_come_first_and_either_may_be_missing():
    found = told(
        alarm("error-cusum", 5600.0, age=1600.0),
        alarm("score-cusum", 5700.0),
        alarm("score-cusum", 7600.0),
    )
    assert found[3].earlier == 0  # nothing is served in a gap
    late_flag = told(alarm("error-cusum", 5600.0, age=1600.0), alarm("score-ks", 6000.0))
    assert (late_flag[3].flag, late_flag[3].late, late_flag[3].earlier) == (None, 5600.0, None)
    assert late_flag[5].flag == 6000.0
    assert told(alarm("error-cusum", 4000.0, 600.0), alarm("score-ks", 4749.0))[3].earlier == -250


def test_a_late_alarm_belongs_to_the_condition_that_its_newest_label_is_of():
    # In fill 5 (cold), of labels from fill 4 (hot).
    found = told(alarm("late-metric", 7050.0, age=1550.0))
    assert found[3].late == 7050.0
    assert found[5].late is None


def test_an_alarm_that_stood_before_tells_nothing_about_the_change():
    stands = told(alarm("score-ks", 2900.0))
    assert stands[3].flag is None
    assert stands[3].stood == ("score-ks",)
    again = told(
        alarm("score-ks", 2900.0),
        entry("clear", 3100.0, monitor="score-ks", because="over"),
        alarm("score-ks", 3300.0),
    )
    assert again[3].flag == 3300.0
    assert again[5].stood == ("score-ks",)


def test_a_switch_forgets_all_alarms_without_a_word():
    for forgets in (
        entry("switch", 2950.0),
        entry("rollback", 2950.0),
        entry("call", 2950.0, taken_as_is=True),
    ):
        assert told(alarm("score-ks", 2900.0), forgets)[3].stood == ()
    assert told(alarm("score-ks", 2900.0), entry("call", 2950.0, taken_as_is=False))[3].stood


def test_only_monitors_of_the_uncertainty_are_the_flag():
    assert told(alarm("input-drift", 3250.0))[3].flag is None
    journal = [*performance(), alarm("input-drift", 3250.0)]
    assert leads(journal, FILLS, ("input-drift",))[0].flag == 3250.0


def test_a_run_without_a_change_or_without_labels_has_no_leads_or_no_count():
    assert leads([], FILLS[:2]) == ()
    assert leads([], ()) == ()
    (first, *_) = leads([alarm("score-ks", 3250.0), alarm("late-metric", 5600.0, 1600.0)], FILLS)
    assert (first.delay, first.earlier) == (0, 0)


def test_alarms_last_until_they_are_cleared():
    found = alarms_of(
        [
            alarm("a", 1.0),
            alarm("b", 2.0, age=0.5),
            entry("clear", 3.0, monitor="a", because="over"),
        ]
    )
    assert [(a.monitor, a.time, a.end, a.age) for a in found] == [
        ("a", 1.0, 3.0, None),
        ("b", 2.0, float("inf"), 0.5),
    ]


def test_nothing_is_changed():
    journal = [*performance(), alarm("score-ks", 3250.0)]
    before = [dataclasses.asdict(e) for e in journal]
    assert leads(journal, FILLS) == leads(journal, FILLS)
    assert [dataclasses.asdict(e) for e in journal] == before
