"""Progress: whole lines in a log, a bar on a terminal, nothing on standard output."""

import io

from stillfit.apps.progress import lines, silent, to_terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def told(total, steps):
    out = io.StringIO()
    with lines(out)("fit [red]", total) as advance:
        for step in steps:
            advance(step)
    return out.getvalue().splitlines()


def test_a_log_gets_a_line_for_each_tenth_and_no_more():
    found = told(1000, [1] * 1000)
    assert found[0] == "fit [red]: begins"
    assert found[1] == "fit [red]: 10 % (100 of 1,000)"
    assert found[-1] == "fit [red]: 100 % (1,000 of 1,000)"
    assert len(found) == 11


def test_a_large_step_is_told_once():
    assert told(10, [10]) == ["fit [red]: begins", "fit [red]: 100 % (10 of 10)"]


def test_what_ends_early_says_how_far_it_came():
    assert told(10, [3])[-1] == "fit [red]: done (3)"


def test_an_unknown_total_is_counted_in_powers_of_ten():
    found = told(0, [1] * 250)
    assert found == [
        "fit [red]: begins",
        "fit [red]: 10 so far",
        "fit [red]: 100 so far",
        "fit [red]: done (250)",
    ]


def test_a_terminal_gets_a_bar_and_a_log_does_not():
    terminal, log = Terminal(), io.StringIO()
    for out in (terminal, log):
        with to_terminal(out)("fit [red]", 2) as advance:
            advance(2)
    assert "begins" not in terminal.getvalue() and "fit [red]" in terminal.getvalue()
    assert "begins" in log.getvalue() and "\x1b" not in log.getvalue()


def test_a_bar_without_a_total_counts():
    terminal = Terminal()
    with to_terminal(terminal)("events", 0) as advance:
        advance(1234)
    assert "1,234" in terminal.getvalue()


def test_silence_is_possible(capsys):
    with silent("fit", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")
