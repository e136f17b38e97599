"""A flow's own code on its way to other processes: it is the same there, or refused by name."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import msgspec
import pytest

import streamactors as sa
from connectors.memory import ListSink, ListSource
from connectors.queue import QueueSource
from streamactors.deploy.ray import dumps, loads
from streamactors.errors import CheckpointFailed, ClusterUnfit, InvalidDataflow
from tests.programs import Program

pytestmark = pytest.mark.slow

LOCK = threading.Lock()
RAY = sa.Config(deployment=sa.Ray(workers=2))


def there_and_back(thing: Any) -> Any:
    return loads(dumps(thing))


class Order(msgspec.Struct):
    amount: int


def test_what_a_module_has_goes_by_name() -> None:
    for thing in (Order, there_and_back, sa.KeyedOperator, sa.Json):
        assert there_and_back(thing) is thing


def test_a_lambda_goes_with_what_it_refers_to() -> None:
    factor = 3
    assert there_and_back(lambda value: value * factor)(4) == 12


@pytest.mark.parametrize(
    "made", [sa.Json(Order), sa.MsgPack(Order), sa.Json(list[int])], ids=["json", "msgpack", "list of int"]
)
def test_formats_decode_the_same(made: Any) -> None:
    sent = there_and_back(made)
    value = Order(3) if made is not sent and "Order" in repr(made) else [1, 2]
    assert sent.decode(made.encode(value)) == made.decode(sent.encode(value))


def test_errors_keep_class_message_cause_and_notes() -> None:
    error = CheckpointFailed("no room")
    error.__cause__ = ValueError("boom")
    error.add_note("while it rained")
    sent = there_and_back(error)
    assert type(sent) is CheckpointFailed and str(sent) == "no room" and sent.__notes__ == ["while it rained"]
    assert type(sent.__cause__) is ValueError


def test_code_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("only_here")
    monkeypatch.setitem(sys.modules, "only_here", module)
    exec("def double(value): return 2 * value", module.__dict__)
    sent = dumps(module.double)
    monkeypatch.delitem(sys.modules, "only_here")
    with pytest.raises(ClusterUnfit, match="can't be loaded on node .*No module named 'only_here'.*--working-dir"):
        loads(sent)


def locking(value: int) -> Callable[[], int]:
    lock = threading.Lock()

    def locked() -> int:
        with lock:
            return value

    return locked


class Guarded(sa.Operator[int, int]):
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def process(self, value: int, ctx: sa.Context[None, int]) -> None:
        ctx.emit(value)


def flow_of(step: Callable[[sa.Stream[int]], sa.Stream[int]]) -> sa.Dataflow:
    flow = sa.Dataflow("refused")
    step(flow.source("in", ListSource([1, 2]))).sink("out", ListSink[int]())
    return flow


async def refused(flow: sa.Dataflow, **options: Any) -> str:
    with pytest.raises(InvalidDataflow) as caught:
        await sa.run(flow, RAY, **options)
    return str(caught.value)


async def test_too_few_slots_are_refused_before_there_is_a_cluster() -> None:
    flow = flow_of(lambda stream: stream.map(lambda value: value + 1, parallelism=3))
    with pytest.raises(sa.InvalidConfig, match="3 subtasks, and 2 workers with 1 slots each have room for 2"):
        await sa.run(flow, sa.Config(deployment=sa.Ray(workers=2, slots=1)))


async def test_a_closure_that_can_not_go_names_step_and_variable() -> None:
    locked = locking(3)
    message = await refused(flow_of(lambda stream: stream.map(lambda value: value + locked(), name="add")))
    assert message.startswith("step 'map-1' (add)") and "the variable 'locked' → the variable 'lock', a lock" in message
    assert "cannot pickle '_thread.lock' object" in message and "in open()" in message


async def test_a_factory_that_holds_a_connection_names_it() -> None:
    operator = Guarded()
    message = await refused(flow_of(lambda stream: stream.process("guarded", lambda: operator)))
    assert "step 'guarded' can't be sent" in message and "'lock', a lock" in message


async def test_a_resource_that_can_not_go_is_named() -> None:
    message = await refused(flow_of(lambda stream: stream.map(abs)), resources={"plain": 1, "pool": {"of": LOCK}})
    assert message.startswith("resources['pool'] can't be sent") and "'of', a lock" in message


async def test_a_struct_without_a_place_is_named() -> None:
    class Inner(msgspec.Struct):
        amount: int

    def made(value: int) -> int:
        return Inner(value).amount

    message = await refused(flow_of(lambda stream: stream.map(made, name="made")))
    assert "(made)" in message and "Inner can't be sent" in message and "at the top of a module" in message


def test_a_typed_dict_that_no_module_has_is_made_anew() -> None:
    class Noted(TypedDict, total=False):
        note: str

    class Item(Noted):
        amount: int
        place: NotRequired[str]

    there = loads(dumps({"item": Item, "again": Item}))
    assert there["item"] is there["again"]
    for name in ("__name__", "__qualname__", "__module__", "__required_keys__", "__optional_keys__"):
        assert getattr(there["item"], name) == getattr(Item, name)
    assert msgspec.convert({"amount": 1, "place": "x"}, there["item"]) == {"amount": 1, "place": "x"}
    with pytest.raises(msgspec.ValidationError, match="amount"):
        msgspec.convert({"note": "x"}, there["item"])


def test_several_aggregates_at_once_go() -> None:
    spent = sa.Aggregates(count=sa.Count(), spent=sa.Sum[float](lambda value: value))
    there = loads(dumps(spent))
    assert there.result(there.add(there.create(), 2.5)) == {"count": 1, "spent": 2.5}
    assert there.accumulator.__required_keys__ == spent.accumulator.__required_keys__


async def test_a_queue_belongs_to_the_process_that_puts_into_it(tmp_path: Path) -> None:
    queue = QueueSource[int](str(tmp_path / "orders"), value=sa.Json(int))
    flow = sa.Dataflow("fed")
    flow.source("orders", queue).map(abs)
    async with queue:
        message = await refused(flow)
    assert message.startswith("step 'orders' can't be sent") and "'source', a QueueSource (the queue in" in message
    assert "belongs to the process that puts into it" in message and "open()" not in message


async def test_a_list_sink_is_for_one_process() -> None:
    message = await refused(flow_of(lambda stream: stream.map(abs)))
    assert message.startswith("step 'out' can't be sent") and "'sink', a ListSink" in message and "FileSink" in message


async def test_without_the_extra_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "streamactors.deploy.ray", raising=False)
    monkeypatch.delattr("streamactors.deploy.ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(sa.MissingExtra, match=r"streamactors\[ray\]"):
        await sa.run(flow_of(lambda stream: stream.map(abs)), RAY)


SCRIPT = """
import enum, sys
import msgspec
from streamactors.deploy.ray import dumps

