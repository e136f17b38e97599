"""State as data: look into checkpoints and savepoints, make new ones of rows, and change old ones, without a job.

async with state_processor.open("file:///backups/orders-7") as snapshot:
    async for customer, total in snapshot.state("totals", "total"):
        ...
"""

from streamactors.state.serialisation.generic import Member, Opaque, Record
from streamactors.state_processor.blocking import BlockingRows, BlockingSnapshot, open_blocking, write_blocking
from streamactors.state_processor.bootstrap import SavepointWriter
from streamactors.state_processor.overview import GroupSize, InFlightInfo, OperatorInfo, StateInfo
from streamactors.state_processor.rows import StoredRows
from streamactors.state_processor.snapshot import Snapshot, open
from streamactors.state_processor.stored_states import BroadcastRows, KeyedRows, ListRows
from streamactors.state_processor.transformation import DROP, Transformation

__all__ = [
    "DROP",
    "BlockingRows",
    "BlockingSnapshot",
    "BroadcastRows",
    "GroupSize",
    "InFlightInfo",
    "KeyedRows",
    "ListRows",
    "Member",
    "Opaque",
    "OperatorInfo",
    "Record",
    "SavepointWriter",
    "Snapshot",
    "StateInfo",
    "StoredRows",
    "Transformation",
    "open",
    "open_blocking",
    "write_blocking",
]
