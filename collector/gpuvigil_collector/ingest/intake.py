"""What happens to one message: dedup, validate, record, put into the ring, tell the brain. No gRPC here.

Order matters: a sequence joins `received` in the same step that hands its rows to the recorder, so that no
watermark ever speaks of what the next flush does not hold.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import grpc
import numpy as np
from numpy.typing import NDArray

from gpuvigil_collector.ingest import frames, validate
from gpuvigil_collector.ingest.brain_link import BrainLink, series_of
from gpuvigil_collector.ingest.clock import SECOND_NS
from gpuvigil_collector.ingest.dictionary import Dictionary, parse
from gpuvigil_collector.ingest.hooks import AFTER_RECEIVE, Hook
from gpuvigil_collector.ingest.ledger import Delivery, Ledger
from gpuvigil_collector.ingest.recorder import Recorder
from gpuvigil_collector.ingest.refusal import RefusedError, StreamRejectedError
from gpuvigil_collector.ingest.ring import SETTLE_S, Plane
from gpuvigil_collector.ingest.rows import Rows
from gpuvigil_collector.ingest.segment_rows import EventRow, MetricRow
from gpuvigil_collector.ingest.session import Session
from gpuvigil_collector.ingest.validate import Block
from gpuvigil_protos.codec import ALREADY_DURABLE
from gpuvigil_protos.v1 import stream_pb2 as pb

HOLES_MAX: Final = 4096
GAPS_MAX: Final = 1000  # twenty times what our agents put into one message
DICTIONARY_CHANGES_MAX: Final = 600


class Intake:
    """One worker's taking-in. send hands a message to the brain."""

    def __init__(
        self, planes: tuple[Plane, ...], ledger: Ledger, recorder: Recorder, brain: BrainLink, hook: Hook,
        series_max: int,
    ) -> None:  # fmt: skip
        self._planes = planes
        self.rows = Rows(planes)
        self._ledger = ledger
        self._recorder = recorder
        self._brain = brain
        self._hook = hook
        self._series_max = series_max
        self.counters: Counter[str] = Counter()

    def take(self, session: Session, request: pb.StreamRequest, size: int) -> None:
        """Take one message after Hello. Raises StreamRejectedError for what ends the stream."""
        if self._recorder.full or self._brain.full:
            raise StreamRejectedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded", "the collector's disk or brain is behind"
            )
        self.counters["messages_total"] += 1
        self.counters["message_bytes_total"] += size
        session.heard = time.monotonic()
        match request.WhichOneof("message"):
            case "batch":
                self._observe(session, request.batch.sent_ns)
                self._batch(session, request.batch, size)
            case "event":
                self._observe(session, request.event.sent_ns)
                self._event(session, request.event, size)
            case "dictionary":
                self.learn_dictionary(session, request.dictionary)
            case "command_result":
                self.counters["command_results_total"] += 1
                self._result(session, request.command_result)
            case other:
                detail = f"message: expected batch, event or dictionary, got {other or 'nothing'}"
                raise StreamRejectedError(grpc.StatusCode.INVALID_ARGUMENT, "bad_message", detail)
        session.due.set()

    def _result(self, session: Session, result: pb.CommandResult) -> None:
        """Pass on what an agent made of a command; its words are short, whatever came."""
        words = (
            validate.clean_text(result.id[:100]),
            result.accepted,
            validate.clean_text(result.outcome[:500]),
        )
        self._brain.send(frames.Result(session.node, *words))

    def _observe(self, session: Session, sent_ns: int) -> None:
        session.echo_ns = sent_ns
        if sent_ns > 0 and session.clock.observe(time.time_ns(), sent_ns):
            self.counters["clock_jumps_total"] += 1

    def learn_dictionary(self, session: Session, message: pb.Dictionary) -> None:
        """Install a dictionary; one that is refused refuses the batches that come with it."""
        session.dictionary_changes += 1
        if session.dictionary_changes > DICTIONARY_CHANGES_MAX:
            detail = f"dictionary: expected at most {DICTIONARY_CHANGES_MAX} changes a stream"
            raise StreamRejectedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too_many_dictionaries", detail)
        try:
            dictionary = parse(message, self._series_max)
            if session.live:
                self.rows.assign(session.node, dictionary, time.time_ns())
        except RefusedError as refused:
            session.dictionary = refused
            self.counters[f"refused_dictionaries_total:{refused.reason}"] += 1
            return
        session.dictionary = dictionary
        self.counters["unknown_series_total"] += dictionary.unknown
        if session.live:
            self._brain.send(series_of(session.node, dictionary))

    def _batch(self, session: Session, batch: pb.Batch, size: int) -> None:
        sequence = batch.sequence
        try:
            validate.check_size(size)
            self._take_gaps(session, batch.gaps)  # a duplicate may carry new gaps
            if self._is_known(session, "metrics", sequence):
                return
            now_ns = time.time_ns() - session.clock.offset_ns
            blocks = validate.check_batch(batch, size, session.dictionary, now_ns)
        except RefusedError as refused:
            self._refuse(session, "metrics", sequence, refused)
            return
        session.metrics.received.add(sequence, sequence)
        self._record_batch(session, batch, blocks)
        self._hook(AFTER_RECEIVE)
        self.counters["batches_total"] += 1
        if session.live:
            for block in blocks:
                self._show(session, block)

    def _event(self, session: Session, event: pb.Event, size: int) -> None:
        try:
            validate.check_size(size)
            self._take_gaps(session, event.gaps)
            if self._is_known(session, "events", event.sequence):
                return
            validate.check_event(event, size, time.time_ns() - session.clock.offset_ns)
        except RefusedError as refused:
            self._refuse(session, "events", event.sequence, refused)
            return
        session.events.received.add(event.sequence, event.sequence)
        row = _event_row(session, event)
        self._recorder.add_event(session.key("events"), row)
        self._ledger.touch(session.key("events"))
        self._hook(AFTER_RECEIVE)
        self.counters["events_total"] += 1
        self._brain.send(event_frame(row))

    def _is_known(self, session: Session, name: str, sequence: int) -> bool:
        delivery = session.delivery(name)
        if sequence in delivery.received:
            delivery.duplicates += 1
            self.counters["duplicates_total"] += 1
            self._ledger.touch(session.key(name))
            return True
        self._check_holes(delivery)
        return False

    @staticmethod
    def _check_holes(delivery: Delivery) -> None:
        if len(delivery.received) > HOLES_MAX:
            detail = f"sequence: expected a contiguous count, got more than {HOLES_MAX} holes"
            raise StreamRejectedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too_many_holes", detail)

    def _refuse(self, session: Session, name: str, sequence: int, refused: RefusedError) -> None:
        """Count a refusal; the agent is told when the ledger holds it, so that no crash forgets it."""
        delivery = session.delivery(name)
        self.counters[f"refused_total:{refused.reason}"] += 1
        delivery.refused[refused.reason] = delivery.refused.get(refused.reason, 0) + 1
        if 1 <= sequence <= validate.SEQUENCE_MAX:
            delivery.received.add(sequence, sequence)
        self._ledger.touch(session.key(name))
        self._recorder.add_change(session.key(name), lambda: session.refuse(name, sequence, refused))

    def _take_gaps(self, session: Session, gaps: Sequence[pb.Gap]) -> None:
        if len(gaps) > GAPS_MAX:
            raise RefusedError("bad_length", f"gaps: expected at most {GAPS_MAX} a message, got {len(gaps)}")
        for gap in gaps:
            name = validate.check_gap(gap)
            delivery = session.delivery(name)
            self._check_holes(delivery)
            new = delivery.received.add(gap.first, gap.last)
            if gap.reason != ALREADY_DURABLE:
                delivery.gap_sequences += new
            reason = gap.reason if gap.reason in validate.GAP_REASONS else "other"
            self.counters[f"gap_sequences_total:{reason}"] += new
            self._recorder.add_change(session.key(name))
            self._ledger.touch(session.key(name))

    def _record_batch(self, session: Session, batch: pb.Batch, blocks: list[Block]) -> None:
        dictionary = session.dictionary if isinstance(session.dictionary, Dictionary) else None
        digest = dictionary.digest if dictionary and blocks else ""
        head = (session.node, session.boot_id, batch.sequence, batch.crc, session.role)
        received_ns = time.time_ns()
        rows = [
            MetricRow(*head, at, len(blocks), digest, block.group, received_ns, block.tick_ns, wire.values)
            for at, (block, wire) in enumerate(zip(blocks, batch.blocks, strict=True))
        ] or [MetricRow(*head, 0, 0, "", 0, received_ns, [], b"")]
        self._recorder.add_batch(session.key("metrics"), rows, digest, dictionary.text if dictionary else b"")
        self._ledger.touch(session.key("metrics"))

    def _show(self, session: Session, block: Block) -> None:
        """Put a live block's ticks into the ring, those in time; steps of a loop go to the brain."""
        values, taken_out = validate.quarantine(block.values, block.columns)
        self.counters["samples_total"] += block.values.size
        self.counters["quarantined_samples_total"] += taken_out
        if block.columns.steps:
            self.counters["steps_total"] += len(block.tick_ns)
            self._brain.send(_steps_frame(session, block, values))
            return
        plane = self._planes[block.columns.plane]
        now_second = time.time_ns() // SECOND_NS
        for at, tick_ns in enumerate(block.tick_ns):
            second = session.clock.second_of(tick_ns)
            if abs(now_second - second) > SETTLE_S:
                name = "late_samples_total" if second < now_second else "future_samples_total"
                self.counters[name] += block.columns.width
                continue
            plane.write(second, tick_ns + session.clock.offset_ns, block.columns.rows, values[at])


