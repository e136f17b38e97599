"""A process to be killed: prepares checkpoint 1, leaves records of the next transaction open, prints its state, waits.

`python -m tests.connectors.kafka.prepare_and_hang BROKERS TOPIC SUBTASK PARALLELISM`
"""

import asyncio
import json
import sys
from dataclasses import replace

from connectors.kafka import KafkaSink
from tests.connectors.kafka.driving import NUMBERS, SINK


async def main(brokers: str, topic: str, subtask: int, parallelism: int) -> None:
    ctx = replace(SINK, subtask=subtask, parallelism=parallelism, widest_parallelism=parallelism)
    writer = KafkaSink(brokers, topic, value=NUMBERS, transactional_id_prefix=topic).writer(ctx)
    await writer.open([], committed=False)
    await writer.write([10 * subtask + 1, 10 * subtask + 2], None)
    pending = await writer.prepare(1)
    await writer.write([10 * subtask + 3], None)
    await writer._opened.flush()
    print(json.dumps(pending), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
