"""Public conformance suites: check what you wrote yourself in three lines.

from stillfit.testing import check_uncertainty, check_updater

report = check_uncertainty(MyMethod)
assert report.count >= 20, report
report = check_updater(MyStrategy(), laws={"penalty 0 is naive": Law(...)})
assert report.count >= 30, report

An updater for other tasks gets a `Problem` of its own: `check_updater(Mine(), problems=[mine])`.
"""

from stillfit.testing.problems import CLASSIFICATION, REGRESSION, Problem
from stillfit.testing.report import Check, Report
from stillfit.testing.uncertainty import check_uncertainty
from stillfit.testing.updater import Law, check_updater

__all__ = [
    "CLASSIFICATION",
    "REGRESSION",
    "Check",
    "Law",
    "Problem",
    "Report",
    "check_uncertainty",
    "check_updater",
]
