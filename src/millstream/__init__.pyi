# The public names, grouped by pattern, and nothing else.

__all__: list[str]

from . import aio as aio
from . import cdc as cdc
from . import testing as testing

# the log
from .events import Draft as Draft
from .events import Event as Event
from .events import Plain as Plain
from .evolution import upcast as upcast
from .log import Log as Log
from .log import Recorded as Recorded
from .log import Run as Run
from .log import Transaction as Transaction
from .log import open as open
from .log.check import Checked as Checked
from .log.check import check_schema as check_schema
from .log.handlers import on as on
from .log.handlers import on_batch as on_batch
from .log.positions import Position as Position
from .log.personal.forget import Forgotten as Forgotten
from .log.personal.keys import KeyStore as KeyStore
from .personal import Erased as Erased
from .personal import Personal as Personal
from .storage.base import Matching as Matching
from .storage.base import Receipt as Receipt
from .storage.base import StreamInfo as StreamInfo
from .storage.database import Database as Database

# 1 event sourcing
from .sourcing.aggregate import Aggregate as Aggregate
from .sourcing.decider import Decider as Decider
from .sourcing.decider import Loaded as Loaded
from .sourcing.decision import Decision as Decision
from .sourcing.past import Changed as Changed
from .sourcing.past import Difference as Difference
from .sourcing.past import Step as Step
from .sourcing.repository import Repository as Repository
from .sourcing.snapshots import Snapshots as Snapshots

# 2 change data capture
from .cdc import CacheInvalidation as CacheInvalidation
from .cdc import Callback as Callback
from .cdc import Capture as Capture
from .cdc import Change as Change
from .cdc import Replica as Replica
from .cdc import SchemaChanged as SchemaChanged
from .cdc import SearchIndex as SearchIndex
from .cdc import Sync as Sync
from .cdc import Warehouse as Warehouse
from .cdc import Webhook as Webhook
from .cdc import capture as capture
from .cdc import sync as sync
from .cdc import verify_webhook as verify_webhook

# 3 CQRS
from .app.app import App as App
from .app.read_side import ReadModel as ReadModel
from .app.supervisor import State as State
from .app.supervisor import WorkerStatus as WorkerStatus
from .cqrs.building import Progress as Progress
from .cqrs.command import Command as Command
from .cqrs.command import Ref as Ref
from .cqrs.comparing import Comparison as Comparison
from .cqrs.failures import Failure as Failure
from .cqrs.projection import Placement as Placement
from .cqrs.projection import Projection as Projection
from .cqrs.query import Answer as Answer
from .cqrs.query import Query as Query
from .cqrs.versions import Version as Version

# 4 stream processing
from .streams.flow import Flow as Flow
from .streams.flow import stream as stream
from .streams.runner import Running as Running
from .streams.runner import run as run
from .streams.windows import hopping as hopping
from .streams.windows import sliding as sliding
from .streams.windows import tumbling as tumbling

# errors
from .errors import MillstreamError as MillstreamError
from .errors import UsageError as UsageError
from .errors import InvalidEvent as InvalidEvent
from .errors import DuplicateType as DuplicateType
from .errors import InvalidUpcaster as InvalidUpcaster
from .errors import SchemaMismatch as SchemaMismatch
from .errors import UpcasterMissing as UpcasterMissing
from .errors import UpcastFailed as UpcastFailed
from .errors import InvalidStreamName as InvalidStreamName
from .errors import InvalidTime as InvalidTime
from .errors import InvalidPosition as InvalidPosition
from .errors import UnsupportedColumn as UnsupportedColumn
from .errors import SchemaConflict as SchemaConflict
from .errors import InvalidRetention as InvalidRetention
from .errors import InvalidDepot as InvalidDepot
from .errors import KeysNeeded as KeysNeeded
from .errors import MissingExtra as MissingExtra
from .errors import Conflict as Conflict
from .errors import VersionConflict as VersionConflict
from .errors import ConditionFailed as ConditionFailed
from .errors import IdReused as IdReused
from .errors import SubjectForgotten as SubjectForgotten
from .errors import StreamClosed as StreamClosed
from .errors import Rejected as Rejected
from .errors import NotFound as NotFound
from .errors import StreamNotFound as StreamNotFound
from .errors import Trimmed as Trimmed
from .errors import ConsumerFenced as ConsumerFenced
from .errors import TimedOut as TimedOut
from .errors import StorageError as StorageError
from .errors import NotALog as NotALog
from .errors import NewerFormat as NewerFormat
from .errors import DamagedLog as DamagedLog
from .errors import KeyLost as KeyLost
from .errors import KeyWrong as KeyWrong
from .errors import ReadOnlyLog as ReadOnlyLog
from .errors import DiskFull as DiskFull
from .errors import LogLocked as LogLocked
from .errors import LogClosed as LogClosed
from .errors import ReplicaLog as ReplicaLog
from .errors import LogMoved as LogMoved
from .errors import NotAPrefix as NotAPrefix
from .errors import DepotError as DepotError
from .errors import DepotUnavailable as DepotUnavailable
from .errors import DepotFileMissing as DepotFileMissing
from .errors import DepotFileChanged as DepotFileChanged
from .errors import NetworkFilesystem as NetworkFilesystem
from .errors import ClockJumped as ClockJumped
from .errors import ConnectionFailed as ConnectionFailed
from .errors import PermissionDenied as PermissionDenied
from .errors import DatabaseError as DatabaseError
from .errors import ConstraintViolated as ConstraintViolated
from .errors import InvalidQuery as InvalidQuery
from .errors import CaptureError as CaptureError
from .errors import CaptureWarning as CaptureWarning
from .errors import NotCapturedYet as NotCapturedYet
from .errors import SourceUnavailable as SourceUnavailable
from .errors import SinkError as SinkError
from .errors import SinkUnavailable as SinkUnavailable
from .errors import SinkGone as SinkGone
from .errors import InvalidWebhook as InvalidWebhook
from .cqrs.errors import DuplicateHandler as DuplicateHandler
from .cqrs.errors import ForeignReadModel as ForeignReadModel
from .cqrs.errors import ProjectionFailed as ProjectionFailed
from .cqrs.errors import ReadModelBehind as ReadModelBehind
from .cqrs.errors import ReadModelChanged as ReadModelChanged
from .cqrs.errors import UnknownCommand as UnknownCommand
from .cqrs.errors import UnknownProjection as UnknownProjection
from .cqrs.errors import UnknownQuery as UnknownQuery
from .sourcing.errors import CannotRecord as CannotRecord
from .sourcing.errors import HandlerMissing as HandlerMissing
from .sourcing.errors import SnapshotWarning as SnapshotWarning
from .sourcing.errors import WrongAggregate as WrongAggregate
from .sourcing.errors import InvalidDecision as InvalidDecision
from .log.handlers import InvalidHandler as InvalidHandler
from .log.retry import Contended as Contended
from .streams.errors import FlowChanged as FlowChanged
from .streams.errors import FlowError as FlowError
from .streams.errors import MissingColumn as MissingColumn
from .streams.errors import UnsupportedExpression as UnsupportedExpression
from .streams.errors import UnsupportedPattern as UnsupportedPattern
