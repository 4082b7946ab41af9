"""Every metric that the Grafana dashboard asks for is one that a centre at work exposes."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from fake_decoder import latent_record

from central.dashboard.metrics import CentralCollector, RuntimeMetrics, decode_histogram
from central.storage.journal import Journal

DASHBOARD = Path(__file__).parents[2] / "docs" / "monitoring" / "grafana-dashboard.json"
CONTENT = json.loads(DASHBOARD.read_text())
QUERIES = [t["expr"] for panel in CONTENT["panels"] for t in panel["targets"]]
QUERIES += [v["query"] for v in CONTENT["templating"]["list"] if v["type"] == "query"]


@pytest.fixture
def exposed(data_dir):
    """Names of samples and, by metric, the labels they may have."""
    journal = Journal(data_dir)
    journal.commit([(latent_record(), 1_700_000_000_500_000, 100)])
    journal.close()
    live = RuntimeMetrics(
        Counter(), Counter(), lambda: 0, lambda: {"tty": Counter(records=1)}, decode_histogram(), Counter()
    )
    names, values = set(), set()
    for family in CentralCollector(data_dir, live).collect():
        # Families without a sample yet (a device that has not said its temperature) are there by name.
        names.add(family.name + ("_total" if family.type == "counter" else ""))
        for sample in family.samples:
            names.add(sample.name)
            values |= {(sample.name, *label) for label in sample.labels.items()}
    return names, values


def metrics_of(query):
    """Names of metrics in a query; a name in its labels' braces is a label."""
    return set(re.findall(r"\bepic_[a-z_]+", re.sub(r"\{[^}]*\}", "", query)))


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_asks_for_metrics_that_exist(query, exposed):
    names, values = exposed
    asked = metrics_of(query)
    assert asked
    assert asked <= names
    for name, label, value in re.findall(r'(epic_[a-z_]+)\{[^}]*?(epic_[a-z_]+)="([^"]+)"', query):
        assert (name, label, value) in values


def test_panels_have_numbers_and_places_of_their_own():
    ids = [panel["id"] for panel in CONTENT["panels"]]
    assert len(set(ids)) == len(ids)
    cells = Counter(
        (x, y)
        for p in (panel["gridPos"] for panel in CONTENT["panels"])
        for x in range(p["x"], p["x"] + p["w"])
        for y in range(p["y"], p["y"] + p["h"])
    )
    assert max(cells.values()) == 1 and max(x for x, _ in cells) < 24
