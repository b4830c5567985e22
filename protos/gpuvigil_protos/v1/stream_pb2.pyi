from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_LIVE: _ClassVar[Role]
    ROLE_BACKLOG: _ClassVar[Role]

class Class(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLASS_UNSPECIFIED: _ClassVar[Class]
    CLASS_METRICS: _ClassVar[Class]
    CLASS_EVENTS: _ClassVar[Class]

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_XID: _ClassVar[EventKind]
    EVENT_KIND_SXID: _ClassVar[EventKind]
    EVENT_KIND_KERNEL: _ClassVar[EventKind]
    EVENT_KIND_GPU_LOST: _ClassVar[EventKind]
    EVENT_KIND_GPU_RETURNED: _ClassVar[EventKind]
    EVENT_KIND_DRIVER_STUCK: _ClassVar[EventKind]
    EVENT_KIND_DRIVER_RECOVERED: _ClassVar[EventKind]
    EVENT_KIND_DRIVER_CRASHED: _ClassVar[EventKind]
    EVENT_KIND_RECOVERY_ACTION: _ClassVar[EventKind]
    EVENT_KIND_AGENT: _ClassVar[EventKind]
    EVENT_KIND_HOOK: _ClassVar[EventKind]
    EVENT_KIND_RANK_UP: _ClassVar[EventKind]
    EVENT_KIND_RANK_DOWN: _ClassVar[EventKind]
    EVENT_KIND_COLLECTIVES: _ClassVar[EventKind]
    EVENT_KIND_CHECKPOINT: _ClassVar[EventKind]

class Origin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORIGIN_UNSPECIFIED: _ClassVar[Origin]
    ORIGIN_DRIVER: _ClassVar[Origin]
    ORIGIN_KERNEL_LOG: _ClassVar[Origin]
    ORIGIN_AGENT: _ClassVar[Origin]
    ORIGIN_JOB: _ClassVar[Origin]
ROLE_UNSPECIFIED: Role
ROLE_LIVE: Role
ROLE_BACKLOG: Role
CLASS_UNSPECIFIED: Class
CLASS_METRICS: Class
CLASS_EVENTS: Class
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_XID: EventKind
EVENT_KIND_SXID: EventKind
EVENT_KIND_KERNEL: EventKind
EVENT_KIND_GPU_LOST: EventKind
EVENT_KIND_GPU_RETURNED: EventKind
EVENT_KIND_DRIVER_STUCK: EventKind
EVENT_KIND_DRIVER_RECOVERED: EventKind
EVENT_KIND_DRIVER_CRASHED: EventKind
EVENT_KIND_RECOVERY_ACTION: EventKind
EVENT_KIND_AGENT: EventKind
EVENT_KIND_HOOK: EventKind
EVENT_KIND_RANK_UP: EventKind
EVENT_KIND_RANK_DOWN: EventKind
EVENT_KIND_COLLECTIVES: EventKind
EVENT_KIND_CHECKPOINT: EventKind
ORIGIN_UNSPECIFIED: Origin
ORIGIN_DRIVER: Origin
ORIGIN_KERNEL_LOG: Origin
ORIGIN_AGENT: Origin
ORIGIN_JOB: Origin

class StreamRequest(_message.Message):
    __slots__ = ("hello", "dictionary", "batch", "event", "command_result")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    COMMAND_RESULT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    dictionary: Dictionary
    batch: Batch
    event: Event
    command_result: CommandResult
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., dictionary: _Optional[_Union[Dictionary, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., event: _Optional[_Union[Event, _Mapping]] = ..., command_result: _Optional[_Union[CommandResult, _Mapping]] = ...) -> None: ...

class StreamResponse(_message.Message):
    __slots__ = ("welcome", "ack", "command", "setting", "refusal")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    SETTING_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    ack: Ack
    command: Command
    setting: Setting
    refusal: Refusal
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., command: _Optional[_Union[Command, _Mapping]] = ..., setting: _Optional[_Union[Setting, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("schema_version", "node", "boot_id", "agent_version", "role", "inventory", "dictionary", "sent_ns")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    SENT_NS_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    node: str
    boot_id: str
    agent_version: str
    role: Role
    inventory: Inventory
    dictionary: Dictionary
    sent_ns: int
    def __init__(self, schema_version: _Optional[int] = ..., node: _Optional[str] = ..., boot_id: _Optional[str] = ..., agent_version: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., inventory: _Optional[_Union[Inventory, _Mapping]] = ..., dictionary: _Optional[_Union[Dictionary, _Mapping]] = ..., sent_ns: _Optional[int] = ...) -> None: ...

class Inventory(_message.Message):
    __slots__ = ("gpus", "driver_version", "kernel", "gpu_source", "note")
    GPUS_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    GPU_SOURCE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    gpus: _containers.RepeatedCompositeFieldContainer[Gpu]
    driver_version: str
    kernel: str
    gpu_source: str
    note: str
    def __init__(self, gpus: _Optional[_Iterable[_Union[Gpu, _Mapping]]] = ..., driver_version: _Optional[str] = ..., kernel: _Optional[str] = ..., gpu_source: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class Gpu(_message.Message):
    __slots__ = ("uuid", "index", "model", "pci_bus_id", "seen")
    UUID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PCI_BUS_ID_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    index: int
    model: str
    pci_bus_id: str
    seen: bool
    def __init__(self, uuid: _Optional[str] = ..., index: _Optional[int] = ..., model: _Optional[str] = ..., pci_bus_id: _Optional[str] = ..., seen: _Optional[bool] = ...) -> None: ...

class Dictionary(_message.Message):
    __slots__ = ("version", "groups")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    version: int
    groups: _containers.RepeatedCompositeFieldContainer[Group]
    def __init__(self, version: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[Group, _Mapping]]] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("id", "period_ns", "series", "steps")
    ID_FIELD_NUMBER: _ClassVar[int]
    PERIOD_NS_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    id: int
    period_ns: int
    series: _containers.RepeatedCompositeFieldContainer[Series]
    steps: bool
    def __init__(self, id: _Optional[int] = ..., period_ns: _Optional[int] = ..., series: _Optional[_Iterable[_Union[Series, _Mapping]]] = ..., steps: _Optional[bool] = ...) -> None: ...

class Series(_message.Message):
    __slots__ = ("metric", "entity")
    METRIC_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    metric: str
    entity: str
    def __init__(self, metric: _Optional[str] = ..., entity: _Optional[str] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("sequence", "dictionary_version", "blocks", "gaps", "sent_ns", "crc")
    CLASS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DICTIONARY_VERSION_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    SENT_NS_FIELD_NUMBER: _ClassVar[int]
    CRC_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    dictionary_version: int
    blocks: _containers.RepeatedCompositeFieldContainer[Block]
    gaps: _containers.RepeatedCompositeFieldContainer[Gap]
    sent_ns: int
    crc: int
    def __init__(self, sequence: _Optional[int] = ..., dictionary_version: _Optional[int] = ..., blocks: _Optional[_Iterable[_Union[Block, _Mapping]]] = ..., gaps: _Optional[_Iterable[_Union[Gap, _Mapping]]] = ..., sent_ns: _Optional[int] = ..., crc: _Optional[int] = ..., **kwargs) -> None: ...

class Block(_message.Message):
    __slots__ = ("group", "tick_ns", "values")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    TICK_NS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    group: int
    tick_ns: _containers.RepeatedScalarFieldContainer[int]
    values: bytes
    def __init__(self, group: _Optional[int] = ..., tick_ns: _Optional[_Iterable[int]] = ..., values: _Optional[bytes] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("first", "last", "reason", "samples")
    CLASS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    reason: str
    samples: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ..., reason: _Optional[str] = ..., samples: _Optional[int] = ..., **kwargs) -> None: ...

class Event(_message.Message):
    __slots__ = ("sequence", "time_ns", "kind", "origin", "entity", "code", "text", "fields", "synthetic", "gaps", "sent_ns")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    SYNTHETIC_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    SENT_NS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time_ns: int
    kind: EventKind
    origin: Origin
    entity: str
    code: int
    text: str
    fields: _containers.ScalarMap[str, str]
    synthetic: bool
    gaps: _containers.RepeatedCompositeFieldContainer[Gap]
    sent_ns: int
    def __init__(self, sequence: _Optional[int] = ..., time_ns: _Optional[int] = ..., kind: _Optional[_Union[EventKind, str]] = ..., origin: _Optional[_Union[Origin, str]] = ..., entity: _Optional[str] = ..., code: _Optional[int] = ..., text: _Optional[str] = ..., fields: _Optional[_Mapping[str, str]] = ..., synthetic: _Optional[bool] = ..., gaps: _Optional[_Iterable[_Union[Gap, _Mapping]]] = ..., sent_ns: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("schema_version", "collector", "echo_ns", "collector_ns", "watermarks")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    COLLECTOR_FIELD_NUMBER: _ClassVar[int]
    ECHO_NS_FIELD_NUMBER: _ClassVar[int]
    COLLECTOR_NS_FIELD_NUMBER: _ClassVar[int]
    WATERMARKS_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    collector: str
    echo_ns: int
    collector_ns: int
    watermarks: _containers.RepeatedCompositeFieldContainer[Watermark]
    def __init__(self, schema_version: _Optional[int] = ..., collector: _Optional[str] = ..., echo_ns: _Optional[int] = ..., collector_ns: _Optional[int] = ..., watermarks: _Optional[_Iterable[_Union[Watermark, _Mapping]]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("watermarks", "echo_ns", "collector_ns")
    WATERMARKS_FIELD_NUMBER: _ClassVar[int]
    ECHO_NS_FIELD_NUMBER: _ClassVar[int]
    COLLECTOR_NS_FIELD_NUMBER: _ClassVar[int]
    watermarks: _containers.RepeatedCompositeFieldContainer[Watermark]
    echo_ns: int
    collector_ns: int
    def __init__(self, watermarks: _Optional[_Iterable[_Union[Watermark, _Mapping]]] = ..., echo_ns: _Optional[int] = ..., collector_ns: _Optional[int] = ...) -> None: ...

class Watermark(_message.Message):
    __slots__ = ("received", "durable")
    CLASS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    received: int
    durable: int
    def __init__(self, received: _Optional[int] = ..., durable: _Optional[int] = ..., **kwargs) -> None: ...

class Command(_message.Message):
    __slots__ = ("id", "verb", "arguments", "deadline_ns")
    class ArgumentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_NS_FIELD_NUMBER: _ClassVar[int]
    id: str
    verb: str
    arguments: _containers.ScalarMap[str, str]
    deadline_ns: int
    def __init__(self, id: _Optional[str] = ..., verb: _Optional[str] = ..., arguments: _Optional[_Mapping[str, str]] = ..., deadline_ns: _Optional[int] = ...) -> None: ...

class CommandResult(_message.Message):
    __slots__ = ("id", "accepted", "outcome")
    ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    id: str
    accepted: bool
    outcome: str
    def __init__(self, id: _Optional[str] = ..., accepted: _Optional[bool] = ..., outcome: _Optional[str] = ...) -> None: ...

class Setting(_message.Message):
    __slots__ = ("flush_interval_ns",)
    FLUSH_INTERVAL_NS_FIELD_NUMBER: _ClassVar[int]
    flush_interval_ns: int
    def __init__(self, flush_interval_ns: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("sequence", "reason", "detail")
    CLASS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    reason: str
    detail: str
    def __init__(self, sequence: _Optional[int] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., **kwargs) -> None: ...
