"""Public conformance suites: check what you wrote yourself in three lines.

from stillfit.testing import check_uncertainty, check_updater

report = check_uncertainty(MyMethod)
assert report.count >= 20, report
report = check_updater(MyStrategy(), laws={"penalty 0 is naive": Law(...)})
assert report.count >= 30, report
"""

from stillfit.testing.report import Check, Report
from stillfit.testing.uncertainty import check_uncertainty
from stillfit.testing.updater import Law, check_updater

__all__ = ["Check", "Law", "Report", "check_uncertainty", "check_updater"]
