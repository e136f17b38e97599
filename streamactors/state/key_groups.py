"""Which key group a key falls into, and which subtask owns a group. Stable over processes, versions and hash seeds.

`a == b` implies the same group, as it implies the same dict entry: 1, True, 1.0 and Decimal(1) are one key, a
NamedTuple equals its tuple, aware datetimes are compared as instants. So a key is first brought into a canonical form,
whose CRC-32 is taken modulo the maximum parallelism. A string is its own canonical form, so that whole batches of them
are grouped without a cache: 80 ns each whatever their number, where a cache of 100,000 keys costs 140 (it misses the
processor's own).
Never change this without a migration: stored state is found by it (golden values in the tests).
"""

import dataclasses
import datetime as dt
import enum
import functools
import math
import uuid
import zlib
import zoneinfo
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import msgspec

from streamactors.errors import InvalidConfig, UnserialisableKey, UnserialisableValue
from streamactors.state.serialisation.tagged import ClassNames

MAX_KEY_GROUPS: Final = 32768

_Writer = Callable[[Any], bytes]


# -------------------------------------------------------------------------------------------------- groups to subtasks
@dataclasses.dataclass(frozen=True, slots=True)
class KeyGroupRange:
    """Key groups `start` (inclusive) to `stop` (exclusive)."""

    start: int
    stop: int

    def __contains__(self, group: object) -> bool:
        return isinstance(group, int) and self.start <= group < self.stop

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __str__(self) -> str:
        return f"{self.start}..{self.stop - 1}" if self else "none"

    def intersect(self, other: "KeyGroupRange") -> "KeyGroupRange":
        """The groups in both; empty (`len` 0) if there are none."""
        start = max(self.start, other.start)
        return KeyGroupRange(start, max(start, min(self.stop, other.stop)))


