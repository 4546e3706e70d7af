"""Public conformance suites: check what you wrote yourself in three lines.

from stillfit.testing import check_uncertainty

report = check_uncertainty(MyMethod)
assert report.count >= 20, report
"""

from stillfit.testing.report import Check, Report
from stillfit.testing.uncertainty import check_uncertainty

__all__ = ["Check", "Report", "check_uncertainty"]