def _steps_frame(session: Session, block: Block, values: NDArray[np.float32]) -> frames.Steps:
    return frames.Steps(
        node=session.node,
        entity=block.columns.steps,
        metrics=[metric for metric, _ in block.columns.series],
        time_ns=(np.array(block.tick_ns, np.int64) + session.clock.offset_ns).tobytes(),
        values=np.ascontiguousarray(values, np.float32).tobytes(),
    )


def _event_row(session: Session, event: pb.Event) -> EventRow:
    return EventRow(
        node=session.node,
        boot_id=session.boot_id,
        sequence=event.sequence,
        role=session.role,
        time_ns=event.time_ns,
        received_ns=time.time_ns(),
        kind=validate.KINDS[event.kind],
        origin=validate.ORIGINS[event.origin],
        entity=event.entity,
        code=event.code,
        text=validate.clean_text(event.text),
        fields=[(key, validate.clean_text(value)) for key, value in event.fields.items()],
        synthetic=event.synthetic,
        clock_offset_ns=session.clock.offset_ns,
    )


def event_frame(row: EventRow) -> frames.Event:
    """Return an event as the brain gets it, in the collector's time."""
    return frames.Event(
        node=row.node,
        boot_id=row.boot_id,
        sequence=row.sequence,
        time_ns=row.time_ns + row.clock_offset_ns,
        kind=row.kind,
        origin=row.origin,
        entity=row.entity,
        code=row.code,
        text=row.text,
        fields=dict(row.fields),
        synthetic=row.synthetic,
    )