def subtask_range(index: int, parallelism: int, max_parallelism: int) -> KeyGroupRange:
    """The key groups of subtask `index`: ceil(i*M/p) to ceil((i+1)*M/p) - 1."""
    return KeyGroupRange(-(-index * max_parallelism // parallelism), -(-(index + 1) * max_parallelism // parallelism))


def subtask_of(group: int, parallelism: int, max_parallelism: int) -> int:
    """The subtask that owns `group`."""
    return group * parallelism // max_parallelism


def default_max_parallelism(parallelism: int) -> int:
    """min(max(next power of two >= 1.5 p, 128), 32768). Raises InvalidConfig outside 1 to 32768."""
    if not 1 <= parallelism <= MAX_KEY_GROUPS:
        raise InvalidConfig(f"parallelism {parallelism} is not between 1 and {MAX_KEY_GROUPS}")
    wanted = (3 * parallelism + 1) // 2
    return min(max(1 << (wanted - 1).bit_length(), 128), MAX_KEY_GROUPS)


# ------------------------------------------------------------------------------------------------------ keys to groups
def key_group(key: Any, max_parallelism: int) -> int:
    """The group of `key`, in [0, max_parallelism). Raises UnserialisableKey."""
    return zlib.crc32(canonical(key)) % max_parallelism


def canonical(key: Any) -> bytes:
    """The canonical form: equal keys give equal bytes. Raises UnserialisableKey."""
    key_type: type = type(key)
    return _writer_for(key_type)(key)


_ONLY_STR: Final = {str}


class KeyGrouper:
    """Key groups of whole batches, cached by (type, key): a type that is refused may equal a key that is not."""

    def __init__(self, max_parallelism: int, cache_size: int = 1 << 17) -> None:
        self.max_parallelism = max_parallelism
        self._cache_size = cache_size
        self._caches: dict[type, _GroupCache] = {}

    def groups(self, keys: Sequence[Any]) -> list[int]:
        """One group for each key. Raises UnserialisableKey naming the first key that can't be grouped."""
        types = set(map(type, keys))
        try:
            if types == _ONLY_STR:
                modulus = self.max_parallelism
                return [checksum % modulus for checksum in map(zlib.crc32, map(str.encode, keys))]
            if len(types) == 1:
                return list(map(self._cache(types.pop()).__getitem__, keys))
            return [self._cache(type(key))[key] for key in keys]
        except (TypeError, UnicodeEncodeError):  # an unhashable key: say which; or a lone surrogate
            return [key_group(key, self.max_parallelism) for key in keys]

    def _cache(self, key_type: type) -> "_GroupCache":
        cache = self._caches.get(key_type)
        if cache is None:
            cache = self._caches[key_type] = _GroupCache(self.max_parallelism, self._cache_size)
        return cache


class _GroupCache(dict[Any, int]):
    """Key to group, bounded. What it drops is freed bit by bit: freeing 100,000 keys at once would hold the loop."""

    __slots__ = ("_dropped", "_max_parallelism", "_size")

    def __init__(self, max_parallelism: int, size: int) -> None:
        super().__init__()
        self._max_parallelism = max_parallelism
        self._size = size
        self._dropped: dict[Any, int] = {}

    def __missing__(self, key: Any) -> int:
        group = key_group(key, self._max_parallelism)
        if len(self) >= self._size:
            self._dropped = self.copy()
            self.clear()
        elif self._dropped:
            self._dropped.popitem()
        self[key] = group
        return group


# -------------------------------------------------------------------------------------------------- the canonical form
# Numbers are reduced modulo a Mersenne prime, as Python's own documented hash of numbers: exact for every size and for
# every numeric type, without building the integers of Decimal("1e999999").
_PRIME: Final = (1 << 61) - 1
_EPOCH: Final = dt.datetime(1970, 1, 1)
_MICROSECOND: Final = dt.timedelta(microseconds=1)


def _number(residue: int) -> bytes:
    return b"n%d" % (residue % _PRIME)


def _ratio(numerator: int, denominator: int) -> bytes:
    if denominator % _PRIME == 0:  # no inverse; only a Fraction can have such a denominator
        return b"n/0"
    return _number(numerator * pow(denominator, -1, _PRIME))


def _float(value: float) -> bytes:
    if math.isnan(value):
        raise UnserialisableKey("NaN can't be a key: it is not equal to itself; give such records a key of their own")
    if math.isinf(value):
        return b"n+inf" if value > 0 else b"n-inf"
    return _ratio(*value.as_integer_ratio())


def _decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        return _float(float(value) if not value.is_snan() else math.nan)
    magnitude = int("".join(map(str, digits)))
    scale = pow(10, exponent, _PRIME) if exponent >= 0 else pow(pow(10, -exponent, _PRIME), -1, _PRIME)
    return _number((-magnitude if sign else magnitude) * scale)


def _fraction(value: Fraction) -> bytes:
    return _ratio(value.numerator, value.denominator)


def _str(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _sequence(mark: bytes, parts: Sequence[bytes]) -> bytes:
    """Each part with its length before it, so that ("ab", "c") and ("a", "bc") differ."""
    return mark + b"".join(b"%d:%b" % (len(part), part) for part in parts)


def _tuple(value: tuple[Any, ...]) -> bytes:
    return _sequence(b"t", [canonical(item) for item in value])


def _frozenset(value: frozenset[Any]) -> bytes:
    return _sequence(b"f", sorted(canonical(item) for item in value))


def _offset(value: dt.datetime | dt.time) -> dt.timedelta | None:
    """Of the first of two ambiguous wall times, as == and hash() of datetimes take it."""
    if value.tzinfo is not None and not isinstance(value.tzinfo, dt.timezone | zoneinfo.ZoneInfo):
        raise UnserialisableKey(
            f"{value!r} can't be a key: the time zone type {type(value.tzinfo).__qualname__} can't be stored; "
            "use zoneinfo.ZoneInfo or .astimezone(datetime.timezone.utc)"
        )
    return value.replace(fold=0).utcoffset()


def _datetime(value: dt.datetime) -> bytes:
    wall = (value.replace(tzinfo=None, fold=0) - _EPOCH) // _MICROSECOND
    offset = _offset(value)
    return b"N%d" % wall if offset is None else b"I%d" % (wall - offset // _MICROSECOND)


def _time(value: dt.time) -> bytes:
    of_day = dt.timedelta(hours=value.hour, minutes=value.minute, seconds=value.second, microseconds=value.microsecond)
    offset = _offset(value)
    return b"w%d" % (of_day // _MICROSECOND) if offset is None else b"W%d" % ((of_day - offset) // _MICROSECOND)


def _enum(value: enum.Enum) -> bytes:
    return b"e" + canonical(value.value)


_BUILTIN: dict[type, _Writer] = {
    type(None): lambda _: b"0",
    bool: _number,
    int: _number,
    float: _float,
    Decimal: _decimal,
    Fraction: _fraction,
    str: _str,
    bytes: lambda value: b"b" + value,
    tuple: _tuple,
    frozenset: _frozenset,
    dt.datetime: _datetime,
    dt.date: lambda value: b"d%d" % value.toordinal(),
    dt.time: _time,
    dt.timedelta: lambda value: b"p%d" % (value // _MICROSECOND),
    uuid.UUID: lambda value: b"u" + value.bytes,
}


@functools.lru_cache(maxsize=4096)
def _writer_for(key_type: Any) -> _Writer:
    writer = _BUILTIN.get(key_type)
    if writer is None:
        writer = _class_writer(key_type)
        _refuse_unfindable(key_type)
    return writer


def _class_writer(key_type: Any) -> _Writer:
    if issubclass(key_type, enum.Enum):
        return _enum_writer(key_type)
    if issubclass(key_type, tuple) and hasattr(key_type, "_fields") and _inherits_equality(key_type, tuple):
        return _tuple
    if issubclass(key_type, msgspec.Struct) and _compares_by_value(key_type):
        return _fields_writer(key_type.__struct_fields__)
    if dataclasses.is_dataclass(key_type) and _is_value_class(key_type):
        return _fields_writer([field.name for field in dataclasses.fields(key_type) if field.compare])
    name = f"{key_type.__module__}.{key_type.__qualname__}"
    raise UnserialisableKey(f"a key of type {name} has no stable serialisation: {_remedy(key_type)}")


def _refuse_unfindable(key_type: type) -> None:
    """At the first record, rather than when the key is stored or restored."""
    try:
        ClassNames().refuse_unfindable(key_type)
    except UnserialisableValue as error:
        raise UnserialisableKey(f"a key of type {key_type.__qualname__}: {error}") from error


def _enum_writer(key_type: Any) -> _Writer:
    """A member of an IntEnum or StrEnum equals its value; of other enums, only itself."""
    for base in (int, str, float, bytes):
        if issubclass(key_type, base) and _inherits_equality(key_type, base):
            return _BUILTIN[base]
    if _inherits_equality(key_type, object):
        return _enum
    raise UnserialisableKey(f"the enum {key_type.__qualname__} defines its own __eq__: use its value as the key")


def _fields_writer(names: Sequence[str]) -> _Writer:
    """By name, so that neither the order of the fields nor the name of the class matters."""
    names = sorted(names)

    def write(value: Any) -> bytes:
        return _sequence(b"o", [part for name in names for part in (name.encode(), canonical(getattr(value, name)))])

    return write


def _inherits_equality(key_type: type, base: type) -> bool:
    return key_type.__eq__ is base.__eq__


def _compares_by_value(key_type: Any) -> bool:
    config = key_type.__struct_config__
    return bool(config.frozen and config.eq and _inherits_equality(key_type, msgspec.Struct))


def _is_value_class(key_type: Any) -> bool:
    params = key_type.__dataclass_params__
    written = key_type.__dict__.get("__eq__")
    generated = written is not None and written.__code__.co_filename == "<string>"  # as all that dataclasses makes
    return bool(params.frozen and params.eq and generated)


def _remedy(key_type: type) -> str:
    if issubclass(key_type, list | bytearray | set | dict):
        return f"it can be changed; use {'tuple' if issubclass(key_type, list) else 'an immutable type'} instead"
    for base in (int, float, str, bytes):
        if issubclass(key_type, base):
            return f"convert it with {base.__name__}(key)"
    if issubclass(key_type, msgspec.Struct):
        return "declare the Struct with frozen=True, and without an __eq__ of its own"
    if dataclasses.is_dataclass(key_type):
        return "declare the dataclass with frozen=True, and without an __eq__ of its own"
    return "use a str, int, bytes, a tuple of such, or a frozen dataclass or msgspec Struct"