class Color(enum.Enum):
    RED = 1

class Order(msgspec.Struct):
    color: Color
    def twice(self): return [self, self]

def double(order): return order.twice()

{guard}
    sys.stdout.buffer.write(dumps([Order, double, Order(Color.RED), lambda order: double(order)]))
"""
READER = """
import sys
from streamactors.deploy.ray import dumps, loads
Order, double, order, twice = loads(sys.stdin.buffer.read())
again, *_ = loads(dumps([Order]))
assert Order is again and type(order) is Order and double(order) == twice(order) == [order, order]
print(Order.__module__, order)
"""


def sent_by(script: Path) -> bytes:
    return subprocess.run([sys.executable, str(script)], capture_output=True, check=True).stdout


def test_what_a_script_defines_is_its_own_in_other_processes(tmp_path: Path) -> None:
    script = tmp_path / "orders.py"
    script.write_text(SCRIPT.format(guard='if __name__ == "__main__":'))
    read = subprocess.run([sys.executable, "-c", READER], input=sent_by(script), capture_output=True, check=True)
    assert read.stdout.decode().strip() == "orders Order(color=<Color.RED: 1>)"


def test_a_script_that_is_not_there_is_told(tmp_path: Path) -> None:
    script = tmp_path / "orders.py"
    script.write_text(SCRIPT.format(guard='if __name__ == "__main__":'))
    sent = sent_by(script)
    script.unlink()
    read = subprocess.run([sys.executable, "-c", READER], input=sent, capture_output=True, check=False)
    assert f"the script {script} is not on this machine" in read.stderr.decode()


def test_a_script_that_starts_its_job_on_import_is_told(tmp_path: Path) -> None:
    script = tmp_path / "orders.py"
    script.write_text(
        "import streamactors as sa\nfrom connectors.memory import ListSink, ListSource\n"
        "from streamactors.deploy import main_script\n"
        "def double(value): return 2 * value\n"
        "def start():\n"
        "    flow = sa.Dataflow('again')\n"
        "    flow.source('in', ListSource([1])).map(double).sink('out', ListSink())\n"
        "    sa.main(flow, sa.Config(deployment=sa.Ray(workers=1)))\n"
        "if __name__ == '__main__':\n"
        "    main_script.find_in_script(main_script.MainScript('', __file__.replace('orders', 'again')), 'double')\n"
    )
    (tmp_path / "again.py").write_text(script.read_text().partition("if __name__")[0] + "start()\n")
    with Program(str(script), cwd=tmp_path) as program:
        assert program.end() == 1
    assert "starts its job whenever it is imported" in program.stderr and "if __name__ == '__main__'" in program.stderr
