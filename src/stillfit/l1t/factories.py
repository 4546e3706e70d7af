"""The trigger's networks by the names under which stored versions know them."""

from __future__ import annotations

from collections.abc import Mapping

from stillfit.l1t.adaptive import AdaptiveE2E
from stillfit.l1t.e2e import E2E
from stillfit.l1t.finders import FastHisto
from stillfit.l1t.fixed import FixedE2E
from stillfit.l1t.fixed_adaptive import FixedAdaptiveE2E
from stillfit.models.model import Factory

FACTORIES: Mapping[str, Factory] = {
    "l1t.fasthisto": FastHisto,
    "l1t.e2e": E2E,
    "l1t.adaptive": AdaptiveE2E,
    "l1t.fixed-e2e": FixedE2E,
    "l1t.fixed-adaptive": FixedAdaptiveE2E,
}
