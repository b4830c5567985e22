"""The histogram of waits for durability: counts add up, over workers too, and reach the metrics page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parse
from unit.brain_help import Rig

from gpuvigil_collector.export.metrics import registry_of, render
from gpuvigil_collector.ingest.ack_latency import BOUNDS_S, AckLatency, buckets

WAITS = st.lists(st.floats(0, 1000), max_size=30)


@given(WAITS, WAITS)
def test_buckets_hold_what_two_workers_counted(first, second):
    total: dict[str, float] = {}
    for waits in (first, second):
        latency = AckLatency()
        latency.durable([1000.0 - wait for wait in waits], 1000.0)
        for key, value in latency.counters.items():
            total[key] = total.get(key, 0.0) + value
    found, seconds = buckets(total)
    waited = [1000.0 - (1000.0 - wait) for wait in (*first, *second)]
    assert [bound for bound, _ in found] == [*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"]
    assert [n for _, n in found] == [*(sum(w <= b for w in waited) for b in BOUNDS_S), len(waited)]
    assert abs(seconds - sum(waited)) < 1e-6


def test_the_page_has_the_histogram(tmp_path):
    rig = Rig(tmp_path)
    latency = AckLatency()
    latency.durable([8.0, 9.9], 10.0)
    counters = rig.store.counters()
    rig.store.counters = lambda: counters | latency.counters
    page = render(registry_of(rig.collector())).decode()
    (family,) = [f for f in parse(page) if f.name == "gpuvigil_ingest_ack_latency_seconds"]
    values = {(s.name.rpartition("_")[2], s.labels.get("le", "")): s.value for s in family.samples}
    assert values["bucket", "1"] == 1 and values["bucket", "+Inf"] == 2 and values["count", ""] == 2
    assert abs(values["sum", ""] - 2.1) < 1e-6
    assert "ack_latency_total" not in page and "gpuvigil_ingest_batches_total" in page
