"""What a restore is refused for where nothing reads what is stored."""

import pytest

from streamactors.errors import IncompatibleState
from streamactors.state.stored import check_schemas
from streamactors.state.timers import HIDDEN, TimerState


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("total", "operator 'sum', state 'total': stored in the checkpoint, but no longer declared"),
        (TimerState("event").name, "operator 'sum' has stored timers, and defines no on_timer now"),
        (TimerState("processing").name, "operator 'sum' has stored timers, and defines no on_timer now"),
        (f"{HIDDEN}calls", "operator 'sum' has stored 'calls', which this kind of step does not have"),
    ],
)
def test_what_nothing_reads_is_named(name: str, says: str) -> None:
    with pytest.raises(IncompatibleState, match=f"^{says}.*, or allow dropping state$"):
        check_schemas({name: {}}, {}, "sum")
    check_schemas({name: {}}, {}, "sum", allow_dropped=True)
